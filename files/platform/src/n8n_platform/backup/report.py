# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person or the journal sees while something runs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

REDRAW_SECONDS = 0.2
NOTICE, WARNING, ERROR = 5, 4, 3
STEPS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def human_size(size: float) -> str:
    """Return bytes for people."""
    for unit, factor in STEPS:
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"


def human_age(seconds: float) -> str:
    """Return a span of time for people."""
    minutes = int(abs(seconds) // 60)
    sign = "-" if seconds < 0 and minutes else ""
    if minutes < 120:  # noqa: PLR2004
        return f"{sign}{minutes} min"
    if minutes < 48 * 60:
        return f"{sign}{minutes // 60} h"
    return f"{sign}{minutes // 1440} days"


class Report:
    """Sentences for the reader, and the list of them for JSON. Progress is only drawn on a terminal.

    In the journal each line carries its priority, so that ``journalctl -p warning`` shows what is wrong.
    """

    def __init__(
        self,
        quiet: bool = False,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # With --json standard output holds nothing but the answer.
        self.out = out or (sys.stderr if quiet else sys.stdout)
        self.quiet = quiet
        self.clock = clock
        self.warnings: list[str] = []
        self.problems: list[str] = []
        self.journal = "JOURNAL_STREAM" in os.environ and not self.out.isatty()
        self.terminal = self.out.isatty()
        self.drawn = 0
        self.last = (0.0, "", 0.0)

    def _line(self, priority: int, mark: str, text: str) -> None:
        self.clear()
        for line in text.splitlines():
            self.out.write(f"<{priority}>{line}\n" if self.journal else f"{mark}{line}\n")
            mark = " " * len(mark)
        self.out.flush()

    def say(self, text: str) -> None:
        """Tell what was done."""
        if not self.quiet or self.terminal:
            self._line(NOTICE, "", text)

    def warn(self, text: str) -> None:
        """Tell what is odd, but harms nothing."""
        self.warnings.append(text)
        self._line(WARNING, "warning: ", text)

    def problem(self, text: str) -> None:
        """Tell what is wrong, once: the exit code will not be 0."""
        if text not in self.problems:
            self.problems.append(text)
            self._line(ERROR, "PROBLEM: ", text)

    def progress(self, name: str, size: int) -> None:
        """Draw how far a file is."""
        if not self.terminal:
            return
        now = self.clock()
        drawn, of, begun = self.last
        if of != name:
            begun = now
        elif now - drawn < REDRAW_SECONDS:
            return
        self.last = (now, name, begun)
        speed = f"  {human_size(size / (now - begun))}/s" if now - begun > 1 else ""
        text = f"{name:26} {human_size(size):>10}{speed}"
        self.out.write("\r" + text.ljust(self.drawn))
        self.out.flush()
        self.drawn = len(text)

    def clear(self) -> None:
        """Remove the progress line."""
        if self.drawn:
            self.out.write("\r" + " " * self.drawn + "\r")
            self.drawn = 0


def print_json(value: Any) -> None:
    """Print an answer for programs."""
    print(json.dumps(value, indent=1, sort_keys=True))

# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress for people: a moving line on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

LINE_SECONDS = 10.0
TERMINAL_SECONDS = 0.2


def human_size(size: float) -> str:
    """Write a number of bytes the way people read it, in decimal units."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:  # noqa: PLR2004
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


class Reporter:
    """Tells on stderr what the store is doing, so that stdout stays for results.

    ``clock`` returns seconds and exists for tests.
    """

    def __init__(
        self, stream: TextIO | None = None, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = quiet
        self._clock = clock
        self._terminal = self._stream.isatty()
        self._last = clock()
        self._open_line = False

    def say(self, text: str) -> None:
        """Print one lasting line."""
        if not self._quiet:
            self.clear()
            print(text, file=self._stream, flush=True)
        self._last = self._clock()

    def tick(self, text: str) -> None:
        """Show a passing state; most calls print nothing, so it is cheap to call often."""
        now = self._clock()
        if self._quiet or now - self._last < (TERMINAL_SECONDS if self._terminal else LINE_SECONDS):
            return
        self._last = now
        if self._terminal:
            self._stream.write(f"\r\033[K  {text}")
            self._stream.flush()
            self._open_line = True
        else:
            print(f"  {text}", file=self._stream, flush=True)

    def clear(self) -> None:
        """End a moving line, so that other output starts on a clean one."""
        if self._open_line:
            self._stream.write("\r\033[K")
            self._open_line = False
            self._stream.flush()

# SPDX-License-Identifier: GPL-3.0-or-later
"""One lock file per artifact, so that two processes share one download instead of doing it twice."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from artifacts.store.progress import Reporter

POLL_SECONDS = 0.2


@contextmanager
def locked(path: Path, label: str, reporter: Reporter) -> Iterator[None]:
    """Hold the lock ``path``; if another process has it, say so and wait.

    The kernel frees the lock when its holder dies, so a killed process never leaves it behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        if not _try(handle.fileno()):
            reporter.say(f"{label}: another process is working on it, waiting for it to finish")
            started = time.monotonic()
            while not _try(handle.fileno()):
                time.sleep(POLL_SECONDS)
                reporter.tick(f"{label}: waiting for the other process, {time.monotonic() - started:.0f} s")
        yield


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

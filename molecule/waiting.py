# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait for conditions; what scenarios that break things share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def until(condition: Callable[[], bool], seconds: float, what: str, every: float = 1.0) -> float:
    """Wait until a condition holds; return how long that took, fail after ``seconds``."""
    start = time.monotonic()
    pause = threading.Event()
    while not condition():
        if time.monotonic() - start > seconds:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        pause.wait(every)
    return time.monotonic() - start

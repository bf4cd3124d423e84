# SPDX-License-Identifier: GPL-3.0-or-later
"""How much of something there may be a second."""

from __future__ import annotations


class Bucket:
    """A token bucket: ``rate`` of them a second, ``burst`` at once; a batch may overdraw it, the next then waits."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self.level = burst
        self.at = now

    def take(self, count: int, now: float) -> float:
        """Take tokens and return 0, or return after how many seconds they will be there."""
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        needed = min(float(count), self.burst)
        if self.level >= needed:
            self.level -= count
            return 0.0
        return (needed - self.level) / self.rate

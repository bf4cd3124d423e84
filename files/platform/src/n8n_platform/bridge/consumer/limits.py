# SPDX-License-Identifier: GPL-3.0-or-later
"""How many calls may be under way: in this process, for a tenant, and for a tenant's calls of one route.

The last limit adapts: n8n that says "too much" (429, 503) halves it, each success gives a little back. A breaker holds
all calls of a tenant on a route back after failures in a row, then lets one through to see whether n8n is well again.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

# A burst of refusals is one piece of news: the limit is halved once in so many seconds.
HALVE_SECONDS = 1.0
# A breaker that opens again and again waits longer, up to this many times its first pause.
LONGEST_PAUSES = 8
# Lanes nobody used for so long are forgotten, seconds.
IDLE_SECONDS = 3600.0


class Verdict(Enum):
    """What a call says about the one who was called."""

    WELL = "well"
    BUSY = "busy"
    ILL = "ill"
    # Nothing: the call was not made, or the answer was about the event alone.
    NOTHING = "nothing"


class Breaker:
    """Opens after ``failures`` in a row, for ``pause_s`` seconds at first. ``clock`` counts seconds."""

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float]) -> None:
        self.failures, self.pause_s, self.clock = failures, pause_s, clock
        self.in_a_row = 0
        self.pauses = 0
        self.until = 0.0

    @property
    def tripped(self) -> bool:
        """Whether calls are held back, or one goes through for a trial."""
        return self.pauses > 0

    def closed_for(self) -> float:
        """Return for how many seconds no call may be made; 0 means that one may."""
        return max(0.0, self.until - self.clock())

    def failed(self) -> None:
        """Note a failure; failures of calls begun before the breaker opened do not make it wait longer."""
        self.in_a_row += 1
        if self.in_a_row >= self.failures and self.closed_for() == 0:
            self.pauses = min(self.pauses + 1, LONGEST_PAUSES)
            # Not all processes try at the same moment.
            self.until = self.clock() + self.pause_s * self.pauses * random.uniform(0.8, 1.2)  # noqa: S311

    def succeeded(self) -> None:
        """Note a success: all is well."""
        self.in_a_row = self.pauses = 0
        self.until = 0.0


@dataclass
class Lane:
    """Calls of one tenant on one route."""

    breaker: Breaker
    limit: float
    busy: int = 0
    halved_at: float = 0.0
    used_at: float = 0.0


class Limits:
    """The limits of a process. Everything happens in the event loop, so nothing is locked."""

    def __init__(
        self,
        total: int,
        per_tenant: int,
        breaker_failures: int,
        breaker_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.per_tenant = total, per_tenant
        self.breaker_failures, self.breaker_s = breaker_failures, breaker_s
        self.clock = clock
        # Nobody can be called at all.
        self.closed = False
        self.busy = 0
        self.tenants: Counter[str] = Counter()
        self.lanes: dict[tuple[str, str], Lane] = {}

    def lane(self, tenant: str, route: str, concurrency: int) -> Lane:
        """Return the lane of a tenant on a route; ``concurrency`` is what the route allows at best."""
        found = self.lanes.get((tenant, route))
        if found is None:
            breaker = Breaker(self.breaker_failures, self.breaker_s, self.clock)
            found = self.lanes[tenant, route] = Lane(breaker, float(concurrency))
        found.limit = min(found.limit, float(concurrency))
        found.used_at = self.clock()
        return found

    def room(self, tenant: str, route: str, concurrency: int) -> int:
        """Return how many calls more may begin now."""
        lane = self.lane(tenant, route, concurrency)
        if self.closed or lane.breaker.closed_for() > 0:
            return 0
        # After a pause one call is the trial for all.
        limit = 1 if lane.breaker.tripped else max(1, int(lane.limit))
        return max(0, min(limit - lane.busy, self.per_tenant - self.tenants[tenant], self.total - self.busy))

    def full(self) -> bool:
        """Return whether the process can begin nothing more, whoever for."""
        return self.closed or self.busy >= self.total

    def enter(self, tenant: str, route: str, concurrency: int) -> bool:
        """Take the room for one call; return whether there was any. Each room taken must be given back by leave."""
        if self.room(tenant, route, concurrency) < 1:
            return False
        self.lanes[tenant, route].busy += 1
        self.tenants[tenant] += 1
        self.busy += 1
        return True

    def leave(self, tenant: str, route: str, concurrency: int, verdict: Verdict) -> None:
        """Give the room of a call back and learn from how it went."""
        lane = self.lanes[tenant, route]
        lane.busy -= 1
        self.busy -= 1
        self.tenants[tenant] -= 1
        if not self.tenants[tenant]:
            del self.tenants[tenant]
        now = self.clock()
        if verdict is Verdict.WELL:
            lane.breaker.succeeded()
            lane.limit = min(float(concurrency), lane.limit + 1 / max(1.0, lane.limit))
        elif verdict is Verdict.BUSY:
            if now - lane.halved_at >= HALVE_SECONDS:
                lane.limit, lane.halved_at = max(1.0, lane.limit / 2), now
        elif verdict is Verdict.ILL:
            lane.breaker.failed()

    def pause(self, tenant: str, route: str) -> float:
        """Return for how many seconds the breaker of a lane holds calls back."""
        lane = self.lanes.get((tenant, route))
        return lane.breaker.closed_for() if lane else 0.0

    def forget(self) -> list[tuple[str, str]]:
        """Drop lanes nobody uses any more and return their names, so that old tenants do not fill the memory."""
        past = self.clock() - IDLE_SECONDS
        idle = [name for name, lane in self.lanes.items() if not lane.busy and lane.used_at < past]
        for name in idle:
            del self.lanes[name]
        return idle

# SPDX-License-Identifier: GPL-3.0-or-later
"""What each tenant may send: a rate, which this process checks alone, and quotas of the day, which all share."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, date, datetime, timedelta

from n8n_platform.bridge.api.problems import Problem
from n8n_platform.bridge.bucket import Bucket
from n8n_platform.bridge.settings import Limits, Tenant

Used = dict[str, tuple[int, int]]
AddUsage = Callable[[date, Mapping[str, tuple[int, int]]], Awaitable[Used]]


class Limiter:
    """Rates and quotas. The rate of a tenant is divided by the number of processes; quotas are summed up each second.

    A quota can be overdrawn by what arrives within that second.
    """

    def __init__(
        self,
        limits: Limits,
        processes: int,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.limits = limits
        self.processes = processes
        self._clock = clock
        self._now = today
        self._buckets: dict[str, Bucket] = {}
        self._unsaved: dict[date, dict[str, tuple[int, int]]] = defaultdict(dict)
        self._total: Used = {}
        self._day = today().date()

    def tenant(self, name: str) -> Tenant:
        """Return the limits of a tenant."""
        return self.limits.tenants.get(name, self.limits.tenant)

    def check(self, name: str, events: int, size: int) -> None:
        """Raise Problem when a tenant may not send this many events and bytes now."""
        options = self.tenant(name)
        self._check_quota(name, options, events, size)
        if options.events_per_second:
            now = self._clock()
            bucket = self._buckets.get(name)
            if bucket is None:
                share = options.events_per_second / self.processes
                bucket = self._buckets[name] = Bucket(share, max(1.0, options.burst / self.processes), now)
            if wait := bucket.take(events, now):
                raise Problem(
                    "rate-limited",
                    f"The tenant may send {options.events_per_second:g} events a second.",
                    retry_after=wait,
                )

    def _check_quota(self, name: str, options: Tenant, events: int, size: int) -> None:
        if not (options.events_per_day or options.bytes_per_day):
            return
        now = self._now()
        today = now.date()
        known = self._total.get(name, (0, 0)) if today == self._day else (0, 0)
        recent = self._unsaved.get(today, {}).get(name, (0, 0))
        for what, allowed, used, more in (
            ("events", options.events_per_day, known[0] + recent[0], events),
            ("bytes", options.bytes_per_day, known[1] + recent[1], size),
        ):
            if allowed and used + more > allowed:
                midnight = datetime(today.year, today.month, today.day, tzinfo=UTC) + timedelta(days=1)
                raise Problem(
                    "quota-exceeded",
                    f"The tenant may send {allowed} {what} a day and has sent {used}.",
                    retry_after=(midnight - now).total_seconds(),
                )

    def count(self, name: str, events: int, size: int) -> None:
        """Note what a tenant has sent."""
        day = self._unsaved[self._now().date()]
        before = day.get(name, (0, 0))
        day[name] = (before[0] + events, before[1] + size)

    async def save(self, add: AddUsage) -> None:
        """Add what was counted to what all processes have counted; what cannot be saved is kept for the next time."""
        today = self._now().date()
        if today != self._day:
            self._day, self._total = today, {}
        for day in sorted(self._unsaved):
            counted = self._unsaved.pop(day)
            try:
                totals = await add(day, counted)
            except BaseException:
                for name, (events, size) in counted.items():
                    before = self._unsaved[day].get(name, (0, 0))
                    self._unsaved[day][name] = (before[0] + events, before[1] + size)
                raise
            if day == today:
                self._total.update(totals)

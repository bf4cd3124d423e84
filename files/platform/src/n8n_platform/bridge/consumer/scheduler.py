# SPDX-License-Identifier: GPL-3.0-or-later
"""Deliveries that the database holds: what failed, what was put off, what travels without Pulsar.

Each pass asks which tenants and routes have something due and leases from each only as much as its limits leave room
for, so that the long queue of one tenant costs the others nothing. All processes do this at the same time; a row that
another one is leasing is passed over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol
from uuid import UUID

from n8n_platform.bridge.consumer.delivery import Delivery
from n8n_platform.bridge.consumer.limits import Verdict
from n8n_platform.bridge.deliveries import Event, transient

LOG = logging.getLogger(__name__)
# How often leases that ran out are looked for, and how often the numbers of waiting and dead rows are read, seconds.
LEASES_SECONDS = 5.0
COUNT_SECONDS = 15.0
FAILED_SECONDS = 1.0
# A pass is not begun earlier than this after the one before, seconds, however often one is asked for.
SHORTEST_SECONDS = 0.02


class Store(Protocol):
    """What is asked of the database."""

    async def due(self) -> Sequence[tuple[str, str]]:
        """Return pairs (tenant, route) with something due."""

    async def lease(self, rooms: Sequence[tuple[str, str, int, float]]) -> Sequence[Event]:
        """Lease deliveries that are due."""

    async def free_expired(self) -> int:
        """Give expired leases back."""

    async def free_loose(self, working: Iterable[UUID]) -> int:
        """Give back leases of this process that it does not work on."""

    async def counts(self) -> tuple[int, int]:
        """Return the numbers of waiting and dead deliveries."""


class Scheduler:
    """Leases what is due and delivers it, at most ``most`` a pass, a pass at least every ``every_s`` seconds."""

    def __init__(
        self,
        store: Store,
        delivery: Delivery,
        every_s: float,
        most: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store, self.delivery, self.every_s, self.most, self.clock = store, delivery, every_s, most, clock
        self.tasks: set[asyncio.Task[None]] = set()
        # Starts a pass at once; an end of a delivery does only while something due found no room.
        self.wake = asyncio.Event()
        self.hungry = False
        self.stopping = False
        delivery.ended = self.ended
        self.last_pass = clock()
        self._leases_at = self._counts_at = float("-inf")

    async def run(self) -> None:
        """Do passes until told to stop; a database that is away only delays them."""
        while not self.stopping:
            wait = self.every_s
            try:
                if await self.once():
                    wait = SHORTEST_SECONDS
            except Exception as error:
                wait = FAILED_SECONDS
                if transient(error):
                    LOG.warning("the database does not answer", extra={"error": f"{type(error).__name__}: {error}"})
                else:
                    LOG.exception("a pass of the scheduler failed")
            await asyncio.sleep(SHORTEST_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), max(0.0, wait - SHORTEST_SECONDS))
            if not self.stopping:
                self.wake.clear()

    def stop(self) -> None:
        """Begin no other pass; the one under way comes to its end."""
        self.stopping = True
        self.wake.set()

    async def once(self) -> int:
        """Do one pass and return how many deliveries were begun."""
        now = self.clock()
        if now - self._leases_at >= LEASES_SECONDS:
            self._leases_at = now
            if freed := await self.store.free_expired():
                LOG.warning("leases ran out", extra={"count": freed})
            if freed := await self.store.free_loose(self.delivery.working):
                LOG.warning("leases nobody works on", extra={"count": freed})
            metrics = self.delivery.tools.metrics
            # A breaker nobody tries any more would be shown as it was last.
            for name in self.delivery.tools.limits.forget():
                metrics.breaker_open.remove(*name)
                metrics.in_flight.remove(*name)
        if now - self._counts_at >= COUNT_SECONDS:
            self._counts_at = now
            metrics = self.delivery.tools.metrics
            waiting, dead = await self.store.counts()
            metrics.retry_rows.set(waiting)
            metrics.dead_rows.set(dead)
        begun = await self._lease()
        self.last_pass = self.clock()
        return begun

    async def _lease(self) -> int:
        tools = self.delivery.tools
        pairs = list(await self.store.due())
        self.hungry = False
        # Where there is not room for all, chance decides who comes first.
        random.shuffle(pairs)
        share = max(1, self.most // max(1, len(pairs)))
        taken: dict[tuple[str, str], int] = {}
        for tenant, name in pairs:
            route = tools.route(name)
            places = 0
            while places < share and tools.limits.enter(tenant, name, route.concurrency):
                places += 1
            # There may be more of it than room, or than its share.
            self.hungry |= places < share
            if places:
                taken[tenant, name] = places
        if not taken:
            return 0
        try:
            events = await self.store.lease(
                [(tenant, name, places, tools.lease(tools.route(name))) for (tenant, name), places in taken.items()]
            )
            for event in events:
                taken[event.tenant, event.route] -= 1
                self._begin(event)
        finally:
            for (tenant, name), places in taken.items():
                for _ in range(places):
                    tools.limits.leave(tenant, name, tools.route(name).concurrency, Verdict.NOTHING)
        return len(events)

    def _begin(self, event: Event) -> None:
        task = asyncio.create_task(self._deliver(event))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def ended(self) -> None:
        """Note that a delivery has ended, whoever began it."""
        if self.hungry:
            self.wake.set()

    async def _deliver(self, event: Event) -> None:
        try:
            await self.delivery.deliver(event)
        except Exception:
            # The lease runs out, then the next pass of any process goes on.
            LOG.exception("a delivery failed", extra={"event_id": str(event.id), "tenant": event.tenant})

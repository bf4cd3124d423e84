# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of each delivery in PostgreSQL, where the truth about it is.

A delivery is ``leased`` to one process while it calls n8n, and ends ``done``, ``dead`` or ``cancelled``; in between it
is ``retry`` until ``next_at``. Each lease raises ``generation``, and whoever reports an end must name the generation of
the lease: a process that was away for too long changes nothing any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from n8n_platform.bridge import db, deliveries_sql, ids

ERROR_CHARACTERS = 500


class Connection(Protocol):
    """What is used of asyncpg's pool: each call is a transaction of its own."""

    async def fetch(self, query: str, *arguments: Any) -> Sequence[Any]:
        """Return the rows of a query."""

    async def fetchval(self, query: str, *arguments: Any) -> Any:
        """Return the first column of the first row."""


@dataclass(frozen=True)
class Known:
    """What the database knows about an event before anybody takes it; ``state`` is None without a delivery."""

    tenant: str
    route: str
    topic: str | None
    state: str | None


@dataclass(frozen=True)
class Wish:
    """What to do with an event that came from Pulsar.

    ``leased``: take it, for ``lease_s`` seconds; ``retry``: leave it to a scheduler; ``done``: nobody is to be called.
    """

    id: UUID
    message_id: str
    state: str
    lease_s: float | None = None


@dataclass(frozen=True)
class Event:
    """An event that is leased to this process. ``attempt`` counts from 1."""

    id: UUID
    tenant: str
    execution_id: str
    type: str
    workflow: str | None
    route: str
    topic: str | None
    body: bytes
    content_type: str
    traceparent: str | None
    created_at: datetime
    expires_at: datetime
    attempt: int
    generation: int
    message_id: str | None = None


@dataclass(frozen=True)
class End:
    """How an attempt ended: ``state`` is done, dead or retry (in ``delay_s`` seconds).

    ``dead_topic`` takes the dead letter. ``free``: the attempt does not count, because n8n was not asked.
    """

    event: Event
    state: str
    status: int | None = None
    error: str | None = None
    delay_s: float = 0.0
    dead_topic: str | None = None
    free: bool = False


def transient(error: BaseException) -> bool:
    """Return whether an error says something about the database and nothing about what it was asked."""
    return isinstance(error, (*db.UNAVAILABLE, *db.AGAIN))


def clean(text: str | None) -> str | None:
    """Return a text that PostgreSQL takes and a person reads."""
    if text is None:
        return None
    kept = "".join(letter if letter.isprintable() else " " for letter in text[: ERROR_CHARACTERS * 2])
    return kept.encode(errors="replace").decode()[:ERROR_CHARACTERS].strip()


def days(events: Iterable[UUID]) -> list[Any]:
    """Return the days under which events are stored."""
    return [ids.day(event) for event in events]


class Deliveries:
    """The queries of a consumer. ``owner`` is ``<process>/<this run of it>``."""

    def __init__(self, pool: Connection, owner: str) -> None:
        self.pool = pool
        self.owner = owner
        self._loose: set[tuple[UUID, int]] = set()

    async def look(self, wanted: Sequence[UUID]) -> list[Known | None]:
        """Return what is known about events, in their order; None for an id that is not there."""
        rows = await self.pool.fetch(deliveries_sql.LOOK, wanted, days(wanted))
        found = {row["id"]: Known(row["tenant"], row["route"], row["topic"], row["state"]) for row in rows}
        return [found.get(event) for event in wanted]

    async def take(self, wishes: Sequence[Wish]) -> list[Event | None]:
        """Give events that nobody has begun the states that are wished, in one transaction.

        Return, in their order, those that are leased to this process now; None for all others, also for those that have
        a delivery already: somebody else's, a scheduler's, or one that came to its end.
        """
        unique = {wish.id: wish for wish in wishes}
        rows = await self.pool.fetch(
            deliveries_sql.TAKE,
            list(unique),
            days(unique),
            [wish.message_id for wish in unique.values()],
            [wish.lease_s for wish in unique.values()],
            [wish.state for wish in unique.values()],
            self.owner,
        )
        # A wish that stands there twice is granted once.
        found = {row["id"]: event_of(row) for row in rows}
        return [found.pop(wish.id, None) for wish in wishes]

    async def finish(self, ends: Sequence[End]) -> list[bool]:
        """Write how attempts ended, in one transaction; False for those whose lease was not ours any more."""
        ordered = sorted(ends, key=lambda end: end.event.id)
        rows = await self.pool.fetch(
            deliveries_sql.END,
            [end.event.id for end in ordered],
            [end.event.generation for end in ordered],
            [end.state for end in ordered],
            [end.status for end in ordered],
            [clean(end.error) for end in ordered],
            [end.delay_s for end in ordered],
            [end.dead_topic for end in ordered],
            [int(end.free) for end in ordered],
        )
        changed = {row["event_id"] for row in rows}
        return [end.event.id in changed for end in ends]

    async def due(self) -> list[tuple[str, str]]:
        """Return the pairs (tenant, route) that have a delivery whose time has come."""
        return [(row["tenant"], row["route"]) for row in await self.pool.fetch(deliveries_sql.DUE)]

    async def lease(self, rooms: Sequence[tuple[str, str, int, float]]) -> list[Event]:
        """Lease deliveries that are due: for each (tenant, route) at most ``room`` of them for ``lease_s`` seconds."""
        tenants, routes, places, leases = (list(column) for column in zip(*rooms, strict=True))
        rows = await self.pool.fetch(deliveries_sql.LEASE, tenants, routes, places, leases, self.owner)
        if not rows:
            return []
        wanted = [row["event_id"] for row in rows]
        events = {row["id"]: row for row in await self.pool.fetch(deliveries_sql.READ, wanted, days(wanted))}
        if lost := [event for event in wanted if event not in events]:
            await self.pool.fetch(deliveries_sql.LOST, lost, self.owner)
        return [event_of({**events[row["event_id"]], **row}) for row in rows if row["event_id"] in events]

    async def free_expired(self) -> int:
        """Give leases that ran out back to the schedulers; return how many."""
        return int(await self.pool.fetchval(deliveries_sql.EXPIRED))

    async def free_loose(self, working: Iterable[UUID]) -> int:
        """Give back leases of this process that it does not work on, found so twice in a row; return how many.

        There are such when PostgreSQL ended before it could say what it had committed.
        """
        rows = await self.pool.fetch(deliveries_sql.LOOSE, self.owner, list(working))
        found = {(row["event_id"], row["generation"]) for row in rows}
        sure, self._loose = sorted(found & self._loose), found - self._loose
        if not sure:
            return 0
        events, generations = (list(column) for column in zip(*sure, strict=True))
        return int(await self.pool.fetchval(deliveries_sql.FREE, self.owner, events, generations))

    async def free_former(self) -> int:
        """Give back the leases of former runs of this process, which cannot go on with them; return how many."""
        process = self.owner.rsplit("/", 1)[0].replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return int(await self.pool.fetchval(deliveries_sql.FORMER, process + "/%", self.owner))

    async def free_own(self) -> int:
        """Give back the leases this process still has when it ends; return how many."""
        return int(await self.pool.fetchval(deliveries_sql.OWN, self.owner))

    async def counts(self) -> tuple[int, int]:
        """Return how many deliveries wait for another attempt, and how many are dead and not replayed."""
        (row,) = await self.pool.fetch(deliveries_sql.COUNTS)
        return int(row["retry"]), int(row["dead"])


def event_of(row: Any) -> Event:
    """Return a row as an event."""
    names = ("id", "tenant", "execution_id", "type", "workflow", "route", "topic", "body", "content_type")
    rest = ("traceparent", "created_at", "expires_at", "attempt", "generation", "message_id")
    return Event(**{name: row[name] for name in (*names, *rest)})

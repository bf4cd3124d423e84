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

from n8n_platform.bridge import db, ids

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
    """What to do with an event that came from Pulsar: take it for ``lease_s`` seconds, or put it off (None)."""

    id: UUID
    message_id: str
    lease_s: float | None


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


EVENT = """
    e.id, e.tenant, e.execution_id, e.type, e.workflow, e.route, e.topic, e.body, e.content_type, e.traceparent,
    e.created_at, e.expires_at
"""

LOOK = """
    SELECT e.id, e.tenant, e.route, e.topic, d.state
    FROM unnest($1::uuid[], $2::date[]) AS asked (id, day)
    JOIN bridge.event e ON e.day = asked.day AND e.id = asked.id
    LEFT JOIN bridge.delivery d ON d.event_id = e.id
    WHERE e.day = ANY ($2::date[])
"""

# A delivery that waits for another attempt belongs to the scheduler, and so does a lease that ran out.
TAKE = f"""
    WITH asked AS (
        SELECT * FROM unnest($1::uuid[], $2::date[], $3::text[], $4::float8[]) AS a (id, day, message_id, lease)
    ), taken AS (
        INSERT INTO bridge.delivery AS d
            (event_id, tenant, route, state, attempt, generation, lease_owner, lease_until, next_at, message_id)
        SELECT e.id, e.tenant, e.route,
            CASE WHEN a.lease IS NULL THEN 'retry' ELSE 'leased' END,
            CASE WHEN a.lease IS NULL THEN 0 ELSE 1 END,
            1,
            CASE WHEN a.lease IS NOT NULL THEN $5::text END,
            now() + a.lease * interval '1 second',
            CASE WHEN a.lease IS NULL THEN now() END,
            a.message_id
        FROM asked a JOIN bridge.event e ON e.day = a.day AND e.id = a.id
        WHERE e.day = ANY ($2::date[])
        ORDER BY e.id
        ON CONFLICT (event_id) DO UPDATE SET
            state = excluded.state,
            attempt = d.attempt + excluded.attempt,
            generation = d.generation + 1,
            lease_owner = excluded.lease_owner,
            lease_until = excluded.lease_until,
            next_at = excluded.next_at,
            message_id = excluded.message_id
        WHERE d.state = 'waiting'
        RETURNING event_id, attempt, generation, state, message_id
    )
    SELECT {EVENT}, t.attempt, t.generation, t.state, t.message_id
    FROM taken t JOIN asked a ON a.id = t.event_id JOIN bridge.event e ON e.day = a.day AND e.id = a.id
    WHERE e.day = ANY ($2::date[])
"""  # noqa: S608  (constants)

END = """
    WITH ended AS (
        SELECT * FROM unnest(
            $1::uuid[], $2::int[], $3::text[], $4::int[], $5::text[], $6::float8[], $7::text[], $8::int[]
        ) AS x (id, generation, state, status, error, delay, topic, free)
    ), changed AS (
        UPDATE bridge.delivery d SET
            state = x.state,
            lease_owner = NULL,
            lease_until = NULL,
            next_at = CASE WHEN x.state = 'retry' THEN now() + x.delay * interval '1 second' END,
            attempt = d.attempt - x.free,
            last_status = coalesce(x.status, d.last_status),
            last_error = CASE WHEN x.state = 'done' THEN NULL ELSE x.error END,
            done_at = CASE WHEN x.state <> 'retry' THEN now() END
        FROM ended x
        WHERE d.event_id = x.id AND d.generation = x.generation AND d.state = 'leased'
        RETURNING d.event_id, d.tenant, x.topic, x.error
    ), letters AS (
        INSERT INTO bridge.outbox (event_id, topic, tenant, reason)
        SELECT event_id, topic, tenant, coalesce(error, 'given up') FROM changed WHERE topic IS NOT NULL
    )
    SELECT event_id FROM changed
    UNION
    -- Recorded before, when only the answer was lost.
    SELECT d.event_id FROM ended x JOIN bridge.delivery d ON d.event_id = x.id
    WHERE d.generation = x.generation AND d.state = x.state
"""

# The pairs of tenant and route that have something due: one look at the index for each, however many rows it has.
DUE = """
    WITH RECURSIVE pairs AS (
        (SELECT tenant, route FROM bridge.delivery WHERE state = 'retry' ORDER BY tenant, route LIMIT 1)
        UNION ALL
        SELECT n.tenant, n.route FROM pairs p CROSS JOIN LATERAL (
            SELECT tenant, route FROM bridge.delivery
            WHERE state = 'retry' AND (tenant, route) > (p.tenant, p.route) ORDER BY tenant, route LIMIT 1
        ) n
    )
    SELECT tenant, route FROM pairs p WHERE EXISTS (
        SELECT FROM bridge.delivery d
        WHERE d.state = 'retry' AND d.tenant = p.tenant AND d.route = p.route AND d.next_at <= now()
    )
"""

LEASE = """
    WITH rooms AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::float8[]) AS r (tenant, route, room, lease)
    ), due AS (
        SELECT d.event_id, r.lease FROM rooms r CROSS JOIN LATERAL (
            SELECT event_id FROM bridge.delivery
            WHERE state = 'retry' AND tenant = r.tenant AND route = r.route AND next_at <= now()
            ORDER BY next_at LIMIT r.room FOR UPDATE SKIP LOCKED
        ) d
    ), taken AS (
        UPDATE bridge.delivery d SET state = 'leased', attempt = d.attempt + 1, generation = d.generation + 1,
            lease_owner = $5, lease_until = now() + due.lease * interval '1 second', next_at = NULL
        FROM due WHERE d.event_id = due.event_id
        RETURNING d.event_id, d.tenant, d.route, d.attempt, d.generation, d.message_id
    )
    SELECT event_id, tenant, route, attempt, generation, message_id FROM taken
"""

READ = f"""
    SELECT {EVENT} FROM unnest($1::uuid[], $2::date[]) AS asked (id, day)
    JOIN bridge.event e ON e.day = asked.day AND e.id = asked.id
    WHERE e.day = ANY ($2::date[])
"""  # noqa: S608  (constants)

RELEASE = """
    WITH old AS (
        SELECT event_id FROM bridge.delivery WHERE state = 'leased' AND {which} LIMIT 1000 FOR UPDATE SKIP LOCKED
    ), freed AS (
        UPDATE bridge.delivery d SET state = 'retry', next_at = now(), lease_owner = NULL, lease_until = NULL,
            last_error = 'the process that called n8n ended or lost touch'
        FROM old WHERE d.event_id = old.event_id RETURNING 1
    )
    SELECT count(*) FROM freed
"""
EXPIRED = RELEASE.format(which="lease_until < now()")
OWN = RELEASE.format(which="lease_owner = $1")
FORMER = RELEASE.format(which="lease_owner LIKE $1 AND lease_owner <> $2")

# An event whose payload is gone cannot be delivered by anybody.
LOST = """
    UPDATE bridge.delivery SET state = 'dead', lease_owner = NULL, lease_until = NULL, done_at = now(),
        last_error = 'the payload is older than payloads are kept'
    WHERE event_id = ANY ($1::uuid[]) AND state = 'leased' AND lease_owner = $2
"""

COUNTS = """
    SELECT (SELECT count(*) FROM bridge.delivery WHERE state = 'retry') AS retry,
           (SELECT count(*) FROM bridge.delivery WHERE state = 'dead' AND replaced_by IS NULL) AS dead
"""


def days(events: Iterable[UUID]) -> list[Any]:
    """Return the days under which events are stored."""
    return [ids.day(event) for event in events]


class Deliveries:
    """The queries of a consumer. ``owner`` is ``<process>/<this run of it>``."""

    def __init__(self, pool: Connection, owner: str) -> None:
        self.pool = pool
        self.owner = owner

    async def look(self, wanted: Sequence[UUID]) -> list[Known | None]:
        """Return what is known about events, in their order; None for an id that is not there."""
        rows = await self.pool.fetch(LOOK, wanted, days(wanted))
        found = {row["id"]: Known(row["tenant"], row["route"], row["topic"], row["state"]) for row in rows}
        return [found.get(event) for event in wanted]

    async def take(self, wishes: Sequence[Wish]) -> list[Event | None]:
        """Take or put off events that nobody has begun, in one transaction.

        Return, in their order, those that are leased to this process now; None for those put off, and for those that
        have a delivery already: somebody else's, a scheduler's, or one that came to its end.
        """
        unique = {wish.id: wish for wish in wishes}
        rows = await self.pool.fetch(
            TAKE,
            list(unique),
            days(unique),
            [wish.message_id for wish in unique.values()],
            [wish.lease_s for wish in unique.values()],
            self.owner,
        )
        # A wish that stands there twice is granted once.
        found = {row["id"]: event_of(row) for row in rows if row["state"] == "leased"}
        return [found.pop(wish.id, None) for wish in wishes]

    async def finish(self, ends: Sequence[End]) -> list[bool]:
        """Write how attempts ended, in one transaction; False for those whose lease was not ours any more."""
        ordered = sorted(ends, key=lambda end: end.event.id)
        rows = await self.pool.fetch(
            END,
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
        return [(row["tenant"], row["route"]) for row in await self.pool.fetch(DUE)]

    async def lease(self, rooms: Sequence[tuple[str, str, int, float]]) -> list[Event]:
        """Lease deliveries that are due: for each (tenant, route) at most ``room`` of them for ``lease_s`` seconds."""
        tenants, routes, places, leases = (list(column) for column in zip(*rooms, strict=True))
        rows = await self.pool.fetch(LEASE, tenants, routes, places, leases, self.owner)
        if not rows:
            return []
        wanted = [row["event_id"] for row in rows]
        events = {row["id"]: row for row in await self.pool.fetch(READ, wanted, days(wanted))}
        if lost := [event for event in wanted if event not in events]:
            await self.pool.fetch(LOST, lost, self.owner)
        return [event_of({**events[row["event_id"]], **row}) for row in rows if row["event_id"] in events]

    async def free_expired(self) -> int:
        """Give leases that ran out back to the schedulers; return how many."""
        return int(await self.pool.fetchval(EXPIRED))

    async def free_former(self) -> int:
        """Give back the leases of former runs of this process, which cannot go on with them; return how many."""
        process = self.owner.rsplit("/", 1)[0].replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        return int(await self.pool.fetchval(FORMER, process + "/%", self.owner))

    async def free_own(self) -> int:
        """Give back the leases this process still has when it ends; return how many."""
        return int(await self.pool.fetchval(OWN, self.owner))

    async def counts(self) -> tuple[int, int]:
        """Return how many deliveries wait for another attempt, and how many are dead and not replayed."""
        (row,) = await self.pool.fetch(COUNTS)
        return int(row["retry"]), int(row["dead"])


def event_of(row: Any) -> Event:
    """Return a row as an event."""
    names = ("id", "tenant", "execution_id", "type", "workflow", "route", "topic", "body", "content_type")
    rest = ("traceparent", "created_at", "expires_at", "attempt", "generation", "message_id")
    return Event(**{name: row[name] for name in (*names, *rest)})

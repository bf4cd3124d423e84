# SPDX-License-Identifier: GPL-3.0-or-later
"""Events in PostgreSQL: accepting many with one commit, and what clients ask about them afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from n8n_platform.bridge import ids

# A database that hangs must not hang the clients: they are told to come again.
ACCEPT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to accept. Without a topic it is delivered straight from the database. Times are aware, UTC.

    ``patience``: for how many seconds the sweeper leaves its message to whoever accepted it.
    """

    id: UUID
    tenant: str
    execution_id: str
    type: str
    workflow: str | None
    route: str
    topic: str | None
    body: bytes
    content_type: str
    body_hash: bytes
    traceparent: str | None
    created_at: datetime
    expires_at: datetime
    replay_of: UUID | None = None
    key: str | None = None
    patience: float = 2.0


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of an event. ``id`` is an earlier one's when its key was used before; then ``fresh`` is False.

    ``same``: the earlier request had the same content. ``seq``: its row in the outbox. ``waiting``: not in Pulsar yet.
    """

    id: UUID
    fresh: bool = True
    same: bool = True
    seq: int | None = None
    waiting: bool = True


TYPES = {
    "id": "uuid",
    "created_at": "timestamptz",
    "expires_at": "timestamptz",
    "replay_of": "uuid",
    "body": "bytea",
    "body_hash": "bytea",
    "patience": "float8",
}
COLUMNS = tuple(field.name for field in fields(NewEvent))
ARRAYS = ", ".join(f"${number}::{TYPES.get(name, 'text')}[]" for number, name in enumerate(COLUMNS, 1))
KEPT = ", ".join(name for name in COLUMNS if name not in ("key", "patience"))

# One statement, so one transaction: an event is there with its key and its way on, or nothing of it is.
ACCEPT = f"""
WITH given AS (SELECT * FROM unnest({ARRAYS}) AS t ({", ".join(COLUMNS)})),
keyed AS (
    INSERT INTO bridge.idempotency (tenant, key, body_hash, event_id, created_at)
    SELECT tenant, key, body_hash, id, created_at FROM given WHERE key IS NOT NULL
    ON CONFLICT DO NOTHING RETURNING event_id),
accepted AS (SELECT * FROM given WHERE key IS NULL OR id IN (SELECT event_id FROM keyed)),
stored AS (
    INSERT INTO bridge.event (day, {KEPT})
    SELECT (created_at AT TIME ZONE 'UTC')::date, {KEPT} FROM accepted),
queued AS (
    INSERT INTO bridge.delivery (event_id, tenant, route, state, next_at)
    SELECT id, tenant, route, 'retry', now() FROM accepted WHERE topic IS NULL),
sent AS (
    INSERT INTO bridge.outbox (event_id, topic, tenant, created_at, not_before)
    SELECT id, topic, tenant, created_at, now() + make_interval(secs => patience) FROM accepted WHERE topic IS NOT NULL
    RETURNING event_id, seq)
SELECT a.id, s.seq FROM accepted a LEFT JOIN sent s ON s.event_id = a.id
"""  # noqa: S608  (names of ours)

EARLIER = """
SELECT i.tenant, i.key, i.body_hash, i.event_id, EXISTS (SELECT FROM bridge.outbox o WHERE o.event_id = i.event_id)
       OR EXISTS (SELECT FROM bridge.delivery d WHERE d.event_id = i.event_id AND d.attempt = 0 AND d.state = 'retry')
       AS waiting
FROM bridge.idempotency i JOIN unnest($1::text[], $2::text[]) AS t (tenant, key) USING (tenant, key)
"""

FIND = """
SELECT e.*, length(e.body) AS size, d.state, d.attempt, d.next_at, d.message_id, d.last_status, d.last_error,
       d.done_at, d.replaced_by, EXISTS (SELECT FROM bridge.outbox o WHERE o.event_id = e.id) AS waiting
FROM bridge.event e LEFT JOIN bridge.delivery d ON d.event_id = e.id
WHERE e.day = $1 AND e.id = $2 AND e.tenant = $3
"""

DEAD = """
SELECT e.*, length(e.body) AS size, d.state, d.attempt, d.next_at, d.message_id, d.last_status, d.last_error,
       d.done_at, d.replaced_by, false AS waiting
FROM bridge.delivery d JOIN bridge.event e ON e.id = d.event_id AND e.day = bridge.event_day(d.event_id)
WHERE d.tenant = $1 AND d.state = 'dead' AND ($2::uuid IS NULL OR d.event_id < $2)
      AND ($3::text IS NULL OR d.route = $3) AND ($4 OR d.replaced_by IS NULL)
ORDER BY d.event_id DESC LIMIT $5
"""

# A delivery under way is left alone: nobody can call it back.
CANCEL = """
INSERT INTO bridge.delivery AS d (event_id, tenant, route, state, done_at)
SELECT id, tenant, route, 'cancelled', now() FROM bridge.event WHERE day = $1 AND id = $2 AND tenant = $3
ON CONFLICT (event_id) DO UPDATE SET state = 'cancelled', done_at = now(), next_at = NULL
WHERE d.state IN ('waiting', 'retry') RETURNING d.event_id
"""

# Taken over once its lease is over; the same execution may ask again.
CLAIM = """
INSERT INTO bridge.claim AS c (tenant, event_id, execution, lease_until)
SELECT tenant, id, $4, now() + make_interval(secs => $5)
FROM bridge.event WHERE day = $1 AND id = $2 AND tenant = $3
ON CONFLICT (tenant, event_id) DO UPDATE SET execution = excluded.execution, lease_until = excluded.lease_until
WHERE c.done_at IS NULL AND (c.lease_until < now() OR c.execution = excluded.execution)
RETURNING execution
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """Who carries out the effect of an event, and whether that is done."""

    execution: str
    done: bool
    granted: bool = False


class EventStore:
    """Events in the database. ``pool`` is asyncpg's; its errors are passed on (see :data:`db.UNAVAILABLE`)."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    async def accept(self, events: Sequence[NewEvent]) -> list[Stored]:
        """Store events with one commit; return what became of each, in the same order.

        Keys are taken in one order, so that two groups never wait for each other.
        """
        ordered = sorted(events, key=lambda event: (event.tenant, event.key or ""))
        columns = [[getattr(event, name) for event in ordered] for name in COLUMNS]
        async with self.pool.acquire(timeout=ACCEPT_SECONDS) as connection:
            rows = await connection.fetch(ACCEPT, *columns, timeout=ACCEPT_SECONDS)
            fresh = {row["id"]: row["seq"] for row in rows}
            known = [event for event in ordered if event.id not in fresh]
            earlier = {}
            if known:
                rows = await connection.fetch(EARLIER, [item.tenant for item in known], [item.key for item in known])
                earlier = {(row["tenant"], row["key"]): row for row in rows}
        return [
            Stored(event.id, seq=fresh[event.id]) if event.id in fresh else _earlier(event, earlier) for event in events
        ]

    async def find(self, tenant: str, event_id: UUID) -> Mapping[str, Any] | None:
        """Return an event with the state of its delivery, or None when the tenant has none of this id."""
        if not ids.is_event_id(event_id):
            return None
        found: Mapping[str, Any] | None = await self.pool.fetchrow(FIND, ids.day(event_id), event_id, tenant)
        return found

    async def dead(
        self, tenant: str, before: UUID | None, route: str | None, limit: int, replayed: bool
    ) -> list[Mapping[str, Any]]:
        """Return events that were given up, newest first; ``replayed``: also those that were sent again."""
        return list(await self.pool.fetch(DEAD, tenant, before, route, replayed, limit))

    async def cancel(self, tenant: str, event_id: UUID) -> bool:
        """Stop an event before its delivery; return False when it is under way or at its end."""
        async with self.pool.acquire() as connection, connection.transaction():
            found = await connection.fetchval(CANCEL, ids.day(event_id), event_id, tenant)
            if found is not None:
                await connection.execute("DELETE FROM bridge.outbox WHERE event_id = $1 AND reason IS NULL", event_id)
        return found is not None

    async def replaced(self, tenant: str, event_id: UUID, by: UUID) -> None:
        """Note which event is the replay of one that was given up."""
        await self.pool.execute(
            "UPDATE bridge.delivery SET replaced_by = $3 WHERE event_id = $2 AND tenant = $1 AND state = 'dead'",
            tenant,
            event_id,
            by,
        )

    async def claim(self, tenant: str, event_id: UUID, execution: str, seconds: float) -> Claim | None:
        """Let an execution carry out the effect of an event, unless another does or did; None without such an event."""
        async with self.pool.acquire() as connection:
            got = await connection.fetchval(CLAIM, ids.day(event_id), event_id, tenant, execution, float(seconds))
            if got is not None:
                return Claim(got, done=False, granted=True)
            return await self._holder(connection, tenant, event_id)

    async def claim_done(self, tenant: str, event_id: UUID, execution: str) -> Claim | None:
        """Note that the effect is done; the answer says who holds it, None without a claim."""
        async with self.pool.acquire() as connection:
            await connection.execute(
                "UPDATE bridge.claim SET done_at = now()"
                " WHERE tenant = $1 AND event_id = $2 AND execution = $3 AND done_at IS NULL",
                tenant,
                event_id,
                execution,
            )
            return await self._holder(connection, tenant, event_id)

    @staticmethod
    async def _holder(connection: Any, tenant: str, event_id: UUID) -> Claim | None:
        row = await connection.fetchrow(
            "SELECT execution, done_at FROM bridge.claim WHERE tenant = $1 AND event_id = $2", tenant, event_id
        )
        return None if row is None else Claim(row["execution"], row["done_at"] is not None)

    async def add_usage(self, day: Any, used: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """Add what tenants sent (events, bytes) and return what each has sent on that day in all."""
        tenants = sorted(used)
        rows = await self.pool.fetch(
            """
            INSERT INTO bridge.usage AS u (tenant, day, events, bytes)
            SELECT tenant, $1, events, bytes
            FROM unnest($2::text[], $3::bigint[], $4::bigint[]) AS t (tenant, events, bytes)
            ON CONFLICT (tenant, day) DO UPDATE
            SET events = u.events + excluded.events, bytes = u.bytes + excluded.bytes
            RETURNING tenant, events, bytes
            """,
            day,
            tenants,
            [used[name][0] for name in tenants],
            [used[name][1] for name in tenants],
        )
        return {row["tenant"]: (row["events"], row["bytes"]) for row in rows}


def _earlier(event: NewEvent, earlier: Mapping[tuple[str, str], Mapping[str, Any]]) -> Stored:
    row = earlier[event.tenant, event.key or ""]
    return Stored(row["event_id"], fresh=False, same=row["body_hash"] == event.body_hash, waiting=row["waiting"])

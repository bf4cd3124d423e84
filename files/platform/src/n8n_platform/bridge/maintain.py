# SPDX-License-Identifier: GPL-3.0-or-later
"""Daily upkeep of the bridge's tables: make the partitions of the next days, drop what has outlived its use."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from n8n_platform.bridge import db, ids
from n8n_platform.bridge.settings import Retention

LOG = logging.getLogger(__name__)
BATCH = 10_000
OPEN = "('waiting', 'leased', 'retry')"


@dataclass
class Upkeep:
    """What a run did. ``kept`` are days that are too old but have undelivered events: something is wrong there."""

    created: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    deleted: dict[str, int] = field(default_factory=dict)


def partition(day: date) -> str:
    """Return the name of a day's partition."""
    return f"event_{day:%Y%m%d}"


async def make_partitions(connection: Any, today: date, ahead: int) -> list[str]:
    """Create the partitions of yesterday (a clock may be behind), today and the days ahead; return the new ones.

    One host after the other: two that create the same table at once both fail to see it, ``IF NOT EXISTS`` or not.
    """
    made = []
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", db.SCHEMA_LOCK)
        existing = {row["name"] for row in await connection.fetch(PARTITIONS)}
        for offset in range(-1, ahead + 1):
            day = today + timedelta(days=offset)
            if (name := partition(day)) not in existing:
                await connection.execute(
                    f"CREATE TABLE bridge.{name} PARTITION OF bridge.event"
                    f" FOR VALUES FROM ('{day}') TO ('{day + timedelta(days=1)}')"
                )
                made.append(name)
    return made


PARTITIONS = """
    SELECT c.relname AS name FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = to_regclass('bridge.event') ORDER BY 1
"""


async def undelivered(connection: Any, day: date) -> int:
    """Return how many events of a day have not come to an end yet."""
    low, high = ids.first_id(day), ids.first_id(day + timedelta(days=1))
    return int(
        await connection.fetchval(
            f"""
            SELECT (SELECT count(*) FROM bridge.delivery WHERE event_id >= $1 AND event_id < $2 AND state IN {OPEN})
                 + (SELECT count(*) FROM bridge.outbox WHERE event_id >= $1 AND event_id < $2 AND reason IS NULL)
            """,  # noqa: S608  (a constant)
            low,
            high,
        )
    )


async def delete_below(connection: Any, table: str, limit: Any) -> int:
    """Delete rows of events older than an id, in small transactions; return how many."""
    total = 0
    while True:
        done = await connection.execute(
            f"DELETE FROM bridge.{table} WHERE ctid = ANY (ARRAY("  # noqa: S608  (names of ours)
            f"SELECT ctid FROM bridge.{table} WHERE event_id < $1 LIMIT {BATCH}))",
            limit,
        )
        count = int(str(done).rsplit(" ", 1)[1])
        total += count
        if count < BATCH:
            return total


async def run(connection: Any, retention: Retention, today: date) -> Upkeep:
    """Do the upkeep of a day (UTC). Repeating it is harmless."""
    result = Upkeep()
    result.created = await make_partitions(connection, today, retention.ahead_days)
    oldest = today - timedelta(days=retention.event_days)
    limit = oldest
    for row in await connection.fetch(PARTITIONS):
        name = row["name"]
        day = date.fromisoformat(f"{name[-8:-4]}-{name[-4:-2]}-{name[-2:]}")
        if day >= oldest:
            continue
        if left := await undelivered(connection, day):
            LOG.error("a day is past its retention but has undelivered events", extra={"day": day, "count": left})
            result.kept.append(name)
            limit = min(limit, day)
            continue
        # Without waiting for long: readers of this table would wait behind us.
        async with connection.transaction():
            await connection.execute("SET LOCAL lock_timeout = '5s'")
            await connection.execute(f"DROP TABLE IF EXISTS bridge.{name}")  # another host may be quicker
        result.dropped.append(name)
    for table in ("delivery", "claim"):
        result.deleted[table] = await delete_below(connection, table, ids.first_id(limit))
    keys = ids.first_id(today - timedelta(days=retention.idempotency_days))
    result.deleted["idempotency"] = await delete_below(connection, "idempotency", keys)
    await connection.execute("DELETE FROM bridge.usage WHERE day < $1", today - timedelta(days=retention.event_days))
    LOG.info(
        "upkeep",
        extra={"made": result.created, "dropped": result.dropped, "kept": result.kept, "deleted": result.deleted},
    )
    return result

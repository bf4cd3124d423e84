# SPDX-License-Identifier: GPL-3.0-or-later
"""The outbox: what is committed in PostgreSQL but not confirmed by Pulsar.

A row is made with its event and deleted once Pulsar has the message. Usually that takes milliseconds; after a crash or
while Pulsar is away the sweeper, which runs in each process, publishes what is left. A message may go out twice then,
never not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from n8n_platform.bridge import db, ids
from n8n_platform.bridge.metrics import PublishMetrics
from n8n_platform.bridge.settings import Limits
from n8n_platform.bridge.signing import Keyring

LOG = logging.getLogger(__name__)
BATCH = 500
FORGET_SECONDS = 0.02
SWEEP_SECONDS = 1.0
LOOK_SECONDS = 1.0
# Longest wait between two attempts for one row, seconds.
PATIENCE_SECONDS = 30.0
DEAD_LETTER_SECONDS = 30 * 86400

STATISTICS = """
SELECT topic, count(*) AS rows, extract(epoch FROM now() - min(created_at))::float8 AS age
FROM (SELECT topic, created_at FROM bridge.outbox LIMIT $1) AS o GROUP BY topic
"""

# These wait for a sweeper that has the same rows, which happens only after a crash. It never waits for them.
FORGET = "DELETE FROM bridge.outbox WHERE seq = ANY ($1::bigint[])"
# What its sender gave up is anybody's at once.
RELEASE = "UPDATE bridge.outbox SET not_before = now(), attempts = attempts + 1 WHERE seq = ANY ($1::bigint[])"

TAKE = """
SELECT seq, event_id, topic, tenant, reason FROM bridge.outbox WHERE not_before <= now() AND topic = ANY ($1::text[])
ORDER BY seq LIMIT $2 FOR UPDATE SKIP LOCKED
"""

# Asked for by themselves: joined, the planner would rather read whole days than look up 500 events.
EVENTS = """
SELECT id, execution_id, type, traceparent, created_at, expires_at FROM bridge.event
WHERE day = ANY ($1::date[]) AND id = ANY ($2::uuid[])
"""

POSTPONE = """
UPDATE bridge.outbox SET attempts = attempts + 1,
       not_before = now() + make_interval(secs => least($2::float8, power(2, least(attempts, 10))))
WHERE seq = ANY ($1::bigint[])
"""

TOPICS = "SELECT DISTINCT topic FROM (SELECT topic FROM bridge.outbox WHERE not_before <= now() LIMIT 1000) AS o"


class Sender(Protocol):
    """What the outbox needs of :class:`broker.Broker`."""

    enabled: bool

    def submit(self, topic: str, payload: bytes, properties: Mapping[str, str]) -> asyncio.Future[str]:
        """Send a message; the future fails when Pulsar did not confirm it."""

    async def prepare(self, topics: list[str]) -> None:
        """Open producers."""

    def connected(self, topic: str) -> bool:
        """Return whether there is a broker to try."""


@dataclass
class Backlog:
    """How much waits, by topic: rows and the age of the oldest, seconds. ``rows`` stops at the limit."""

    rows: int = 0
    age: Mapping[str, float] = field(default_factory=dict)

    def refusal(self, topic: str, limits: Limits) -> str | None:
        """Return why no event for a topic should be accepted now, or None."""
        if self.rows >= limits.outbox_rows:
            return f"{limits.outbox_rows} messages or more wait for Pulsar already"
        if self.age.get(topic, 0.0) > limits.outbox_age_seconds:
            return f"messages for {topic} have been waiting for {self.age[topic]:.0f} seconds"
        return None


class Outbox:
    """The outbox of one process. :meth:`run` does its work until it is cancelled."""

    def __init__(self, pool: Any, broker: Sender, keyring: Keyring, limits: Limits, metrics: PublishMetrics) -> None:
        self.pool = pool
        self.broker = broker
        self.keyring = keyring
        self.limits = limits
        self.metrics = metrics
        self.backlog = Backlog()
        self._stored: list[int] = []
        self._failed: list[int] = []
        self._wake = asyncio.Event()

    def stored(self, seq: int) -> None:
        """Note that Pulsar has a message; its row is deleted soon, together with others."""
        self._stored.append(seq)
        self._wake.set()

    def failed(self, seq: int) -> None:
        """Note that a message was not confirmed; the sweeper may have it at once."""
        self._failed.append(seq)
        self._wake.set()

    async def forget(self) -> None:
        """Delete the rows of messages that Pulsar has; give up those of messages that it did not confirm."""
        done, self._stored = self._stored, []
        try:
            if done:
                await self.pool.execute(FORGET, done)
        except BaseException:
            self._stored = done + self._stored
            raise
        # A release that does not get through is no harm: the rows' time comes by itself.
        lost, self._failed = self._failed, []
        if lost:
            await self.pool.execute(RELEASE, lost)

    async def look(self) -> None:
        """See how much waits."""
        rows = await self.pool.fetch(STATISTICS, self.limits.outbox_rows)
        self.backlog = Backlog(sum(row["rows"] for row in rows), {row["topic"]: float(row["age"]) for row in rows})
        self.metrics.outbox_rows.set(self.backlog.rows)
        self.metrics.outbox_age.set(max(self.backlog.age.values(), default=0.0))

    async def sweep(self) -> int:
        """Publish a batch of what is left; return how many Pulsar took. Its rows are locked until then."""
        if not self.broker.enabled:
            return 0
        topics = [row["topic"] for row in await self.pool.fetch(TOPICS)]
        await self.broker.prepare(topics)
        ready = [topic for topic in topics if self.broker.connected(topic)]
        if not ready:
            return 0
        async with self.pool.acquire() as connection, connection.transaction():
            rows = await connection.fetch(TAKE, ready, BATCH)
            wanted = [row["event_id"] for row in rows]
            found = await connection.fetch(EVENTS, list({ids.day(item) for item in wanted}), wanted) if rows else []
            events = {event["id"]: event for event in found}
            receipts = {
                row["seq"]: self._send(row, events[row["event_id"]]) for row in rows if row["event_id"] in events
            }
            if receipts:
                await asyncio.wait(receipts.values())
            failed = [seq for seq, receipt in receipts.items() if receipt.exception() is not None]
            # Without its event a row has nothing to say any more.
            gone = [row["seq"] for row in rows if row["seq"] not in failed]
            await connection.execute(FORGET, gone)
            if failed:
                await connection.execute(POSTPONE, failed, PATIENCE_SECONDS)
        for row in rows:
            if row["seq"] in receipts and row["seq"] not in failed:
                self.metrics.swept.labels(row["topic"]).inc()
        if rows:
            LOG.info("swept the outbox", extra={"published": len(receipts) - len(failed), "failed": len(failed)})
        return len(receipts) - len(failed)

    def _send(self, row: Mapping[str, Any], event: Mapping[str, Any]) -> asyncio.Future[str]:
        # A dead letter is to be read for as long as its topic keeps it, whatever became of its event.
        issued = int(time.time()) if row["reason"] else int(event["created_at"].timestamp())
        expires = issued + DEAD_LETTER_SECONDS if row["reason"] else int(event["expires_at"].timestamp())
        payload, properties = self.keyring.message(
            str(row["event_id"]),
            row["tenant"],
            event["execution_id"],
            event["type"],
            row["topic"],
            issued,
            expires,
            event["traceparent"] or "",
        )
        if row["reason"]:
            properties["reason"] = row["reason"]
        return self.broker.submit(row["topic"], payload, properties)

    async def run(self) -> None:
        """Delete, look and sweep until cancelled; what is left to delete is deleted at the end."""
        try:
            await asyncio.gather(
                forever("look", self.look, LOOK_SECONDS),
                forever("sweep", self._sweep_on, SWEEP_SECONDS),
                forever("forget", self._forget_on, FORGET_SECONDS),
            )
        finally:
            with contextlib.suppress(*db.UNAVAILABLE):
                await self.forget()

    async def _sweep_on(self) -> None:
        while await self.sweep() == BATCH:
            pass

    async def _forget_on(self) -> None:
        await self._wake.wait()
        self._wake.clear()
        # Others join meanwhile.
        await asyncio.sleep(FORGET_SECONDS)
        try:
            await self.forget()
        except BaseException:
            self._wake.set()
            raise


async def forever(name: str, work: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Do something again and again with a pause between; failures are logged, and the pause gets longer."""
    failures = 0
    while True:
        try:
            await work()
            failures = 0
        except db.UNAVAILABLE as error:
            failures += 1
            LOG.warning("PostgreSQL does not answer", extra={"work": name, "error": f"{type(error).__name__}: {error}"})
        except Exception:
            failures += 1
            LOG.exception("failed, and goes on", extra={"work": name})
        await asyncio.sleep(min(seconds + failures, 10.0) if failures else seconds)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Accepting events: decide, store with one commit, tell Pulsar, answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from uuid import UUID

from n8n_platform.bridge import db, ids
from n8n_platform.bridge.api.auth import Principal
from n8n_platform.bridge.api.drafts import CONTENT_TYPE, Draft
from n8n_platform.bridge.api.limits import Limiter
from n8n_platform.bridge.api.ports import Committer, Ledger, RouteSource, Sender
from n8n_platform.bridge.api.problems import Problem
from n8n_platform.bridge.metrics import PublishMetrics
from n8n_platform.bridge.routing import NoRouteError, Route
from n8n_platform.bridge.settings import Settings
from n8n_platform.bridge.signing import Keyring
from n8n_platform.bridge.store import NewEvent, Stored
from n8n_platform.bridge.telemetry import Tracing

LOG = logging.getLogger(__name__)
PUBLISHED, QUEUED = "published", "queued"
# The sweeper may have a message that was not sent at all after this time.
QUEUED_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """An event that is stored. ``state``: ``published`` (Pulsar has it) or ``queued``; ``repeated``: stored earlier."""

    id: UUID
    execution_id: str
    state: str
    repeated: bool = False
    message_id: str | None = None


Outcome = Accepted | Problem


class Publisher:
    """The publish path. ``decided`` is told each decision (route, via)."""

    def __init__(
        self,
        settings: Settings,
        committer: Committer,
        broker: Sender,
        outbox: Ledger,
        routes: RouteSource,
        keyring: Keyring,
        limiter: Limiter,
        metrics: PublishMetrics,
        decided: Callable[[Route], None] = lambda route: None,
        clock: Callable[[], float] = time.time,
        tracing: Tracing | None = None,
    ) -> None:
        self.settings = settings
        self.committer = committer
        self.broker = broker
        self.outbox = outbox
        self.routes = routes
        self.keyring = keyring
        self.limiter = limiter
        self.metrics = metrics
        self.decided = decided
        self.clock = clock
        self.tracing = tracing
        self._complained = 0.0

    def route(self, principal: Principal, kind: str, workflow: str | None, pointer: str = "/type") -> Route:
        """Return the way of an event; raise Problem when there is none, or none for this token."""
        try:
            route = self.routes.current.decide(principal.tenant, kind, workflow)
        except NoRouteError as error:
            raise Problem("no-route", f"{error}.", [(pointer, "No route takes it")]) from error
        principal.require_publish(route.name)
        return route

    def prepare(self, principal: Principal, draft: Draft, traceparent: str | None, pointer: str = "") -> NewEvent:
        """Return an event that can be stored; raise Problem when it must not be."""
        route = self.route(principal, draft.type, draft.workflow, pointer + "/type")
        body = draft.body
        if len(body) > self.settings.limits.event_bytes:
            raise Problem(
                "too-large",
                f"The data of an event may have {self.settings.limits.event_bytes} bytes.",
                [(pointer + "/data", f"Has {len(body)} bytes; send a reference to large data instead")],
            )
        return self.event(
            route,
            tenant=principal.tenant,
            execution_id=draft.execution_id,
            kind=draft.type,
            workflow=draft.workflow,
            body=body,
            digest=draft.digest(),
            ttl=draft.ttl_seconds,
            traceparent=traceparent,
            key=draft.idempotency_key,
        )

    def event(
        self,
        route: Route,
        *,
        tenant: str,
        execution_id: str | None,
        kind: str,
        workflow: str | None,
        body: bytes,
        digest: bytes,
        ttl: float | None,
        traceparent: str | None,
        key: str | None = None,
        content_type: str = CONTENT_TYPE,
        replay_of: UUID | None = None,
    ) -> NewEvent:
        """Return a new event, which lives for ``ttl`` seconds but not longer than its route or its payload."""
        if route.topic and (refusal := self.outbox.backlog.refusal(route.topic, self.settings.limits)):
            raise Problem("backlog", f"Nothing was stored: {refusal}.", retry_after=30)
        event_id = ids.new_id(self.clock())
        born = ids.born(event_id)
        # A day less than payloads are kept: who receives the id at the last moment still finds them.
        kept = self.settings.retention
        longest = min(route.max_age_s, kept.delivery_hours * 3600, (kept.event_days - 1) * 86400 or 3600)
        self.decided(route)
        return NewEvent(
            id=event_id,
            tenant=tenant,
            execution_id=execution_id or str(event_id),
            type=kind,
            workflow=workflow,
            route=route.name,
            topic=route.topic,
            body=body,
            content_type=content_type,
            body_hash=digest,
            traceparent=traceparent,
            created_at=born,
            expires_at=born + timedelta(seconds=min(ttl or longest, longest)),
            replay_of=replay_of,
            key=key,
            patience=self._patience(route.topic),
        )

    def _patience(self, topic: str | None) -> float:
        """Return for how long the sweeper should leave a message alone: until its own attempt has certainly ended."""
        if topic is None or not self.broker.available(topic):
            return QUEUED_SECONDS
        return self.settings.pulsar.send_timeout_seconds + 1

    async def publish(self, events: Sequence[NewEvent]) -> list[Outcome]:
        """Store events of one tenant and tell Pulsar; raise Problem when the database cannot be reached.

        Each answer is given after the commit. Those for Pulsar wait a moment for its receipt; without one they are
        ``queued``, and the outbox takes care of them.
        """
        if not events:
            return []
        started = time.perf_counter()
        try:
            stored = await self.committer.add(list(events))
        except db.UNAVAILABLE as error:
            # Once a second is enough: each client is told anyway, and counted.
            if (now := self.clock()) - self._complained >= 1:
                self._complained = now
                LOG.warning("cannot store events", extra={"error": f"{type(error).__name__}: {error}"})
            raise Problem(
                "unavailable", "The database does not answer. Send the request again.", retry_after=5
            ) from error
        self.metrics.commit_seconds.observe(time.perf_counter() - started)
        fresh = [event for event, item in zip(events, stored, strict=True) if item.fresh]
        for (route, via), count in Counter(
            (event.route, "topic" if event.topic else "queue") for event in fresh
        ).items():
            self.metrics.events.labels(route, via).inc(count)
        self.limiter.count(events[0].tenant, len(fresh), sum(len(event.body) for event in fresh))
        receipts = {
            event.id: self._send(event)
            for event, item in zip(events, stored, strict=True)
            if event.topic and item.seq is not None and self.broker.available(event.topic)
        }
        if self.tracing is not None and self.tracing.enabled and len(events) == 1:
            for receipt in receipts.values():
                receipt.add_done_callback(partial(self._trace, events[0], started_ns=time.time_ns()))
        await self._wait(receipts, {item.id: item.seq for item in stored if item.seq is not None})
        return [self._outcome(event, item, receipts.get(event.id)) for event, item in zip(events, stored, strict=True)]

    async def _wait(self, receipts: Mapping[UUID, asyncio.Future[str]], rows: Mapping[UUID, int]) -> None:
        """Wait a moment for receipts; whenever one comes, then or later, its row leaves the outbox."""
        if not receipts:
            return
        loop = asyncio.get_running_loop()
        everything = loop.create_future()
        left = len(receipts)

        def settled(seq: int, receipt: asyncio.Future[str]) -> None:
            nonlocal left
            if receipt.cancelled() or receipt.exception() is not None:
                self.outbox.failed(seq)
            else:
                self.outbox.stored(seq)
            left -= 1
            if not left:
                enough()

        def enough() -> None:
            if not everything.done():
                everything.set_result(None)

        for event_id, receipt in receipts.items():
            receipt.add_done_callback(partial(settled, rows[event_id]))
        timer = loop.call_later(self.settings.limits.receipt_ms / 1000, enough)
        try:
            await everything
        finally:
            timer.cancel()

    def _send(self, event: NewEvent) -> asyncio.Future[str]:
        topic = event.topic or ""
        payload, properties = self.keyring.message(
            str(event.id),
            event.tenant,
            event.execution_id,
            event.type,
            topic,
            int(event.created_at.timestamp()),
            int(event.expires_at.timestamp()),
            event.traceparent or "",
        )
        return self.broker.submit(topic, payload, properties)

    def _trace(self, event: NewEvent, receipt: asyncio.Future[str], started_ns: int) -> None:
        """Make the span of a message once its receipt is there; those of a batch would cost more than the batch."""
        if self.tracing is None or receipt.cancelled():
            return
        attributes = {
            "messaging.system": "pulsar",
            "messaging.operation.type": "send",
            "messaging.destination.name": event.topic or "",
            "n8n.execution.id": event.execution_id,
        }
        with self.tracing.span(f"send {event.topic}", "producer", event.traceparent, attributes, started_ns) as span:
            if (error := receipt.exception()) is not None:
                span.fail(str(error))
            else:
                span.set(messaging__message__id=receipt.result())

    @staticmethod
    def _outcome(event: NewEvent, stored: Stored, receipt: asyncio.Future[str] | None) -> Outcome:
        if not stored.fresh:
            if not stored.same:
                return Problem(
                    "key-reused",
                    f"The idempotency key {event.key} was used for another event ({stored.id}).",
                    [("/idempotency_key", "Use a new key for a new event, and the same content with the same key")],
                )
            # Without an execution id of the client's own, the event's id is that, too.
            execution = str(stored.id) if event.execution_id == str(event.id) else event.execution_id
            return Accepted(stored.id, execution, QUEUED if stored.waiting else PUBLISHED, repeated=True)
        if receipt is None or not receipt.done() or receipt.cancelled() or receipt.exception() is not None:
            return Accepted(event.id, event.execution_id, QUEUED)
        return Accepted(event.id, event.execution_id, PUBLISHED, message_id=receipt.result())

# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages from Pulsar: whether to believe them, and who takes care of their events from here on.

A message is acknowledged only when PostgreSQL holds what became of its event: delivered, to be tried again, given up,
or known to be somebody else's business. Until then Pulsar keeps it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol
from uuid import UUID

from n8n_platform.bridge.broker import NotStoredError
from n8n_platform.bridge.consumer.delivery import Delivery
from n8n_platform.bridge.consumer.limits import Verdict
from n8n_platform.bridge.deliveries import Event, Known, Wish
from n8n_platform.bridge.ids import dead_letter_topic, is_event_id
from n8n_platform.bridge.receiver import Received
from n8n_platform.bridge.signing import Keyring, SignatureError, Verified
from n8n_platform.bridge.telemetry import valid_traceparent

LOG = logging.getLogger(__name__)
# Metrics of a message that is not believed name neither its tenant nor its route: anybody can write those.
UNKNOWN = "unknown"


class Store(Protocol):
    """What is asked of the database; both calls go on until it answers."""

    async def look(self, wanted: Sequence[UUID]) -> Sequence[Known | None]:
        """Return what is known about events."""

    async def take(self, wishes: Sequence[Wish]) -> Sequence[Event | None]:
        """Take or put off events."""


class Settle(Protocol):
    """How messages are settled; neither call waits."""

    def acknowledge(self, message: Received) -> None:
        """The message is taken care of."""

    def refuse(self, message: Received) -> None:
        """The message shall come again."""


Publish = Callable[[str, bytes, Mapping[str, str]], Awaitable[str]]


class Intake:
    """Takes batches of messages; see :meth:`handle`. ``publish`` stores a message that is not believed.

    ``put_off`` is told when an event was left to the scheduler, for which a tenant had no room.
    """

    def __init__(
        self,
        keyring: Keyring,
        store: Store,
        delivery: Delivery,
        settle: Settle,
        publish: Publish,
        put_off: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.keyring, self.store, self.delivery, self.settle, self.publish = keyring, store, delivery, settle, publish
        self.put_off, self.clock = put_off, clock
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False

    def stop(self) -> None:
        """Take nothing more: what was not begun stays in Pulsar."""
        self.stopping = True
        self.delivery.freed.set()

    async def handle(self, batch: Sequence[Received]) -> None:
        """Take a batch; returns when its calls are under way. Waits while the process has as much as it may have."""
        limits = self.delivery.tools.limits
        rest = list(batch)
        while rest and not self.stopping:
            if limits.full():
                self.delivery.freed.clear()
                await self.delivery.freed.wait()
                continue
            part, rest = rest[: limits.total - limits.busy], rest[limits.total - limits.busy :]
            try:
                await self._handle(part)
            except Exception:
                LOG.exception("a batch of messages failed; they come again")
                for message in part:
                    self.settle.refuse(message)

    async def _handle(self, batch: Sequence[Received]) -> None:
        good: list[tuple[Received, Verified]] = []
        for message in batch:
            try:
                good.append((message, self._believe(message)))
            except SignatureError as error:
                self.reject(message, error.reason, str(error))
        if not good:
            return
        known = await self.store.look([UUID(claim.id) for _, claim in good])
        wishes: list[tuple[Received, Known, Wish]] = []
        for (message, claim), found in zip(good, known, strict=True):
            if found is None:
                self.reject(message, "unknown_event", "no such event: its payload was dropped, or it was never stored")
            elif found.tenant != claim.tenant:
                self.reject(message, "wrong_tenant", "the event belongs to another tenant")
            elif found.state not in (None, "waiting"):
                self._duplicate(message, found)
            else:
                wishes.append((message, found, self._wish(message, UUID(claim.id), found)))
        if wishes:
            await self._take(wishes)

    def _believe(self, message: Received) -> Verified:
        try:
            claim = self.keyring.verify(message.properties, message.payload, message.topic, self.clock())
        except SignatureError as error:
            if error.verified is None:
                raise
            # Genuine but late: the database knows whether the event was delivered in time.
            claim = error.verified
        try:
            if is_event_id(UUID(claim.id)):
                return claim
        except ValueError:
            pass
        raise SignatureError("malformed", "the id is none of an event")

    def _wish(self, message: Received, event: UUID, known: Known) -> Wish:
        """Take the room for a call when there is any, otherwise let the event wait in the database."""
        tools = self.delivery.tools
        route = tools.route(known.route)
        if route.via and route.webhook is None:
            return Wish(event, message.message_id, "done")
        if tools.limits.enter(known.tenant, known.route, route.concurrency):
            return Wish(event, message.message_id, "leased", tools.lease(route))
        return Wish(event, message.message_id, "retry")

    async def _take(self, wishes: Sequence[tuple[Received, Known, Wish]]) -> None:
        try:
            events = await self.store.take([wish for _, _, wish in wishes])
        except BaseException:
            for _, known, wish in wishes:
                self._give_back(known, wish)
            raise
        for (message, known, wish), event in zip(wishes, events, strict=True):
            if event is not None:
                self._begin(message, event)
                continue
            self._give_back(known, wish)
            if wish.state == "leased":
                self._duplicate(message, known)
                continue
            if wish.state == "retry":
                self.put_off()
            else:
                self._count(known.route, known.tenant, "done")
            self.settle.acknowledge(message)

    def _give_back(self, known: Known, wish: Wish) -> None:
        if wish.state == "leased":
            tools = self.delivery.tools
            tools.limits.leave(known.tenant, known.route, tools.route(known.route).concurrency, Verdict.NOTHING)

    def _begin(self, message: Received, event: Event) -> None:
        # The message names the span of its sending, which is nearer than the one of the event's acceptance.
        if nearer := valid_traceparent(message.properties.get("traceparent")):
            event = replace(event, traceparent=nearer)
        task = asyncio.create_task(self._deliver(message, event))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _deliver(self, message: Received, event: Event) -> None:
        try:
            await self.delivery.deliver(event)
        except Exception:
            # The lease runs out and a scheduler goes on; the message comes again and is a duplicate then.
            LOG.exception("a delivery failed", extra={"event_id": str(event.id), "tenant": event.tenant})
            self.settle.refuse(message)
        else:
            self.settle.acknowledge(message)

    def _duplicate(self, message: Received, known: Known) -> None:
        self._count(known.route, known.tenant, "cancelled" if known.state == "cancelled" else "duplicate")
        self.settle.acknowledge(message)

    def _count(self, route: str, tenant: str, outcome: str) -> None:
        self.delivery.tools.metrics.deliveries.labels(route, tenant, outcome).inc()

    def reject(self, message: Received, reason: str, detail: str) -> None:
        """Move a message that must not be believed to the dead letters, as it is, with the reason."""
        self.delivery.tools.metrics.signature_failures.labels(reason).inc()
        self._count(UNKNOWN, UNKNOWN, "rejected")
        LOG.error(
            "rejected a message",
            extra={"reason": reason, "detail": detail, "topic": message.topic, "message_id": message.message_id},
        )
        task = asyncio.create_task(self._bury(message, reason))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _bury(self, message: Received, reason: str) -> None:
        properties = {
            **message.properties,
            "reason": f"rejected: {reason}",
            "origin_topic": message.topic,
            "origin_message_id": message.message_id,
        }
        try:
            await self.publish(dead_letter_topic(message.topic), message.payload, properties)
        except (NotStoredError, OSError) as error:
            LOG.warning("a dead letter was not stored; its message comes again", extra={"error": str(error)})
            self.settle.refuse(message)
        else:
            self.settle.acknowledge(message)

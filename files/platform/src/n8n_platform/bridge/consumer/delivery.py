# SPDX-License-Identifier: GPL-3.0-or-later
"""One attempt to deliver an event that is leased to this process, from the decision to call n8n to its record."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from n8n_platform.bridge.consumer.caller import Caller, Kind, Outcome
from n8n_platform.bridge.consumer.limits import Limits, Verdict
from n8n_platform.bridge.deliveries import End, Event
from n8n_platform.bridge.ids import dead_letter_topic
from n8n_platform.bridge.metrics import DeliveryMetrics
from n8n_platform.bridge.routing import Route, Routes
from n8n_platform.bridge.telemetry import Tracing, log_context, trace_id_of

LOG = logging.getLogger(__name__)
# The lease outlives the call by so many seconds: time to write down how it ended.
LEASE_MARGIN_SECONDS = 30.0
# An event whose route is not in the file waits for the file to be mended.
NO_ROUTE_SECONDS = 60.0
# For so long an event waits for a webhook that n8n does not know: n8n may be starting, or its workflow being replaced.
MISSING_SECONDS = 600.0
# An event that n8n could not be called for is looked at again after so many seconds, and only if it can be called then.
FREE_SECONDS = 0.5


@dataclass(frozen=True)
class Tools:
    """What an attempt needs; ``finish`` returns False when the lease was not ours any more."""

    routes: Callable[[], Routes]
    caller: Caller
    limits: Limits
    finish: Callable[[End], Awaitable[bool]]
    metrics: DeliveryMetrics
    tracing: Tracing
    lease_s: float
    clock: Callable[[], float] = time.time

    def route(self, name: str) -> Route:
        """Return a route by its name; one that is not in the file any more has the usual limits."""
        return self.routes().by_name.get(name) or Route(name, "")

    def lease(self, route: Route) -> float:
        """Return for how long an event of a route is leased, seconds: longer than the call can take."""
        return max(self.lease_s, route.timeout_s + LEASE_MARGIN_SECONDS)


def ending(event: Event, route: Route, outcome: Outcome, now: float) -> End:
    """Return how an attempt ends: done, dead, or when it is tried again."""
    if outcome.kind is Kind.DONE:
        return End(event, "done", outcome.status)
    error = outcome.error
    if outcome.free:
        return End(event, "retry", outcome.status, error, FREE_SECONDS, free=True)
    age = now - event.created_at.timestamp()
    dead = outcome.kind is Kind.DEAD
    delay = max(route.backoff.delay(event.attempt), outcome.retry_after_s)
    if outcome.missing and age > MISSING_SECONDS:
        dead = True
    elif not dead and event.attempt >= route.max_attempts:
        dead, error = True, f"attempt {event.attempt} of {route.max_attempts} failed: {error}"
    elif not dead and age + delay > route.max_age_s:
        dead, error = True, f"too old after {age:.0f} s, the last attempt: {error}"
    elif not dead and now + delay > event.expires_at.timestamp():
        dead, error = True, f"expires before the next attempt, the last: {error}"
    if dead:
        return End(event, "dead", outcome.status, error, dead_topic=letter(event))
    return End(event, "retry", outcome.status, error, delay)


def letter(event: Event) -> str | None:
    """Return the topic of an event's dead letter; what travels without Pulsar has none."""
    return dead_letter_topic(event.topic) if event.topic else None


class Delivery:
    """Delivers events; see :meth:`deliver`."""

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
        # What is being worked on.
        self.working: set[UUID] = set()
        # Set whenever a delivery has ended and there may be room for another.
        self.freed = asyncio.Event()
        self.ended: Callable[[], None] = lambda: None

    async def deliver(self, event: Event) -> None:
        """Make one attempt and record how it ended. Room in the limits was taken by the caller and is given back."""
        tools = self.tools
        route = tools.route(event.route)
        verdict = Verdict.NOTHING
        busy = tools.metrics.in_flight.labels(event.tenant, event.route)
        busy.inc()
        self.working.add(event.id)
        try:
            with log_context(
                event_id=str(event.id),
                execution_id=event.execution_id,
                tenant=event.tenant,
                message_id=event.message_id,
                route=event.route,
                trace_id=trace_id_of(event.traceparent),
            ):
                end, verdict = await self._attempt(event)
                kept = await tools.finish(end)
                self._tell(end, kept)
        finally:
            busy.dec()
            self.working.discard(event.id)
            tools.limits.leave(event.tenant, event.route, route.concurrency, verdict)
            self._show(event)
            self.freed.set()
            self.ended()

    async def _attempt(self, event: Event) -> tuple[End, Verdict]:
        now = self.tools.clock()
        route = self.tools.routes().by_name.get(event.route)
        if now > event.expires_at.timestamp():
            return End(event, "dead", error="expired", dead_topic=letter(event), free=True), Verdict.NOTHING
        if route is None:
            text = f"route {event.route} is not in the file of routes"
            return End(event, "retry", error=text, delay_s=NO_ROUTE_SECONDS, free=True), Verdict.NOTHING
        if route.webhook is None:
            return End(event, "done"), Verdict.NOTHING
        try:
            path = route.path(event.tenant, event.type, event.workflow)
        except ValueError as error:
            return End(event, "dead", error=str(error), dead_topic=letter(event)), Verdict.NOTHING
        outcome = await self._call(event, route, path)
        return ending(event, route, outcome, self.tools.clock()), outcome.verdict

    async def _call(self, event: Event, route: Route, path: str) -> Outcome:
        attributes: dict[str, Any] = {
            "http.request.method": "POST",
            "url.path": path,
            "bridge.event_id": str(event.id),
            "bridge.execution_id": event.execution_id,
            "bridge.tenant": event.tenant,
            "bridge.route": route.name,
            "bridge.attempt": event.attempt,
        }
        if event.topic:
            attributes |= {"messaging.system": "pulsar", "messaging.destination.name": event.topic}
            if event.message_id:
                attributes["messaging.message.id"] = event.message_id
        with self.tools.tracing.span(f"deliver {route.name}", "client", event.traceparent, attributes) as span:
            outcome = await self.tools.caller.call(event, path, route.timeout_s, route.retry_statuses, span.traceparent)
            span.set(http__response__status_code=outcome.status)
            if outcome.kind is not Kind.DONE:
                span.fail(outcome.error or "")
        self.tools.metrics.seconds.labels(route.name).observe(outcome.seconds)
        return outcome

    def _tell(self, end: End, kept: bool) -> None:
        event, metrics = end.event, self.tools.metrics
        # Without the lease, whoever took it away says how it ended; n8n may have been called all the same.
        outcome = end.state if kept else "cancelled"
        metrics.deliveries.labels(event.route, event.tenant, outcome).inc()
        fields = {"outcome": outcome, "attempt": event.attempt, "status": end.status, "error": end.error}
        if not kept:
            LOG.warning("the delivery was cancelled or taken over meanwhile", extra=fields)
        elif end.state == "done":
            metrics.age.labels(event.route).observe(max(0.0, self.tools.clock() - event.created_at.timestamp()))
            LOG.info("delivered", extra=fields)
        elif end.state == "dead":
            LOG.error("given up", extra=fields)
        else:
            LOG.warning("tried in vain", extra={**fields, "again_in_s": round(end.delay_s, 3)})

    def _show(self, event: Event) -> None:
        lane = self.tools.limits.lanes.get((event.tenant, event.route))
        tripped = lane is not None and lane.breaker.tripped
        self.tools.metrics.breaker_open.labels(event.tenant, event.route).set(tripped)

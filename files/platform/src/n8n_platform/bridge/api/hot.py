# SPDX-License-Identifier: GPL-3.0-or-later
"""The two requests there are many of: publish one event, publish a batch. They do without FastAPI's machinery."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from n8n_platform.bridge import telemetry
from n8n_platform.bridge.api import drafts
from n8n_platform.bridge.api.auth import Authenticator, Principal
from n8n_platform.bridge.api.problems import MEDIA_TYPE, Problem, pointer
from n8n_platform.bridge.api.publishing import Accepted, Outcome, Publisher
from n8n_platform.bridge.metrics import PublishMetrics
from n8n_platform.bridge.settings import Limits
from n8n_platform.bridge.store import NewEvent

LOG = logging.getLogger(__name__)
ACCEPTED, MIXED, UNAVAILABLE = 202, 207, 503
# Text around the data of an event: names of fields, ids.
ENVELOPE_BYTES = 4096
RESERVED = "bridge.reserved"

Handler = Callable[[Request], Awaitable[Response]]


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return an answer; nothing of it may be kept by caches."""
    return Response(
        msgspec.json.encode(content), status, {"cache-control": "no-store", **(headers or {})}, "application/json"
    )


def problem_response(problem: Problem) -> Response:
    """Return a refusal."""
    return Response(
        problem.encoded(), problem.status, {"cache-control": "no-store", **problem.headers}, media_type=MEDIA_TYPE
    )


async def read_json(request: Request, limit: int) -> bytes:
    """Return the body of a request; raise Problem when it is too large, compressed, or no JSON by its own account."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != drafts.CONTENT_TYPE and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Problem("unsupported-media-type", f"The content type is {kind or 'missing'}.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem("unsupported-media-type", "Compressed bodies are not taken.")
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > limit:
        raise Problem("too-large", f"A request may have {limit} bytes.", headers={"connection": "close"})
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise Problem("too-large", f"A request may have {limit} bytes.", headers={"connection": "close"})
            parts.append(part)
    except ClientDisconnect as error:
        raise Problem("malformed", "The request ended early.") from error
    return b"".join(parts)


def answer(outcome: Accepted) -> dict[str, str]:
    """Return what a client is told of an event."""
    return {"id": str(outcome.id), "execution_id": outcome.execution_id, "state": outcome.state}


class HotRoutes:
    """POST /pulsar/publish and /pulsar/publish/batch."""

    def __init__(
        self,
        publisher: Publisher,
        authenticator: Authenticator,
        limits: Limits,
        tracing: telemetry.Tracing,
        metrics: PublishMetrics,
    ) -> None:
        self.publisher = publisher
        self.authenticator = authenticator
        self.limits = limits
        self.tracing = tracing
        self.metrics = metrics
        self.busy = 0
        self.buffered = 0

    async def publish(self, request: Request) -> Response:
        """Accept one event."""
        return await self._guarded(request, "publish", self._single)

    async def publish_batch(self, request: Request) -> Response:
        """Accept a batch; each event is answered for itself."""
        return await self._guarded(request, "batch", self._several)

    async def _guarded(
        self, request: Request, kind: str, work: Callable[[Request, Principal, telemetry.Span], Awaitable[Response]]
    ) -> Response:
        started = time.perf_counter()
        tenant = ""
        self.busy += 1
        try:
            if self.busy > self.limits.concurrent_requests:
                raise Problem("busy", "Too many requests at a time.", retry_after=1)
            principal = await self.authenticator.authenticate(request.headers.get("authorization"))
            tenant = principal.tenant
            with self.tracing.span(
                f"POST {request.url.path}", "server", request.headers.get("traceparent"), {"bridge.tenant": tenant}
            ) as span:
                try:
                    return await work(request, principal, span)
                except Problem as problem:
                    span.set(http__response__status_code=problem.status, error__type=problem.kind)
                    raise
        except Problem as problem:
            self._count("", tenant, problem.status)
            return problem_response(problem)
        finally:
            self.busy -= 1
            self.buffered -= request.scope.pop(RESERVED, 0)
            self.metrics.seconds.labels(kind).observe(time.perf_counter() - started)

    async def _read(self, request: Request, limit: int) -> bytes:
        """Return the body, once there is room for it."""
        length = request.headers.get("content-length", "")
        # What does not say how large it is may become as large as it is allowed to be.
        size = min(int(length), limit) if length.isascii() and length.isdigit() else limit
        if self.buffered and self.buffered + size > self.limits.buffered_bytes:
            raise Problem("busy", "Too many large requests at a time.", retry_after=1)
        request.scope[RESERVED] = size
        self.buffered += size
        return await read_json(request, limit)

    def _count(self, route: str, tenant: str, code: int, count: int = 1) -> None:
        self.metrics.requests.labels(route, tenant, str(code)).inc(count)

    async def _single(self, request: Request, principal: Principal, span: telemetry.Span) -> Response:
        body = await self._read(request, self.limits.event_bytes + ENVELOPE_BYTES)
        draft = drafts.single(body, request.headers.get("idempotency-key"))
        self.publisher.limiter.check(principal.tenant, 1, len(draft.body))
        event = self.publisher.prepare(principal, draft, span.traceparent)
        outcome = (await self.publisher.publish([event]))[0]
        if isinstance(outcome, Problem):
            raise outcome
        self._count(event.route, principal.tenant, ACCEPTED)
        span.set(
            messaging__message__id=str(outcome.id),
            n8n__execution__id=outcome.execution_id,
            bridge__route=event.route,
            bridge__state=outcome.state,
            http__response__status_code=ACCEPTED,
        )
        LOG.info(
            "accepted",
            extra={
                "event_id": str(outcome.id),
                "execution_id": outcome.execution_id,
                "message_id": outcome.message_id,
                "tenant": principal.tenant,
                "client": principal.client,
                "trace_id": span.trace_id,
                "route": event.route,
                "state": outcome.state,
            },
        )
        headers = {"location": f"/pulsar/events/{outcome.id}"}
        if outcome.repeated:
            headers["idempotency-replayed"] = "true"
        return json_response(answer(outcome), ACCEPTED, headers)

    async def _several(self, request: Request, principal: Principal, span: telemetry.Span) -> Response:
        body = await self._read(request, self.limits.batch_bytes)
        found = drafts.several(body, self.limits.batch_events)
        self.publisher.limiter.check(principal.tenant, len(found), len(body))
        events: list[NewEvent] = []
        # What each answer is made of: a problem, or the next of the events.
        plan: list[Problem | NewEvent] = []
        for number, item in enumerate(found):
            if isinstance(item, Problem):
                plan.append(item)
                continue
            try:
                event = self.publisher.prepare(principal, item, span.traceparent, pointer(["events", number]))
            except Problem as problem:
                plan.append(problem)
            else:
                events.append(event)
                plan.append(event)
        outcomes = iter(await self.publisher.publish(events))
        results: list[tuple[str, Outcome]] = [
            ("", item) if isinstance(item, Problem) else (item.route, next(outcomes)) for item in plan
        ]
        answers = [
            {"status": outcome.status, "problem": outcome.body()}
            if isinstance(outcome, Problem)
            else {"status": ACCEPTED, **answer(outcome)}
            for _, outcome in results
        ]
        counts = Counter(
            (route, outcome.status if isinstance(outcome, Problem) else ACCEPTED) for route, outcome in results
        )
        for (route, code), count in counts.items():
            self._count(route, principal.tenant, code, count)
        accepted = sum(item["status"] == ACCEPTED for item in answers)
        last = results[-1][1]
        if not accepted and isinstance(last, Problem) and {item["status"] for item in answers} == {UNAVAILABLE}:
            raise last  # for everybody who looks at the status only: nothing was stored
        status = ACCEPTED if accepted == len(answers) else MIXED
        LOG.info(
            "accepted a batch",
            extra={
                "tenant": principal.tenant,
                "client": principal.client,
                "trace_id": span.trace_id,
                "accepted": accepted,
                "refused": len(found) - accepted,
                "first_event_id": str(events[0].id) if events else None,
                "routes": Counter(event.route for event in events),
            },
        )
        span.set(
            messaging__batch__message_count=len(found), bridge__accepted=accepted, http__response__status_code=status
        )
        return json_response({"accepted": accepted, "results": answers}, status)

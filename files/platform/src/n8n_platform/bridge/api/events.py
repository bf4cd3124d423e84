# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests about events that were accepted: state, payload, cancel, replay, claims, dead letters."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Protocol
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response

from n8n_platform.bridge import ids
from n8n_platform.bridge.api import drafts, hot, models
from n8n_platform.bridge.api.auth import Authenticator, Principal
from n8n_platform.bridge.api.problems import Problem
from n8n_platform.bridge.api.publishing import Publisher
from n8n_platform.bridge.store import Claim
from n8n_platform.bridge.telemetry import valid_traceparent

# Requests here are a few fields.
LARGEST_BODY = 8192


class Events(Protocol):
    """What is needed of :class:`store.EventStore`."""

    async def find(self, tenant: str, event_id: UUID) -> Mapping[str, Any] | None:
        """Return an event."""

    async def dead(
        self, tenant: str, before: UUID | None, route: str | None, limit: int, replayed: bool
    ) -> list[Mapping[str, Any]]:
        """Return events that were given up."""

    async def cancel(self, tenant: str, event_id: UUID) -> bool:
        """Stop an event."""

    async def replaced(self, tenant: str, event_id: UUID, by: UUID) -> None:
        """Note a replay."""

    async def claim(self, tenant: str, event_id: UUID, execution: str, seconds: float) -> Claim | None:
        """Take a claim."""

    async def claim_done(self, tenant: str, event_id: UUID, execution: str) -> Claim | None:
        """End a claim."""

    async def add_usage(self, day: date, used: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """Count what tenants sent."""


@dataclass(frozen=True)
class Services:
    """What requests work with; the application keeps it as ``state.services``."""

    store: Events
    publisher: Publisher
    authenticator: Authenticator


def services(request: Request) -> Services:
    """Return what the application works with."""
    found: Services = request.app.state.services
    return found


def with_scope(scope: str) -> Callable[[Request], Awaitable[Principal]]:
    """Return a dependency: the principal of a request, who has the scope."""

    async def principal(request: Request) -> Principal:
        found = await services(request).authenticator.authenticate(request.headers.get("authorization"))
        found.require(scope)
        return found

    return principal


With = Annotated[Services, Depends(services)]
Reader = Annotated[Principal, Depends(with_scope("events:read"))]
Replayer = Annotated[Principal, Depends(with_scope("events:replay"))]
Canceller = Annotated[Principal, Depends(with_scope("events:cancel"))]
Claimer = Annotated[Principal, Depends(with_scope("claim"))]


def not_found(event_id: UUID) -> Problem:
    """Return the refusal for an event that is not there, or not the tenant's."""
    return Problem("not-found", f"There is no event {event_id}; events are kept for a limited time.")


async def found(store: Events, tenant: str, event_id: UUID) -> Mapping[str, Any]:
    """Return an event of a tenant; raise Problem when there is none."""
    row = await store.find(tenant, event_id)
    if row is None:
        raise not_found(event_id)
    return row


api = APIRouter(max_body_size=LARGEST_BODY)


@api.get("/events/{event_id}", tags=["events"], summary="The state of an event", operation_id="get_event")
async def get_event(event_id: UUID, principal: Reader, use: With) -> models.Event:
    """Return an event and where its delivery stands. Needs the scope `events:read`."""
    return models.Event.of(await found(use.store, principal.tenant, event_id))


@api.get(
    "/events/{event_id}/payload",
    tags=["events"],
    summary="The data of an event",
    operation_id="get_payload",
    response_class=Response,
    responses={200: {"content": {"application/json": {}}, "description": "The data as it was published."}},
)
async def get_payload(event_id: UUID, principal: Reader, use: With) -> Response:
    """Return the data, for subscribers of Pulsar who get ids only. Needs the scope `events:read`."""
    row = await found(use.store, principal.tenant, event_id)
    headers = {"cache-control": "private, max-age=3600", "x-content-type-options": "nosniff"}
    return Response(row["body"], media_type=row["content_type"], headers=headers)


@api.post("/events/{event_id}/cancel", tags=["events"], summary="Stop an event", operation_id="cancel_event")
async def cancel_event(event_id: UUID, principal: Canceller, use: With) -> models.Event:
    """Stop an event before its delivery. One that is being delivered, or was, stays what it is (409).

    Needs the scope `events:cancel`.
    """
    tenant = principal.tenant
    row = await found(use.store, tenant, event_id)
    if models.state_of(row) is not models.State.CANCELLED and not await use.store.cancel(tenant, event_id):
        now = models.state_of(await found(use.store, tenant, event_id))
        if now is not models.State.CANCELLED:
            raise Problem("conflict", f"The event is {now.value} and cannot be cancelled.")
    return models.Event.of(await found(use.store, tenant, event_id))


@api.post(
    "/events/{event_id}/replay",
    tags=["events"],
    summary="Send an event again",
    operation_id="replay_event",
    status_code=202,
)
async def replay_event(
    event_id: UUID,
    request: Request,
    response: Response,
    principal: Replayer,
    use: With,
    idempotency_key: Annotated[str | None, Header(description="Makes it safe to send this request again.")] = None,
) -> models.Accepted:
    """Make a new event of an old one's data; it goes the way the routes say now.

    The new event has an id of its own, so that its effect is carried out once more. Only events at their end
    (`done`, `dead`, `cancelled`) can be sent again. Needs the scopes `events:replay` and that to publish.
    """
    row = await found(use.store, principal.tenant, event_id)
    state = models.state_of(row)
    if state not in (models.State.DONE, models.State.DEAD, models.State.CANCELLED):
        raise Problem("conflict", f"The event is {state.value}; only one at its end can be sent again.")
    route = use.publisher.route(principal, row["type"], row["workflow"])
    use.publisher.limiter.check(principal.tenant, 1, row["size"])
    event = use.publisher.event(
        route,
        tenant=principal.tenant,
        execution_id=row["execution_id"],
        kind=row["type"],
        workflow=row["workflow"],
        body=row["body"],
        # Another key for another event, even when their content is the same.
        digest=hashlib.sha256(b"replay" + event_id.bytes).digest(),
        ttl=None,
        traceparent=valid_traceparent(request.headers.get("traceparent")) or row["traceparent"],
        key=drafts.valid_key(idempotency_key) if idempotency_key is not None else None,
        content_type=row["content_type"],
        replay_of=event_id,
    )
    outcome = (await use.publisher.publish([event]))[0]
    if isinstance(outcome, Problem):
        raise outcome
    if state is models.State.DEAD:
        await use.store.replaced(principal.tenant, event_id, outcome.id)
    response.headers["location"] = f"/pulsar/events/{outcome.id}"
    return models.Accepted.model_validate(hot.answer(outcome))


@api.put("/events/{event_id}/claim", tags=["claims"], summary="Claim the effect", operation_id="claim_event")
async def claim_event(
    event_id: UUID,
    body: models.ClaimRequest,
    principal: Claimer,
    use: With,
) -> models.ClaimState:
    """Ask, before carrying out the effect of an event, whether another execution does or did so already.

    Deliveries are at least once; with claims the effect is once. The same execution may ask again, for instance to
    get more time. Needs the scope `claim`.
    """
    if not ids.is_event_id(event_id):
        raise not_found(event_id)
    got = await use.store.claim(principal.tenant, event_id, body.execution, body.lease_seconds)
    return _claim_state(event_id, got)


@api.put("/events/{event_id}/claim/done", tags=["claims"], summary="The effect is done", operation_id="finish_claim")
async def finish_claim(
    event_id: UUID,
    body: models.ClaimDone,
    principal: Claimer,
    use: With,
) -> models.ClaimState:
    """Say that the effect is carried out; nobody is granted a claim for it from then on.

    409 when another execution has the claim: the lease was too short. Needs the scope `claim`.
    """
    got = await use.store.claim_done(principal.tenant, event_id, body.execution)
    if got is not None and got.execution != body.execution:
        raise Problem("conflict", f"The claim is held by the execution {got.execution}.")
    return _claim_state(event_id, got)


@api.get("/dead", tags=["events"], summary="Events that were given up", operation_id="list_dead")
async def list_dead(
    principal: Reader,
    use: With,
    before: Annotated[UUID | None, Query(description="`next` of the page before.")] = None,
    route: Annotated[str | None, Query(max_length=63, pattern="^[a-z0-9_-]+$")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    replayed: Annotated[bool, Query(description="Also those that were sent again.")] = False,
) -> models.DeadEvents:
    """Return events that could not be delivered, with the reason, newest first. Needs the scope `events:read`."""
    rows = await use.store.dead(principal.tenant, before, route, limit, replayed)
    return models.DeadEvents(
        events=[models.Event.of(row) for row in rows], next=rows[-1]["id"] if len(rows) == limit else None
    )


def _claim_state(event_id: UUID, claim: Claim | None) -> models.ClaimState:
    if claim is None:
        raise not_found(event_id)
    return models.ClaimState(
        id=event_id, granted=claim.granted, state="done" if claim.done else "running", execution=claim.execution
    )

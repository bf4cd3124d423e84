# SPDX-License-Identifier: GPL-3.0-or-later
"""What the API says about events; the models are also its documentation."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

EXAMPLE_ID = "01a206a0-33f4-73b6-b3fd-13d44db8f275"
VISIBLE = r"^[!-~]+$"


class State(StrEnum):
    """Where an event stands."""

    QUEUED = "queued"
    PUBLISHED = "published"
    DELIVERING = "delivering"
    RETRYING = "retrying"
    DONE = "done"
    DEAD = "dead"
    CANCELLED = "cancelled"


def state_of(row: Mapping[str, Any]) -> State:
    """Return the state of an event from its row and that of its delivery."""
    state = row["state"]
    if state is None:
        return State.QUEUED if row["waiting"] else State.PUBLISHED
    if state in ("waiting", "leased"):
        return State.DELIVERING
    if state == "retry":
        return State.RETRYING if row["attempt"] else State.QUEUED
    return State(state)


class Event(BaseModel):
    """An event and its delivery. Times are UTC."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "id": EXAMPLE_ID,
                "execution_id": "4711",
                "type": "order.created",
                "workflow": None,
                "route": "short",
                "topic": "dealscale.workflow.short",
                "state": "done",
                "attempts": 1,
                "size": 42,
                "created_at": "2026-11-23T04:18:12.084Z",
                "expires_at": "2026-11-24T04:18:12.084Z",
                "next_attempt_at": None,
                "done_at": "2026-11-23T04:18:12.131Z",
                "last_status": 200,
                "last_error": None,
                "message_id": "17:3:0:-1",
                "replay_of": None,
                "replaced_by": None,
            }
        }
    )

    id: UUID = Field(description="Also the header `webhook-id` with which the workflow is called.")
    execution_id: str = Field(description="The client's own id of what it is doing; the event's id when it gave none.")
    type: str
    workflow: str | None
    route: str = Field(description="The route that took the event.")
    topic: str | None = Field(description="The topic it travels by; none when it comes straight from the database.")
    state: State
    attempts: int = Field(description="Calls of the workflow so far.")
    size: int = Field(description="Bytes of its data.")
    created_at: datetime
    expires_at: datetime = Field(description="It is given up when it was not delivered by then.")
    next_attempt_at: datetime | None = None
    done_at: datetime | None = None
    last_status: int | None = Field(default=None, description="HTTP status of the last call of the workflow.")
    last_error: str | None = None
    message_id: str | None = Field(default=None, description="Its message in Pulsar.")
    replay_of: UUID | None = Field(default=None, description="The event this one repeats.")
    replaced_by: UUID | None = Field(default=None, description="The event that repeats this one.")

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Event:
        """Return what is said of a row of the database."""
        return cls(
            **{name: row[name] for name in ("id", "execution_id", "type", "workflow", "route", "topic", "size")},
            **{name: row[name] for name in ("created_at", "expires_at", "done_at", "last_status", "last_error")},
            **{name: row[name] for name in ("message_id", "replay_of", "replaced_by")},
            state=state_of(row),
            attempts=row["attempt"] or 0,
            next_attempt_at=row["next_at"] if row["state"] == "retry" else None,
        )


class DeadEvents(BaseModel):
    """A page of events that were given up, newest first."""

    events: list[Event]
    next: UUID | None = Field(description="Send it as `before` for the next page; none on the last one.")


class Accepted(BaseModel):
    """An event that is stored."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"id": EXAMPLE_ID, "execution_id": "4711", "state": "published"}}
    )

    id: UUID
    execution_id: str
    state: State = Field(description="`published`: Pulsar has it. `queued`: it is stored and follows by itself.")


class ClaimRequest(BaseModel):
    """Who wants to carry out the effect of an event."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"execution": "815", "lease_seconds": 300}})

    execution: Annotated[str, Field(min_length=1, max_length=128, pattern=VISIBLE, description="n8n's execution id.")]
    lease_seconds: Annotated[
        float, Field(ge=1, le=86400, description="Another execution may take over when it is not done by then.")
    ] = 300


class ClaimDone(BaseModel):
    """Who has carried it out."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"execution": "815"}})

    execution: Annotated[str, Field(min_length=1, max_length=128, pattern=VISIBLE)]


class ClaimState(BaseModel):
    """Whether to carry on: only when `granted`."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"id": EXAMPLE_ID, "granted": True, "state": "running", "execution": "815"}}
    )

    id: UUID
    granted: bool = Field(description="true: carry out the effect. false: another execution does, or did.")
    state: Annotated[str, Field(pattern="^(running|done)$")]
    execution: str = Field(description="The execution that has the claim.")


class Token(BaseModel):
    """An access token."""

    access_token: str
    token_type: str = "Bearer"  # noqa: S105  (a kind)
    expires_in: int = Field(description="Seconds.")
    scope: str


class FieldError(BaseModel):
    """What is wrong with a field."""

    pointer: str = Field(description="JSON pointer (RFC 6901) to the field.")
    detail: str


class ProblemBody(BaseModel):
    """A refusal (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None

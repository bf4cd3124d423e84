# SPDX-License-Identifier: GPL-3.0-or-later
"""The description of the API: what FastAPI knows of its routes, and the two hot ones, which it does not know."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from n8n_platform import __version__
from n8n_platform.bridge.api import drafts, models, problems
from n8n_platform.bridge.api.accounts import SCOPES
from n8n_platform.bridge.settings import Settings

DESCRIPTION = """
Events come in here and are delivered to workflows of n8n, through Pulsar or straight from the database.

- **202 means kept**: the event is committed in PostgreSQL before the answer. It is delivered at least once; its effect
  is once when the workflow asks for the claim.
- **Send again when in doubt**: with an idempotency key a repeated request is answered like the first.
- **Refusals** are problems as RFC 9457 defines them; `errors` point to the fields. 429 and 503 say in `Retry-After`
  how many seconds to wait.
- The tenant is that of the access token.
"""
TAGS = [
    {"name": "publish", "description": "Events in."},
    {"name": "events", "description": "What became of them."},
    {"name": "claims", "description": "So that the effect of an event is carried out once."},
    {"name": "access", "description": "Access tokens of service accounts."},
]
DRAFT_EXAMPLE = {"type": "order.created", "execution_id": "4711", "data": {"order": 815, "total": "29.90"}}
REFUSALS = {
    "/pulsar/publish": (400, 401, 403, 413, 415, 422, 429, 503),
    "/pulsar/publish/batch": (400, 401, 403, 413, 415, 422, 429, 503),
}
TEXT = {"type": "string"}


def _pattern(text: str) -> str:
    return text.replace(r"\Z", "$")


def draft_schema() -> dict[str, Any]:
    """Return the schema of an event as a client writes it."""

    def text(name: str, description: str, optional: bool = True) -> dict[str, Any]:
        annotation = {
            "type": drafts.Type,
            "workflow": drafts.Workflow,
            "execution_id": drafts.ExecutionId,
            "idempotency_key": drafts.Key,
        }[name]
        meta = annotation.__metadata__[0]  # type: ignore[attr-defined]
        return {
            "type": ["string", "null"] if optional else "string",
            "pattern": _pattern(meta.pattern),
            "minLength": meta.min_length,
            "maxLength": meta.max_length,
            "description": description,
        }

    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["type", "data"],
        "properties": {
            "type": text("type", "What has happened; the routes go by it.", optional=False),
            "data": {"description": "Any JSON; exactly this is what the workflow receives as the body."},
            "workflow": text("workflow", "Which workflow it is for, when routes go by that."),
            "execution_id": text("execution_id", "Your own id of what you are doing; it is in all logs and headers."),
            "idempotency_key": text(
                "idempotency_key", "A repeated request with the same key is answered as the first."
            ),
            "ttl_seconds": {
                "type": ["integer", "null"],
                "minimum": 1,
                "maximum": drafts.LONGEST_TTL,
                "description": "Give up when it was not delivered by then; the route sets a limit of its own.",
            },
        },
        "example": DRAFT_EXAMPLE,
    }


def _content(schema: Any, example: Any = None) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": schema}
    if example is not None:
        media["example"] = example
    return {"application/json": media}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def hot_paths(settings: Settings) -> dict[str, Any]:
    """Return the description of the two requests that publish."""
    limits = settings.limits
    accepted = {"id": models.EXAMPLE_ID, "execution_id": "4711", "state": "published"}
    publish = {
        "operationId": "publish_event",
        "tags": ["publish"],
        "summary": "Publish an event",
        "description": (
            f"Its data may have {limits.event_bytes} bytes. Needs the scope `publish:<route>` or `publish:*`.\n\n"
            "A header `traceparent` (W3C) makes the delivery part of your trace."
        ),
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "schema": {"type": "string", "pattern": "^[!-~]+$", "minLength": 1, "maxLength": 200},
                "description": "The same as the field `idempotency_key`.",
            }
        ],
        "requestBody": {"required": True, "content": _content(_ref("Draft"), DRAFT_EXAMPLE)},
        "responses": {
            "202": {
                "description": "The event is kept and will be delivered.",
                "headers": {
                    "Location": {"schema": TEXT, "description": "Where its state can be asked."},
                    "Idempotency-Replayed": {"schema": TEXT, "description": "`true` when it was kept before."},
                },
                "content": _content(_ref("Accepted"), accepted),
            }
        },
    }
    result = {
        "type": "object",
        "required": ["status"],
        "properties": {
            "status": {"type": "integer"},
            "id": {"type": "string", "format": "uuid"},
            "execution_id": TEXT,
            "state": TEXT,
            "problem": _ref("ProblemBody"),
        },
    }
    results = {
        "type": "object",
        "required": ["accepted", "results"],
        "properties": {"accepted": {"type": "integer"}, "results": {"type": "array", "items": result}},
    }
    example = {"accepted": 1, "results": [{"status": 202, **accepted}]}
    batch = {
        "operationId": "publish_batch",
        "tags": ["publish"],
        "summary": "Publish many events",
        "description": (
            f"Up to {limits.batch_events} events and {limits.batch_bytes} bytes. Each is accepted or refused for"
            " itself: `results` has an entry for each, in the same order. 207 when not all were accepted."
        ),
        "requestBody": {
            "required": True,
            "content": _content(
                {
                    "type": "object",
                    "required": ["events"],
                    "additionalProperties": False,
                    "properties": {
                        "events": {
                            "type": "array",
                            "items": _ref("Draft"),
                            "minItems": 1,
                            "maxItems": limits.batch_events,
                        }
                    },
                },
                {"events": [DRAFT_EXAMPLE]},
            ),
        },
        "responses": {
            "202": {"description": "All events are kept.", "content": _content(results, example)},
            "207": {"description": "Some events are not.", "content": _content(results)},
        },
    }
    return {"/pulsar/publish": {"post": publish}, "/pulsar/publish/batch": {"post": batch}}


def _refuse(operation: dict[str, Any], statuses: tuple[int, ...]) -> None:
    titles: dict[int, list[str]] = {}
    for status, title in problems.KINDS.values():
        titles.setdefault(status, []).append(title)
    for status in statuses:
        operation["responses"].setdefault(
            str(status),
            {
                "description": ", or ".join(titles[status]) + ".",
                "content": {problems.MEDIA_TYPE: {"schema": _ref("ProblemBody")}},
            },
        )


def describe(app: FastAPI, settings: Settings) -> dict[str, Any]:
    """Return the OpenAPI document."""
    document = get_openapi(
        title="The bridge between n8n and Pulsar",
        version=__version__,
        description=DESCRIPTION.strip(),
        routes=app.routes,
        tags=TAGS,
        servers=[{"url": settings.public_url or "/"}],
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for model in (models.ProblemBody, models.Accepted):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    schemas["Draft"] = draft_schema()
    scopes = {"publish:*": "Publish by all routes", **{scope: scope for scope in SCOPES}}
    document["components"]["securitySchemes"] = {
        "token": {
            "type": "oauth2",
            "flows": {"clientCredentials": {"tokenUrl": "/pulsar/oauth/token", "scopes": scopes}},
        },
        "client": {"type": "http", "scheme": "basic", "description": "Id and secret of a service account."},
    }
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            if "/oauth/" in path:
                _refuse(operation, ())
                continue
            statuses = (401, 403, 404, 422, 503) if "{" in path else (401, 403, 422, 503)
            _refuse(operation, (*statuses, 409) if operation["operationId"] not in READS else statuses)
    document["paths"] = {**hot_paths(settings), **document["paths"]}
    for path, refusals in REFUSALS.items():
        _refuse(document["paths"][path]["post"], refusals)
    token = document["paths"]["/pulsar/oauth/token"]["post"]["responses"]
    for status, text in ((400, "The request is not right"), (401, "Id or secret are wrong"), (413, "Too large")):
        token[str(status)] = {"description": f"{text} (RFC 6749).", "content": _content({"type": "object"})}
    token["429"] = {"description": "Too many wrong secrets.", "content": _content({"type": "object"})}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            if "/oauth/" not in path:
                operation["security"] = [{"token": []}]
    return document


READS = ("get_event", "get_payload", "list_dead")

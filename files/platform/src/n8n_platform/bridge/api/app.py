# SPDX-License-Identifier: GPL-3.0-or-later
"""The application: routes, and one way to say no."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from n8n_platform.bridge import db
from n8n_platform.bridge.api import events, hot, oauth, openapi, page
from n8n_platform.bridge.api.accounts import Accounts
from n8n_platform.bridge.api.auth import TokenIssuer
from n8n_platform.bridge.api.events import Services
from n8n_platform.bridge.api.problems import KINDS, Problem, pointer
from n8n_platform.bridge.metrics import PublishMetrics
from n8n_platform.bridge.settings import Settings
from n8n_platform.bridge.telemetry import Tracing

LOG = logging.getLogger(__name__)
PREFIX = "/pulsar"


def invalid(error: RequestValidationError) -> Problem:
    """Return what FastAPI found wrong, with a pointer to each field; other parts than the body by their name."""
    found = []
    for item in error.errors():
        place = list(item["loc"])
        if item["type"] == "json_invalid":
            return Problem("malformed", "The body is not JSON.")
        where = pointer(place[1:]) if place[0] == "body" else pointer(place)
        found.append((where, str(item["msg"])))
    return Problem("invalid", "The request has errors.", found)


def from_status(error: HTTPException) -> Problem:
    """Return a refusal of the framework itself."""
    for kind, (status, title) in KINDS.items():
        if status == error.status_code:
            return Problem(kind, f"{title}.", headers=dict(error.headers or {}))
    return Problem("malformed", str(error.detail))


async def _problem(request: Request, error: Exception) -> Response:
    if isinstance(error, Problem):
        return hot.problem_response(error)
    if isinstance(error, RequestValidationError):
        return hot.problem_response(invalid(error))
    if isinstance(error, HTTPException):
        return hot.problem_response(from_status(error))
    LOG.warning("PostgreSQL does not answer", extra={"error": f"{type(error).__name__}: {error}"})
    return hot.problem_response(Problem("unavailable", "The database does not answer. Try again.", retry_after=5))


async def _failed(request: Request, error: Exception) -> Response:
    return hot.problem_response(Problem("internal", "The bridge has failed; its log has the reason."))


async def answered(handler: hot.Handler, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request by its handler alone; what breaks is answered as it is elsewhere, and raised."""
    request = Request(scope, receive)
    try:
        response = await handler(request)
    except Exception as error:
        if not isinstance(error, db.UNAVAILABLE):
            await (await _failed(request, error))(scope, receive, send)
            raise
        response = await _problem(request, error)
    await response(scope, receive, send)


class Shield:
    """The outermost layer: what broke goes to the log, once; the client has got a problem by then.

    ``often`` are the requests (method, path) there are many of; they go straight to their handlers, which saves about
    a quarter of the time Python spends on one (by profile).
    """

    def __init__(self, app: ASGIApp, often: Mapping[tuple[str, str], hot.Handler]) -> None:
        self.app = app
        self.often = often

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        handler = self.often.get((scope["method"], scope["path"]))
        try:
            if handler is None:
                await self.app(scope, receive, send)
            else:
                await answered(handler, scope, receive, send)
        except Exception:
            LOG.exception("a request failed", extra={"method": scope["method"], "path": scope["path"]})


def build(
    settings: Settings,
    services: Services,
    accounts: Accounts,
    issuer: TokenIssuer,
    tracing: Tracing,
    metrics: PublishMetrics,
) -> ASGIApp:
    """Return the application."""
    app = FastAPI(
        title="bridge",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        # Spans, metrics and logs are made by hand: what the framework makes costs more than what it is made for.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.services = services
    handlers = hot.HotRoutes(services.publisher, services.authenticator, settings.limits, tracing, metrics)
    often = {"/publish": handlers.publish, "/publish/batch": handlers.publish_batch}
    for path, handler in often.items():
        # For what comes with another method; see Shield.
        app.add_route(PREFIX + path, handler, methods=["POST"], include_in_schema=False)
    app.include_router(events.api, prefix=PREFIX)
    app.include_router(oauth.router(accounts, issuer), prefix=f"{PREFIX}/oauth")
    for kind in (Problem, RequestValidationError, HTTPException, *db.UNAVAILABLE):
        app.add_exception_handler(kind, _problem)
    app.add_exception_handler(Exception, _failed)
    document = openapi.describe(app, settings)
    text = page.render(document)

    async def describe(request: Request) -> Response:
        return hot.json_response(document)

    async def documentation(request: Request) -> Response:
        return Response(text, media_type="text/html", headers=page.HEADERS)

    app.add_route(f"{PREFIX}/openapi.json", describe, methods=["GET"], include_in_schema=False)
    app.add_route(f"{PREFIX}/docs", documentation, methods=["GET"], include_in_schema=False)
    return Shield(app, {("POST", PREFIX + path): handler for path, handler in often.items()})

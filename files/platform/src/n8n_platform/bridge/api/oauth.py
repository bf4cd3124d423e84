# SPDX-License-Identifier: GPL-3.0-or-later
"""The token endpoint: OAuth 2 client credentials (RFC 6749, section 4.4) for service accounts, and the public keys."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote_plus

from fastapi import APIRouter, Request, Response

from n8n_platform.bridge.api import hot, models
from n8n_platform.bridge.api.accounts import Accounts
from n8n_platform.bridge.api.auth import TokenIssuer

FORM = "application/x-www-form-urlencoded"
LARGEST = 8192
FAILURES = 10
WINDOW_SECONDS = 60.0
REMEMBERED = 1000


class OAuthError(Exception):
    """A refusal in the form that RFC 6749 asks for."""

    def __init__(self, error: str, text: str, status: int = 400, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.error = error
        self.status = status
        self.headers = headers or {}

    def response(self) -> Response:
        """Return the answer."""
        return hot.json_response(
            {"error": self.error, "error_description": str(self)}, self.status, {"pragma": "no-cache", **self.headers}
        )


class Guesses:
    """Counts wrong secrets by account name; after ten within a minute further ones are not even looked at."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._wrong: dict[str, list[float]] = {}

    def check(self, name: str) -> None:
        """Raise OAuthError when there were too many."""
        now = self.clock()
        recent = [at for at in self._wrong.get(name, []) if now - at < WINDOW_SECONDS]
        if len(recent) >= FAILURES:
            wait = str(int(WINDOW_SECONDS - (now - recent[0])) + 1)
            raise OAuthError("temporarily_unavailable", "Too many wrong secrets.", 429, {"retry-after": wait})

    def wrong(self, name: str) -> None:
        """Note a wrong secret."""
        now = self.clock()
        if len(self._wrong) >= REMEMBERED and name not in self._wrong:
            self._wrong.clear()
        recent = [at for at in self._wrong.get(name, []) if now - at < WINDOW_SECONDS]
        self._wrong[name] = [*recent[-FAILURES:], now]


def credentials(header: str | None, form: dict[str, str]) -> tuple[str, str]:
    """Return client id and secret from the header (Basic) or the form; raise OAuthError when there are none."""
    refused = OAuthError(
        "invalid_client", "The client id or its secret is wrong.", 401, {"www-authenticate": 'Basic realm="n8n-bridge"'}
    )
    if header is not None:
        scheme, _, value = header.partition(" ")
        try:
            name, colon, secret = base64.b64decode(value.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise refused from error
        if scheme.lower() != "basic" or not colon:
            raise refused
        return unquote_plus(name), unquote_plus(secret)
    if "client_id" not in form or "client_secret" not in form:
        raise refused
    return form["client_id"], form["client_secret"]


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of the form; raise OAuthError for anything else, and for fields that are there twice."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise OAuthError("invalid_request", f"The content type must be {FORM}.")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            raise OAuthError("invalid_request", "The request is too large.", 413)
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, strict_parsing=True, max_num_fields=20)
    except ValueError as error:
        raise OAuthError("invalid_request", "The form cannot be read.") from error
    if any(len(values) > 1 for values in fields.values()):
        raise OAuthError("invalid_request", "A field is there twice.")
    return {name: values[0] for name, values in fields.items()}


def router(accounts: Accounts, issuer: TokenIssuer, guesses: Guesses | None = None) -> APIRouter:
    """Return the routes below /pulsar/oauth."""
    api = APIRouter(tags=["access"])
    tries = guesses or Guesses()

    async def grant(request: Request) -> models.Token:
        form = await read_form(request)
        if "grant_type" not in form:
            raise OAuthError("invalid_request", "The field grant_type is missing.")
        if form["grant_type"] != "client_credentials":
            raise OAuthError("unsupported_grant_type", "Only client_credentials is known.")
        name, secret = credentials(request.headers.get("authorization"), form)
        tries.check(name)
        account = accounts.check(name, secret)
        if account is None:
            tries.wrong(name)
            raise OAuthError(
                "invalid_client",
                "The client id or its secret is wrong.",
                401,
                {"www-authenticate": 'Basic realm="n8n-bridge"'},
            )
        asked = frozenset(form.get("scope", "").split())
        if asked - account.scopes:
            lacking = " ".join(sorted(asked - account.scopes))
            raise OAuthError("invalid_scope", f"The account has not: {lacking}.")
        scopes = asked or account.scopes
        return models.Token(
            access_token=issuer.issue(account, scopes),
            expires_in=issuer.options.lifetime_seconds,
            scope=" ".join(sorted(scopes)),
        )

    @api.post(
        "/token",
        summary="Get an access token",
        operation_id="get_token",
        response_model=models.Token,
        openapi_extra={
            "security": [{"client": []}],
            "requestBody": {
                "required": True,
                "content": {
                    FORM: {
                        "schema": {
                            "type": "object",
                            "required": ["grant_type"],
                            "properties": {
                                "grant_type": {"type": "string", "enum": ["client_credentials"]},
                                "scope": {"type": "string", "description": "Fewer scopes than the account has."},
                                "client_id": {"type": "string"},
                                "client_secret": {"type": "string", "format": "password"},
                            },
                        },
                        "example": {"grant_type": "client_credentials", "scope": "publish:*"},
                    }
                },
            },
        },
    )
    async def get_token(request: Request) -> Any:
        """Exchange the id and secret of a service account for an access token.

        Send them with HTTP Basic authentication, or as the fields `client_id` and `client_secret`.
        """
        try:
            token = await grant(request)
        except OAuthError as error:
            return error.response()
        return hot.json_response(token.model_dump(), headers={"pragma": "no-cache"})

    @api.get("/jwks.json", summary="Public keys of access tokens", operation_id="get_jwks")
    async def get_jwks() -> dict[str, Any]:
        """Return the keys with which the bridge's own access tokens can be verified (RFC 7517)."""
        return issuer.jwks()

    return api

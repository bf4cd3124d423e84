# SPDX-License-Identifier: GPL-3.0-or-later
"""Refusals as RFC 9457 wants them (application/problem+json), with what is wrong in each field."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

MEDIA_TYPE = "application/problem+json"
# Slug -> (status, title). Each is described on the page of the API's documentation.
KINDS: dict[str, tuple[int, str]] = {
    "malformed": (400, "The request cannot be read"),
    "unauthenticated": (401, "A valid access token is needed"),
    "forbidden": (403, "The account may not do this"),
    "not-found": (404, "There is nothing here"),
    "method-not-allowed": (405, "The resource does not know this method"),
    "conflict": (409, "The state of the event does not allow this"),
    "too-large": (413, "The request is too large"),
    "unsupported-media-type": (415, "The content must be application/json"),
    "invalid": (422, "The request has errors"),
    "key-reused": (422, "The idempotency key belongs to another request"),
    "no-route": (422, "No route takes the event"),
    "rate-limited": (429, "Too many events at a time"),
    "quota-exceeded": (429, "The quota of the day is used up"),
    "internal": (500, "The bridge has failed"),
    "busy": (503, "The bridge is busy"),
    "unavailable": (503, "The bridge cannot store events at the moment"),
    "backlog": (503, "Too much waits for Pulsar"),
}
DOCUMENTATION = "/pulsar/docs#"

_FIELD = re.compile(r"field `([^`]*)`")
_PATH = re.compile(r" - at `(?:key in )?\$([^`]*)`$")


class Problem(Exception):  # noqa: N818  (it is an answer, not only an error)
    """A refusal. ``errors`` are (JSON pointer, sentence); ``retry_after`` is in seconds."""

    def __init__(
        self,
        kind: str,
        detail: str,
        errors: Sequence[tuple[str, str]] = (),
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status, self.title = KINDS[kind]
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after)))

    def body(self) -> dict[str, Any]:
        """Return the content of the answer."""
        found: dict[str, Any] = {
            "type": DOCUMENTATION + self.kind,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            found["errors"] = [{"pointer": pointer, "detail": detail} for pointer, detail in self.errors]
        return found

    def encoded(self) -> bytes:
        """Return the content as JSON."""
        return msgspec.json.encode(self.body())


def pointer(path: Sequence[str | int]) -> str:
    """Return a JSON pointer (RFC 6901) to a place in the request."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def from_validation(error: msgspec.ValidationError, prefix: str = "") -> Problem:
    """Return a decoding error of msgspec with a pointer to the place it is about."""
    text = str(error)
    path = ""
    if found := _PATH.search(text):
        path = "".join(f"/{part}" for part in re.findall(r"[^.\[\]]+", found[1]))
        text = text[: found.start()]
    if text.startswith("Object ") and (named := _FIELD.search(text)):
        path += pointer([named[1]])
    return Problem("invalid", "The event has an error.", [(prefix + path, text)])

# SPDX-License-Identifier: GPL-3.0-or-later
"""What a client sends to publish, and how it is read: each mistake is answered with the place it is in."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from n8n_platform.bridge.api.problems import Problem, from_validation, pointer

LONGEST_TTL = 30 * 86400
CONTENT_TYPE = "application/json"

Type = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*\Z", min_length=1, max_length=128)]
Workflow = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z", min_length=1, max_length=128)]
# These travel as HTTP headers: visible ASCII only.
ExecutionId = Annotated[str, msgspec.Meta(pattern=r"^[!-~]+\Z", min_length=1, max_length=128)]
Key = Annotated[str, msgspec.Meta(pattern=r"^[!-~]+\Z", min_length=1, max_length=200)]
Ttl = Annotated[int, msgspec.Meta(ge=1, le=LONGEST_TTL)]


class Draft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An event as a client writes it. ``data`` is kept byte for byte: it is what the workflow receives."""

    type: Type
    data: msgspec.Raw
    workflow: Workflow | None = None
    execution_id: ExecutionId | None = None
    idempotency_key: Key | None = None
    ttl_seconds: Ttl | None = None

    @property
    def body(self) -> bytes:
        """The content of the event."""
        return bytes(self.data)

    def digest(self) -> bytes:
        """Return a hash of all that makes two requests the same request."""
        head = (self.type, self.workflow or "", self.execution_id or "", str(self.ttl_seconds or ""))
        # No field holds a zero byte, so that nothing can slide from one field into the next.
        return hashlib.sha256("\0".join(head).encode() + b"\0" + self.body).digest()


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Several events, each looked at for itself."""

    events: list[msgspec.Raw]


_DRAFT = msgspec.json.Decoder(Draft)
_BATCH = msgspec.json.Decoder(Batch)
_KEY = msgspec.json.Decoder(Key)


def _checked(body: bytes | memoryview) -> None:
    """Raise Problem for text that is not UTF-8: a workflow could not read it later."""
    try:
        str(body, "utf-8")
    except UnicodeDecodeError as error:
        raise Problem("malformed", f"The body is not UTF-8 (byte {error.start}).") from error


def draft(body: bytes | msgspec.Raw, prefix: str = "") -> Draft:
    """Return an event; raise Problem. ``prefix`` is the pointer to it within the request."""
    try:
        return _DRAFT.decode(body)
    except msgspec.ValidationError as error:
        raise from_validation(error, prefix) from error
    except msgspec.DecodeError as error:
        raise Problem("malformed", f"The body is not JSON: {error}.") from error
    except RecursionError as error:
        raise Problem("malformed", "The body is nested too deeply.") from error


def single(body: bytes, header_key: str | None) -> Draft:
    """Return the event of a request; the header ``Idempotency-Key`` counts as the field, unless both differ."""
    _checked(body)
    found = draft(body)
    if header_key is None or header_key == found.idempotency_key:
        return found
    if found.idempotency_key is not None:
        raise Problem(
            "invalid",
            "The header Idempotency-Key and the field differ.",
            [("/idempotency_key", "Leave it out, or send the same as in the header")],
        )
    return msgspec.structs.replace(found, idempotency_key=valid_key(header_key))


def valid_key(text: str) -> str:
    """Return an idempotency key from a header; raise Problem when it cannot be one."""
    try:
        return msgspec.convert(text, Key)
    except msgspec.ValidationError as error:
        raise Problem("invalid", "The header Idempotency-Key must be 1 to 200 visible ASCII characters.") from error


def several(body: bytes, most: int) -> list[Draft | Problem]:
    """Return the events of a batch, or what is wrong with each; raise Problem when it is no batch at all."""
    _checked(body)
    try:
        raws = _BATCH.decode(body).events
    except msgspec.ValidationError as error:
        raise from_validation(error) from error
    except msgspec.DecodeError as error:
        raise Problem("malformed", f"The body is not JSON: {error}.") from error
    except RecursionError as error:
        raise Problem("malformed", "The body is nested too deeply.") from error
    if not raws:
        raise Problem("invalid", "The batch is empty.", [("/events", "Must have at least one event")])
    if len(raws) > most:
        raise Problem("too-large", f"A batch may have {most} events, this one has {len(raws)}.")
    found: list[Draft | Problem] = []
    for number, raw in enumerate(raws):
        try:
            found.append(draft(raw, pointer(["events", number])))
        except Problem as problem:
            found.append(problem)
    return found

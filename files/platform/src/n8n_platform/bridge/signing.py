# SPDX-License-Identifier: GPL-3.0-or-later
"""Signatures: of messages in Pulsar, and of calls of webhooks.

A message carries ids only; its signature says that the bridge wrote it, for which tenant, for which topic and until
when. Each tenant has a key of its own, derived from the master secret, so that a key which leaks forges nothing for
another tenant. Several master secrets may be alive: the first signs, all verify. Calls of webhooks are signed as the
Standard Webhooks specification says, so that any of its libraries can verify them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

VERSION = 1
MINIMUM_SECRET_BYTES = 16
# How far the clocks of two hosts may be apart, seconds.
SKEW_SECONDS = 60
KEY_BYTES = 32
WEBHOOK_PREFIX = "whsec_"
WEBHOOK_TOLERANCE_SECONDS = 300
# Made once: ``json.dumps`` makes one for each call that sets separators.
ENCODE = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
REASONS = ("malformed", "unknown_key", "forged", "wrong_tenant", "changed", "not_yet_valid", "expired")


@dataclass(frozen=True)
class Verified:
    """What a message said, all of it under its signature except ``traceparent``. Times are Unix seconds."""

    id: str
    tenant: str
    execution_id: str
    type: str
    topic: str
    issued_at: int
    expires_at: int
    kid: str
    traceparent: str = ""


class SignatureError(Exception):
    """A message must not be trusted. ``reason`` is one of REASONS; ``expired`` alone has ``verified``."""

    def __init__(self, reason: str, detail: str, verified: Verified | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.verified = verified


def derive(secret: bytes, purpose: str, length: int = KEY_BYTES) -> bytes:
    """Return a key for one purpose from a secret: HKDF with SHA-256 (RFC 5869) and no salt."""
    pseudo_random = hmac.digest(bytes(hashlib.sha256().digest_size), secret, "sha256")
    block, key, counter = b"", b"", 1
    while len(key) < length:
        block = hmac.digest(pseudo_random, block + purpose.encode() + bytes([counter]), "sha256")
        key += block
        counter += 1
    return key[:length]


def packed(parts: Iterable[str]) -> bytes:
    """Return texts as bytes that no other sequence of texts gives: each with its length in front."""
    encoded = [part.encode() for part in parts]
    return b"".join([len(part).to_bytes(4, "big") + part for part in encoded])


@dataclass(frozen=True)
class Keyring:
    """The keys of messages: ``masters`` by key id, the newest first. Build one with :meth:`of`."""

    masters: Mapping[str, bytes]
    _derived: dict[tuple[str, str], bytes] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, *secrets: str | bytes) -> Keyring:
        """Return the ring of master secrets, the one that signs first; empty ones are left out.

        Raise ValueError when none is left or one is shorter than 16 bytes.
        """
        given = [item.encode() if isinstance(item, str) else item for item in secrets]
        masters = [item.strip() for item in given if item.strip()]
        if not masters:
            raise ValueError("there is no key to sign messages with")
        if any(len(item) < MINIMUM_SECRET_BYTES for item in masters):
            raise ValueError(f"a key to sign messages with must have {MINIMUM_SECRET_BYTES} bytes or more")
        # The id follows from the secret, so that nobody has to keep the two together.
        return cls({derive(item, "kid", 6).hex(): item for item in masters})

    def key(self, kid: str, tenant: str) -> bytes:
        """Return the key of a tenant; raise KeyError for a key id that is not in the ring."""
        found = self._derived.get((kid, tenant))
        if found is None:
            found = derive(self.masters[kid], "message:" + tenant)
            # Bounded: names of tenants also come from messages nobody has verified yet.
            if len(self._derived) < 10_000:  # noqa: PLR2004
                self._derived[kid, tenant] = found
        return found

    def sign(
        self, event_id: str, tenant: str, execution_id: str, topic: str, iat: int, exp: int, payload_sha256: str
    ) -> tuple[str, str]:
        """Return the key id and the signature (base64 without padding) of a message.

        ``topic`` is the short name, ``iat`` and ``exp`` are Unix seconds, ``payload_sha256`` is the hash of the payload
        of the message in hexadecimal.
        """
        kid = next(iter(self.masters))
        return kid, self._signature(kid, (event_id, tenant, execution_id, topic, str(iat), str(exp), payload_sha256))

    def _signature(self, kid: str, parts: tuple[str, ...]) -> str:
        digest = hmac.digest(self.key(kid, parts[1]), packed((str(VERSION), *parts)), "sha256")
        return base64.b64encode(digest).decode().rstrip("=")

    def message(
        self,
        event_id: str,
        tenant: str,
        execution_id: str,
        event_type: str,
        topic: str,
        issued_at: int,
        expires_at: int,
        traceparent: str = "",
    ) -> tuple[bytes, dict[str, str]]:
        """Return payload and properties of a signed message. Times are Unix seconds, ``topic`` is the short name."""
        content = {"v": VERSION, "id": event_id, "tenant": tenant, "execution_id": execution_id, "type": event_type}
        payload = ENCODE(content).encode()
        digest = hashlib.sha256(payload).hexdigest()
        kid, signature = self.sign(event_id, tenant, execution_id, topic, issued_at, expires_at, digest)
        properties = {
            "tenant_id": tenant,
            "execution_id": execution_id,
            "kid": kid,
            "iat": str(issued_at),
            "exp": str(expires_at),
            "payload_sha256": digest,
            "signature": signature,
        }
        if traceparent:
            properties["traceparent"] = traceparent
        return payload, properties

    def verify(self, properties: Mapping[str, str], payload: bytes, topic: str, now: float) -> Verified:
        """Return what a message says; raise :class:`SignatureError` when it must not be trusted.

        ``topic`` is the short name of the topic the message came from, ``now`` is Unix time in seconds. Expiry is
        looked at last, so that an expired message is known to be genuine.
        """
        found = read(properties, payload, topic)
        digest = hashlib.sha256(payload).hexdigest()
        try:
            times = (str(found.issued_at), str(found.expires_at))
            right = self._signature(found.kid, (found.id, found.tenant, found.execution_id, topic, *times, digest))
        except KeyError as error:
            raise SignatureError("unknown_key", "signed with a key that is not in use") from error
        if not hmac.compare_digest(right.encode(), properties["signature"].encode()):
            raise SignatureError("forged", "the signature does not match the message, its topic or its tenant")
        if found.issued_at > now + SKEW_SECONDS:
            raise SignatureError("not_yet_valid", f"issued {found.issued_at - now:.0f} s in the future")
        if found.expires_at + SKEW_SECONDS < now:
            raise SignatureError("expired", f"expired {now - found.expires_at:.0f} s ago", found)
        return found


def read(properties: Mapping[str, str], payload: bytes, topic: str) -> Verified:
    """Return what a message claims, unverified; raise SignatureError when it is not even well-formed."""
    try:
        content = json.loads(payload)
        found = Verified(
            id=content["id"],
            tenant=content["tenant"],
            execution_id=content["execution_id"],
            type=content["type"],
            topic=topic,
            issued_at=int(properties["iat"]),
            expires_at=int(properties["exp"]),
            kid=properties["kid"],
            traceparent=properties.get("traceparent", ""),
        )
        digest, _ = properties["payload_sha256"], properties["signature"]
        version = content["v"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureError("malformed", f"not a message of the bridge ({type(error).__name__})") from error
    if not all(isinstance(item, str) for item in (found.id, found.tenant, found.execution_id, found.type)):
        raise SignatureError("malformed", "not a message of the bridge (an id is no text)")
    if version != VERSION:
        raise SignatureError("malformed", f"version {version!r} of the message is not known")
    if properties.get("tenant_id") != found.tenant:
        raise SignatureError("wrong_tenant", "the property tenant_id and the payload name different tenants")
    if properties.get("execution_id") != found.execution_id:
        raise SignatureError("changed", "the property execution_id and the payload differ")
    if not hmac.compare_digest(digest.encode(), hashlib.sha256(payload).hexdigest().encode()):
        raise SignatureError("changed", "the payload is not the one that was signed")
    return found


def webhook_key(secret: str) -> bytes:
    """Return the key of a Standard Webhooks secret (``whsec_`` and base64); raise ValueError when it is none."""
    try:
        key = base64.b64decode(secret.strip().removeprefix(WEBHOOK_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("a webhook secret is 'whsec_' and base64") from error
    if not MINIMUM_SECRET_BYTES <= len(key) <= 64:  # noqa: PLR2004
        raise ValueError(f"a webhook secret holds {MINIMUM_SECRET_BYTES} to 64 bytes, this one {len(key)}")
    return key


def webhook_headers(keys: Iterable[bytes], event_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of Standard Webhooks for a call: one signature for each key (see :func:`webhook_key`)."""
    signed = f"{event_id}.{timestamp}.".encode() + body
    signatures = (base64.b64encode(hmac.digest(key, signed, "sha256")).decode() for key in keys)
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }


def webhook_is_genuine(keys: Iterable[bytes], headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Return whether a call was signed with one of the keys within the last minutes; header names are lower-case."""
    try:
        identifier, timestamp = headers["webhook-id"], int(headers["webhook-timestamp"])
        given = headers["webhook-signature"].split()
    except (KeyError, ValueError):
        return False
    if abs(now - timestamp) > WEBHOOK_TOLERANCE_SECONDS:
        return False
    expected = webhook_headers(keys, identifier, timestamp, body)["webhook-signature"].split()
    return any(hmac.compare_digest(one.encode(), other.encode()) for one in expected for other in given)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Signatures of messages and of webhooks: what they let through and what they do not."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from n8n_platform.bridge.signing import (
    REASONS,
    SKEW_SECONDS,
    Keyring,
    SignatureError,
    derive,
    packed,
    webhook_headers,
    webhook_is_genuine,
    webhook_key,
)

OLD, NEW = "an-old-master-secret", "a-new-master-secret!"
NOW = 1_800_000_000
TOPIC = "dealscale.workflow.short"
WORDS = st.text(st.characters(codec="utf-8"), max_size=20)
MESSAGE: dict[str, Any] = {
    "event_id": "0199c6d2-0000-7000-8000-000000000001",
    "tenant": "acme",
    "execution_id": "run-1",
    "event_type": "order.created",
    "topic": TOPIC,
    "issued_at": NOW,
    "expires_at": NOW + 3600,
}


def message(ring: Keyring | None = None, **changes: Any) -> tuple[bytes, dict[str, str]]:
    return (ring or Keyring.of(NEW)).message(**{**MESSAGE, **changes})


def refusal(properties: dict[str, str], payload: bytes, topic: str = TOPIC, now: float = NOW) -> SignatureError:
    with pytest.raises(SignatureError) as caught:
        Keyring.of(NEW).verify(properties, payload, topic, now)
    assert caught.value.reason in REASONS
    return caught.value


@given(tenant=WORDS, execution_id=WORDS, event_type=WORDS, topic=WORDS)
def test_what_was_signed_is_verified(tenant: str, execution_id: str, event_type: str, topic: str) -> None:
    payload, properties = message(tenant=tenant, execution_id=execution_id, event_type=event_type, topic=topic)
    found = Keyring.of(NEW).verify(properties, payload, topic, NOW + 10)
    assert (found.tenant, found.execution_id, found.type, found.topic) == (tenant, execution_id, event_type, topic)
    assert (found.id, found.issued_at, found.expires_at) == (MESSAGE["event_id"], NOW, NOW + 3600)


@given(field=st.sampled_from(["id", "tenant", "execution_id", "type"]), value=WORDS)
def test_no_field_can_be_changed(field: str, value: str) -> None:
    payload, properties = message()
    content = json.loads(payload)
    if content[field] == value:
        return
    changed = json.dumps({**content, field: value}).encode()
    assert refusal(properties, changed).reason in {"changed", "wrong_tenant"}


@given(
    name=st.sampled_from(["tenant_id", "execution_id", "kid", "iat", "exp", "payload_sha256", "signature"]),
    value=WORDS | st.integers().map(str),
)
def test_no_property_can_be_changed(name: str, value: str) -> None:
    payload, properties = message()
    if name in {"iat", "exp"} and value.strip().isdigit() and int(value) == int(properties[name]):
        return
    if properties[name] == value:
        return
    refusal({**properties, name: value}, payload)


@given(st.binary(max_size=60))
def test_any_other_payload_is_refused(payload: bytes) -> None:
    refusal(message()[1], payload)


@pytest.mark.parametrize("payload", [b"[]", b"null", b'{"v":1}', b"\xff", b"[" * 3000, b'{"v":1,"id":7}'])
def test_what_is_no_message_is_malformed(payload: bytes) -> None:
    assert refusal(message()[1], payload).reason == "malformed"


def test_ids_that_are_no_text_are_malformed() -> None:
    payload, properties = message()
    assert refusal(properties, json.dumps({**json.loads(payload), "id": 7}).encode()).reason == "malformed"


def test_another_version_is_not_understood() -> None:
    payload, properties = message()
    error = refusal(properties, json.dumps({**json.loads(payload), "v": 2}).encode())
    assert (error.reason, str(error)) == ("malformed", "version 2 of the message is not known")


@pytest.mark.parametrize("name", ["tenant_id", "execution_id", "kid", "iat", "exp", "payload_sha256", "signature"])
def test_no_property_may_be_missing(name: str) -> None:
    payload, properties = message()
    del properties[name]
    refusal(properties, payload)


def test_a_message_counts_for_its_topic_only() -> None:
    payload, properties = message()
    assert refusal(properties, payload, topic="dealscale.workflow.long").reason == "forged"


def test_the_key_of_one_tenant_signs_nothing_for_another() -> None:
    ring = Keyring.of(NEW)
    kid = next(iter(ring.masters))
    assert ring.key(kid, "acme") != ring.key(kid, "other")
    thief = Keyring(ring.masters, {(kid, "other"): ring.key(kid, "acme")})
    payload, properties = message(thief, tenant="other")
    assert refusal(properties, payload).reason == "forged"


def test_two_keys_live_during_a_rotation() -> None:
    before, both, after = Keyring.of(OLD), Keyring.of(NEW, OLD), Keyring.of(NEW, "")
    for signer in (before, both):
        payload, properties = message(signer)
        assert both.verify(properties, payload, TOPIC, NOW).id == MESSAGE["event_id"]
    payload, properties = message(both)
    assert after.verify(properties, payload, TOPIC, NOW)
    payload, properties = message(before)
    with pytest.raises(SignatureError) as caught:
        after.verify(properties, payload, TOPIC, NOW)
    assert caught.value.reason == "unknown_key"


@pytest.mark.parametrize("secrets", [[], ["", "  "], ["short"], [NEW, "short"]])
def test_a_ring_needs_keys_of_some_length(secrets: list[str]) -> None:
    with pytest.raises(ValueError, match="to sign messages with"):
        Keyring.of(*secrets)


def test_time_is_kept_with_some_patience() -> None:
    payload, properties = message()
    ring = Keyring.of(NEW)
    assert ring.verify(properties, payload, TOPIC, NOW - SKEW_SECONDS)
    assert ring.verify(properties, payload, TOPIC, NOW + 3600 + SKEW_SECONDS)
    assert refusal(properties, payload, now=NOW - SKEW_SECONDS - 1).reason == "not_yet_valid"
    late = refusal(properties, payload, now=NOW + 3600 + SKEW_SECONDS + 1)
    assert late.reason == "expired"
    assert late.verified is not None
    assert late.verified.id == MESSAGE["event_id"]


def test_a_forged_message_is_never_called_expired() -> None:
    payload, properties = message()
    properties["exp"] = str(NOW - 9999)
    error = refusal(properties, payload)
    assert (error.reason, error.verified) == ("forged", None)


def test_the_trace_travels_along() -> None:
    payload, properties = message(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    found = Keyring.of(NEW).verify(properties, payload, TOPIC, NOW)
    assert found.traceparent == "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert "traceparent" not in message()[1]


def test_keys_of_unverified_tenants_do_not_fill_the_memory() -> None:
    ring = Keyring.of(NEW)
    kid = next(iter(ring.masters))
    for number in range(10_050):
        ring.key(kid, str(number))
    assert len(ring._derived) == 10_000


def test_derivation_agrees_with_the_standard() -> None:
    """RFC 5869, test case 3: no salt, no purpose."""
    expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert derive(b"\x0b" * 22, "", 42).hex() == expected


@given(st.lists(WORDS), st.lists(WORDS))
def test_packed_texts_are_told_apart(one: list[str], other: list[str]) -> None:
    assert (packed(one) == packed(other)) == (one == other)


KEY = base64.b64encode(b"0123456789abcdef01234567").decode()


def test_webhooks_are_signed_as_the_specification_says() -> None:
    """The example of the specification's own libraries."""
    keys = [webhook_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    headers = webhook_headers(keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_a_webhook_is_genuine_only_with_its_own_body(body: bytes, other: bytes) -> None:
    keys = [webhook_key(f"whsec_{KEY}")]
    headers = webhook_headers(keys, "an-id", NOW, body)
    assert webhook_is_genuine(keys, headers, body, NOW)
    assert webhook_is_genuine(keys, headers, other, NOW) == (body == other)


def test_a_webhook_is_signed_with_all_secrets_and_accepted_with_any() -> None:
    first, second = (webhook_key("whsec_" + base64.b64encode(letter * 32).decode()) for letter in (b"a", b"b"))
    headers = webhook_headers([first, second], "an-id", NOW, b"body")
    assert headers["webhook-signature"].count("v1,") == 2
    assert webhook_is_genuine([second], headers, b"body", NOW)
    assert not webhook_is_genuine([b"c" * 32], headers, b"body", NOW)


@pytest.mark.parametrize(
    "change", [{"webhook-timestamp": "soon"}, {"webhook-timestamp": str(NOW - 301)}, {"webhook-signature": "v2,abc"}]
)
def test_a_stale_or_broken_webhook_is_not_genuine(change: dict[str, str]) -> None:
    keys = [webhook_key(KEY)]
    assert not webhook_is_genuine(keys, {**webhook_headers(keys, "an-id", NOW, b""), **change}, b"", NOW)
    assert not webhook_is_genuine(keys, {}, b"", NOW)


@pytest.mark.parametrize("secret", ["whsec_!!", "whsec_" + base64.b64encode(b"short").decode(), "whsec_" + "A" * 92])
def test_a_webhook_secret_has_a_form(secret: str) -> None:
    with pytest.raises(ValueError, match="webhook secret"):
        webhook_key(secret)

"""Tokens of an OpenID Connect issuer that is not ours; runs after all other tests, because it is set beside them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from molecule.bridge.api import Answer, Api
from molecule.bridge.issuer import AUDIENCE, AUTHORITY, BASE, Issuer, key_id
from molecule.host import Host
from molecule.waiting import until

HOST = Host("n8n-platform-bridge")
SCOPES = ["publish:orders", "events:read"]
SETTINGS = {"issuer": f"{BASE}/oidc", "audience": AUDIENCE, "tenant_claim": "client_id", "ca_file": AUTHORITY}


@pytest.fixture(scope="module")
def issuer(play: Callable[..., Any]) -> Iterator[Issuer]:
    """Return an issuer that the bridge believes."""
    found = Issuer(HOST)
    found.install(SCOPES)
    found.client("shop", SCOPES)
    result = play("again.yml", bridge_oidc=SETTINGS)
    assert result.returncode == 0, result.stdout
    yield found
    HOST.run("systemctl stop glewlwyd")


def publish(token: str) -> Answer:
    """Publish an event of the shop."""
    body = {"type": "order.created", "data": {"uid": f"oidc-{uuid.uuid4().hex}"}}
    return Api(HOST.run).call("POST", "/publish", "--header", f"authorization: Bearer {token}", body=body)


def test_its_tokens_name_tenant_and_scopes(issuer: Issuer) -> None:
    answer = publish(issuer.token("shop", "publish:orders"))
    assert answer.status == 202, answer
    # The bridge's own tokens count as before, and see the same tenant.
    Api(HOST.run).wait("shop", answer.json["id"], "done")


def test_a_token_for_less_or_for_others_is_refused(issuer: Issuer) -> None:
    lacking = publish(issuer.token("shop", "events:read"))
    assert lacking.status == 403
    assert "publish:orders" in lacking.text
    assert publish(issuer.token("shop", "publish:orders", "https://other.test")).status == 401
    good = issuer.token("shop", "publish:orders")
    head, content, signature = good.split(".")
    assert publish(f"{head}.{content}.{signature[::-1]}").status == 401


def test_keys_are_fetched_again_and_kept_while_the_issuer_is_away(issuer: Issuer) -> None:
    old = issuer.token("shop", "publish:orders")
    issuer.renew_key()
    new = issuer.token("shop", "publish:orders")
    assert key_id(new) != key_id(old)
    # Whoever signs with unknown keys makes a process ask every 30 seconds at most.
    until(lambda: statuses(new) == ["202", "202"], 60, "the new key counts in both processes", every=2)
    HOST.run("systemctl stop glewlwyd")
    assert statuses(new) == ["202", "202"]


def statuses(token: str) -> list[str]:
    """Return what each process answers, asked without Traefik."""
    event = '{"type": "order.created", "data": {}}'
    ask = f"curl -s -o /dev/null -w '%{{http_code}} ' -H 'authorization: Bearer {token}' --json '{event}'"
    return HOST.run(f"for port in 8601 8602; do {ask} http://127.0.86.1:$port/pulsar/publish; done").split()

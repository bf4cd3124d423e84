"""What the tests of the cluster ask with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import testinfra

CLIENT = "/run/pulsar-test-client.py"
SECRETS = "/etc/n8n-platform/secrets"
CA = "/etc/n8n-platform/tls/ca.crt"
NAMES = ("n8n-platform-pulsar-1", "n8n-platform-pulsar-2", "n8n-platform-pulsar-3")


@pytest.fixture(scope="session")
def hosts() -> list[Any]:
    """Return the three hosts."""
    return [testinfra.get_host(f"docker://{name}") for name in NAMES]


@pytest.fixture(scope="session")
def addresses(hosts: list[Any]) -> list[str]:
    """Return their addresses."""
    return [host.check_output("hostname -I").split()[0] for host in hosts]


@pytest.fixture(scope="session")
def asks(hosts: list[Any], addresses: list[str]) -> str:
    """Return the command with which the first host's client asks any broker."""
    text = (Path(__file__).parents[2] / "pulsar/tests/client.py").read_text(encoding="utf-8").replace("'", "'\\''")
    hosts[0].check_output(f"printf %s '{text}' > {CLIENT}")
    url = "pulsar+ssl://" + ",".join(f"{address}:6651" for address in addresses)
    return f"env PULSAR_URL={url} PULSAR_CA={CA} python3 {CLIENT}"


@pytest.fixture
def client(hosts: list[Any], asks: str) -> Callable[..., dict[str, Any]]:
    """Return `client(role, command, ...)`: see client.py."""

    def call(*words: Any) -> dict[str, Any]:
        output = hosts[0].check_output(f"{asks} " + " ".join(map(str, words)))
        return dict(json.loads(output.splitlines()[-1]))

    return call


@pytest.fixture
def admin(hosts: list[Any], addresses: list[str]) -> Callable[..., tuple[int, Any]]:
    """Return `admin(path, host=0)`: the status of the broker's answer and what it says."""

    def call(path: str, host: int = 0) -> tuple[int, Any]:
        header = f'-H "Authorization: Bearer $(cat {SECRETS}/pulsar_admin_token)"'
        url = f"https://{addresses[host]}:8444/{path}"
        body, _, status = (
            hosts[0].check_output(f"curl -sSL --cacert {CA} {header} -w '\\n%{{http_code}}' {url}").rpartition("\n")
        )
        try:
            return int(status), json.loads(body)
        except ValueError:
            return int(status), body

    return call

"""Both hosts, and ways to ask the store."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from typing import Any

import pytest
import testinfra

PROGRAM = "/usr/local/share/telemetry-test/telemetry.py"
TLS = "/etc/n8n-platform/tls"
CERTIFICATE = f"--cacert {TLS}/ca.crt --cert {TLS}/host.crt --key {TLS}/host.key"


@pytest.fixture(scope="session")
def store() -> Any:
    """Return the host with the stores."""
    return testinfra.get_host("docker://n8n-platform-loki")


@pytest.fixture(scope="session")
def other() -> Any:
    """Return a host that only ships."""
    return testinfra.get_host("docker://n8n-platform-loki-other")


@pytest.fixture(scope="session")
def address(store: Any) -> str:
    """Return the private address of the stores."""
    return str(store.check_output("hostname -I")).split()[0]


@pytest.fixture
def logs(other: Any, address: str) -> Callable[..., list[Any]]:
    """Return `logs(query, count, seconds)`, asked from the other host with its certificate."""

    def ask(query: str, count: int = 1, seconds: int = 20) -> list[Any]:
        command = f"{PROGRAM} logs https://{address}:3100 {shlex.quote(query)} {count} {seconds}"
        return list(json.loads(other.check_output(command)))

    return ask


@pytest.fixture
def push(other: Any, address: str) -> Callable[..., tuple[int, str]]:
    """Return `push(service, lines, age)`: give Loki lines that are `age` seconds old; return its status and answer."""

    def send(service: str, lines: list[str], age: int = 0) -> tuple[int, str]:
        now = time.time_ns() - age * 10**9
        values = [[str(now + number), line] for number, line in enumerate(lines)]
        body = json.dumps({"streams": [{"stream": {"service_name": service}, "values": values}]})
        other.check_output(f"printf %s {shlex.quote(body)} > /tmp/body.json")
        answer = other.check_output(
            f"curl --silent {CERTIFICATE} --write-out '\n%{{http_code}}' -H 'Content-Type: application/json' "
            f"--data-binary @/tmp/body.json https://{address}:3100/loki/api/v1/push"
        )
        text, _, status = answer.rpartition("\n")
        return int(status), text

    return send


@pytest.fixture
def wait_until_ready(store: Any, address: str) -> Callable[[], None]:
    """Return a function that waits until Loki answers."""

    def wait() -> None:
        store.check_output(
            f"curl --silent --fail {CERTIFICATE} --retry 60 --retry-delay 1 --retry-all-errors --output /dev/null "
            f"https://{address}:3100/ready"
        )

    return wait

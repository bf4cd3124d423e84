"""What all tests of Pulsar ask with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CLIENT = "/run/pulsar-test-client.py"
SECRETS = "/etc/n8n-platform/secrets"
WEB = "http://127.0.0.1:8081"

Client = Callable[..., dict[str, Any]]
Admin = Callable[..., Any]


@pytest.fixture
def client(host: Any) -> Client:
    """Return `client(role, command, ...)`: see client.py."""
    text = (Path(__file__).parent / "client.py").read_text(encoding="utf-8").replace("'", "'\\''")
    host.check_output(f"printf %s '{text}' > {CLIENT}")

    def call(*words: Any) -> dict[str, Any]:
        output = host.check_output(f"python3 {CLIENT} " + " ".join(map(str, words)))
        return dict(json.loads(output.splitlines()[-1]))

    return call


@pytest.fixture
def admin(host: Any) -> Admin:
    """Return `admin(path, role='admin', method='GET')`: the status of an answer and what it says."""

    def call(path: str, role: str = "admin", method: str = "GET") -> tuple[int, Any]:
        header = f'-H "Authorization: Bearer $(cat {SECRETS}/pulsar_{role}_token)"' if role else ""
        command = f"curl -sS -X {method} {header} -w '\\n%{{http_code}}' {WEB}/{path}"
        body, _, status = host.check_output(command).rpartition("\n")
        try:
            return int(status), json.loads(body)
        except ValueError:
            return int(status), body

    return call


@pytest.fixture
def tool(host: Any) -> Callable[[str], int]:
    """Return `tool(words)`: the result of the units' own program."""
    settings = "/etc/n8n-platform/pulsar/settings.json"

    def call(words: str) -> int:
        return int(host.run(f"/usr/local/lib/n8n-platform/pulsar-tool {settings} {words}").rc)

    return call

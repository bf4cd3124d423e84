"""The whole platform on one host, asked from outside through its only entrance."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
DOMAIN = "n8n.test"
EXPORTERS = tuple(f"{what}-exporter" for what in ("node", "postgres", "redis", "process", "blackbox"))
UNITS = (
    "postgresql@17-main",
    "redis-queue",
    "redis-cache",
    "traefik",
    "object-store",
    "prometheus",
    *(f"prometheus-{name}" for name in ("alertmanager", *EXPORTERS)),
    "n8n-main",
    *(f"n8n-webhook@{i}" for i in (1, 2)),
    *(f"n8n-worker@{i}" for i in range(1, 6)),
    *(f"n8n-runner@{i}" for i in range(1, 6)),
)


@pytest.fixture(scope="module")
def address(host: Any) -> str:
    """Return the address of the host on the test network, as the controller sees it."""
    return str(host.check_output("ip -4 -o addr show dev eth0")).split()[3].split("/")[0]


@pytest.fixture(scope="module")
def context(host: Any, tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """Return a TLS context that trusts nothing but the platform's own root."""
    authority = tmp_path_factory.mktemp("ca") / "ca.crt"
    authority.write_text(host.file("/etc/n8n-platform/tls/ca.crt").content_string, encoding="utf-8")
    return ssl.create_default_context(cafile=str(authority))


@pytest.fixture(scope="module")
def basic(host: Any) -> str:
    """Return the Authorization header of the editor."""
    password = host.file("/etc/n8n-platform/secrets/traefik_editor_password").content_string.strip()
    return "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()


@pytest.fixture(scope="module")
def ask(address: str, context: ssl.SSLContext) -> Callable[..., tuple[int, str]]:
    """Return `ask(method, path, headers, body)`: one HTTPS request from outside, as (status, whole answer)."""

    def request(
        method: str, path: str, headers: dict[str, str] | None = None, body: str = "", end: bytes = b""
    ) -> tuple[int, str]:
        lines = {"Host": DOMAIN, "Connection": "close", "Content-Length": str(len(body)), **(headers or {})}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in lines.items()) + "\r\n"
        with (
            socket.create_connection((address, 443), timeout=30) as plain,
            context.wrap_socket(plain, server_hostname=DOMAIN) as tls,
        ):
            tls.sendall(head.encode() + body.encode())
            received = b""
            while chunk := tls.recv(65536):
                received += chunk
                if end and end in received:
                    break
        text = received.decode("utf-8", "replace")
        return int(text.split(" ", 2)[1]), text

    return request


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the report of the verify playbook."""
    report = tmp_path_factory.mktemp("verify") / "report.json"
    playbook = [str(ROOT / "playbooks" / "verify.yml"), "-e", f"verify_report={report}"]
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], *playbook]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    return dict(json.loads(report.read_text(encoding="utf-8")))


def started(host: Any) -> dict[str, str]:
    """Return when each unit became active."""
    return {unit: host.check_output("systemctl show -P ActiveEnterTimestampMonotonic %s", unit) for unit in UNITS}


@pytest.mark.parametrize("unit", UNITS)
def test_unit_runs_in_a_tight_sandbox(
    unit: str, running: Callable[..., None], exposure: Callable[[str], float]
) -> None:
    running(unit, enabled=not unit.startswith("n8n-runner"))
    assert exposure(unit) <= 2.0


def test_second_run_changes_and_restarts_nothing(host: Any, converge: Callable[..., Any]) -> None:
    before = started(host)
    result = converge()
    assert result.returncode == 0, result.stdout[-4000:]
    changed = re.findall(r"TASK \[([^\]]+)\] \*+\n(?:.*\n)*?changed: ", result.stdout)
    recap = re.search(r"changed=(\d+)", result.stdout)
    assert recap
    assert recap.group(1) == "0", changed
    assert started(host) == before


def test_a_workflow_comes_over_https_and_a_worker_runs_it(proof: dict[str, Any]) -> None:
    assert re.fullmatch(r"worker-[1-5]", proof["worker"]), proof
    assert "answered 42 and is stored as success" in proof["proof"]


def test_verifying_again_installs_nothing(proof: dict[str, Any]) -> None:
    assert proof
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(ROOT / "playbooks" / "verify.yml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert "changed=0" in result.stdout


def test_every_worker_gets_work(host: Any, proof: dict[str, Any], ask: Callable[..., tuple[int, str]]) -> None:
    assert proof
    body = json.dumps({"numbers": [1], "token": "spread"})
    script = (
        f"seq 60 | xargs -P 10 -I% curl -sf --max-time 30 -o /dev/null --resolve {DOMAIN}:443:127.0.0.1 --json '{body}'"
        f" https://{DOMAIN}/webhook/platform-verify || true"
    )
    host.check_output("bash -c %s", script)
    for worker in range(1, 6):
        assert host.run("grep -q n8n.node.finished /var/log/n8n/worker-%s/events.log", str(worker)).rc == 0, worker


def test_only_https_is_open_to_others(listeners: Callable[[], set[tuple[str, int]]], address: str) -> None:
    outside = {
        port for host_address, port in listeners() if not host_address.startswith("127.") and host_address != "::1"
    }
    assert outside <= {80, 443}
    for port in (5678, 5701, 5432, 6379, 8082):
        with socket.socket() as probe:
            probe.settimeout(3)
            assert probe.connect_ex((address, port)) != 0, f"port {port} answers from outside"


def test_editor_asks_for_credentials_and_opens_with_them(ask: Callable[..., tuple[int, str]], basic: str) -> None:
    assert ask("GET", "/")[0] == 401
    status, page = ask("GET", "/", {"Authorization": basic})
    assert status == 200
    assert "<title>n8n" in page
    assert "content-security-policy: script-src 'nonce-" in page.lower()


def test_owner_signs_in_and_the_push_socket_opens(host: Any, ask: Callable[..., tuple[int, str]], basic: str) -> None:
    password = host.file("/etc/n8n-platform/secrets/n8n_owner_password").content_string.strip()
    body = json.dumps({"emailOrLdapLoginId": f"admin@{DOMAIN}", "password": password})
    headers = {"Authorization": basic, "Content-Type": "application/json", "browser-id": "test"}
    status, answer = ask("POST", "/rest/login", headers, body)
    assert status == 200, answer[-300:]
    cookie = re.search(r"(?i)set-cookie: (n8n-auth=[^;]+)", answer)
    assert cookie
    upgrade = {
        "Authorization": basic,
        "Cookie": cookie.group(1),
        "browser-id": "test",
        "Origin": f"https://{DOMAIN}",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
    }
    assert ask("GET", "/rest/push?pushRef=abc", upgrade, end=b"\r\n\r\n")[0] == 101


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/healthz/readiness", "/rest/dev/reload"])
def test_internal_pages_are_refused(path: str, ask: Callable[..., tuple[int, str]], basic: str) -> None:
    assert ask("GET", path, {"Authorization": basic})[0] in (403, 404)


def test_doctor_finds_the_platform_healthy() -> None:
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(ROOT / "playbooks" / "doctor.yml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:]


def test_workflows_reach_neither_metadata_nor_private_networks(host: Any) -> None:
    for target in ("169.254.169.254:80", "10.255.255.1:80"):
        probe = f"exec 3<>/dev/tcp/{target.replace(':', '/')}"
        refused = host.run("timeout 5 setpriv --reuid n8n --clear-groups bash -c %s", probe)
        assert refused.rc not in (0, 124), f"{target} must be refused at once"

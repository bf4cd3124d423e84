"""Several hosts: who reaches the stores over the network, and who does not."""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections.abc import Callable
from typing import Any

import pytest

testinfra_hosts = ["n8n-platform-loki"]
PROGRAM = "/usr/local/share/telemetry-test/telemetry.py"
TLS = "/etc/n8n-platform/tls"
LOOPBACK = {9095, 4317, 4318, 13133, 16685, 13134}
PRIVATE = {3100, 4418, 16686, 8888, 8889, 8890}


def test_units_run_in_a_sandbox(running: Callable[[str], None], exposure: Callable[[str], float]) -> None:
    for unit in ("loki.service", "jaeger.service", "otel-collector.service"):
        running(unit)
        running(unit.replace(".service", "-certificate.path"))
        assert exposure(unit) <= 2.0, unit
        assert exposure(unit.replace(".service", "-certificate.service")) <= 2.0, unit


def test_only_the_wanted_ports_are_on_the_network(listeners: Callable[[], set[tuple[str, int]]], address: str) -> None:
    wanted = {("127.0.0.1", port) for port in LOOPBACK} | {(address, port) for port in PRIVATE}
    assert listeners() == wanted


def test_lines_of_another_host_arrive_under_its_name(other: Any, logs: Any) -> None:
    mark = secrets.token_hex(8)
    other.check_output(
        f"systemd-run --quiet --wait --collect --description=test --unit=n8n-worker@1.service echo {mark}"
    )
    (row,) = logs(f'{{service_name="n8n-worker"}} |= "{mark}"')
    assert row["labels"]["host_name"] == "n8n-platform-loki-other"


def send(host: Any) -> str:
    """Send a trace of one span to the collector of a host and return its id."""
    trace, now = secrets.token_hex(16), time.time_ns()
    times = {"startTimeUnixNano": str(now - 10**8), "endTimeUnixNano": str(now)}
    span = {"traceId": trace, "spanId": secrets.token_hex(8), "name": "workflow.execute", "kind": 1, **times}
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "n8n"}}]}
    body = shlex.quote(json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}))
    address = "http://127.0.0.1:4318/v1/traces"
    host.check_output(f"curl --silent --fail -H 'Content-Type: application/json' --data {body} {address}")
    return trace


def test_traces_of_both_hosts_arrive(store: Any, other: Any, address: str) -> None:
    for host, name in ((store, "n8n-platform-loki"), (other, "n8n-platform-loki-other")):
        trace = send(host)
        found = json.loads(other.check_output(f"{PROGRAM} traces https://{address}:16686 1 20 {trace}"))
        tags = {tag["key"]: tag["value"] for tag in found[trace][0]["process"]["tags"]}
        assert tags["host.name"] == name


@pytest.mark.parametrize(("port", "path"), [(3100, "/ready"), (16686, "/api/services"), (4418, "/v1/traces")])
def test_a_caller_without_a_certificate_is_refused(other: Any, address: str, port: int, path: str) -> None:
    nobody = other.run(f"curl --silent --show-error --cacert {TLS}/ca.crt --max-time 5 https://{address}:{port}{path}")
    assert nobody.rc != 0
    assert "certificate required" in nobody.stderr
    plain = other.run(f"curl --silent --fail --max-time 5 http://{address}:{port}{path}")
    assert plain.rc != 0
    stranger = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=stranger -days 1 "
        "-keyout /tmp/stranger.key -out /tmp/stranger.crt 2>/dev/null"
    )
    other.check_output(stranger)
    refused = other.run(
        f"curl --silent --cacert {TLS}/ca.crt --cert /tmp/stranger.crt --key /tmp/stranger.key --max-time 5 "
        f"https://{address}:{port}{path}"
    )
    assert refused.rc != 0


@pytest.mark.parametrize(
    ("port", "metric"),
    [
        (8888, "otelcol_exporter_sent_log_records_total"),
        (8889, "traces_span_metrics_calls_total"),
        (8890, "otelcol_process_uptime_seconds_total"),
    ],
)
def test_metrics_need_the_password(other: Any, address: str, port: int, metric: str) -> None:
    ask = f"curl --silent --cacert {TLS}/ca.crt --max-time 5 https://{address}:{port}/metrics"
    assert other.check_output(f"{ask} --output /dev/null --write-out '%{{http_code}}'") == "401"
    assert other.check_output(f"{ask} -u metrics:wrong --output /dev/null --write-out '%{{http_code}}'") == "401"
    with_password = f'{ask} -u "metrics:$(cat /etc/n8n-platform/secrets/metrics_password)"'
    loop = f"until {with_password} | grep -q '^{metric}'; do sleep 0.5; done"
    other.check_output("timeout 60 bash -c %s", loop)


def test_a_renewed_certificate_is_used(store: Any, wait_until_ready: Callable[[], None]) -> None:
    before = store.check_output("systemctl show -P MainPID loki jaeger otel-collector")
    store.check_output(f"touch {TLS}/host.crt && cp -p {TLS}/host.crt {TLS}/new && mv {TLS}/new {TLS}/host.crt")
    changed = f'until [ "$(systemctl show -P MainPID loki jaeger otel-collector)" != "{before}" ]; do sleep 0.2; done'
    store.check_output("timeout 20 bash -c %s", changed)
    wait_until_ready()

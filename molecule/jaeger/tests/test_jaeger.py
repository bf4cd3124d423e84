"""Ask the running Jaeger what it does; nothing here reads back the files the role wrote."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from typing import Any

import pytest

QUERY, OTLP, HEALTH, METRICS = 26686, 24418, 23134, 28890


def request(host: Any, address: str, body: Any = None) -> Any:
    """Ask an address from the host itself; return the answer, parsed if it is JSON."""
    data = f"-H 'Content-Type: application/json' --data '{json.dumps(body)}'" if body is not None else ""
    text = str(host.check_output(f"curl --silent --show-error --fail-with-body {data} '{address}'"))
    return json.loads(text) if text.startswith(("{", "[")) else text


def send(host: Any, **attributes: str) -> str:
    """Send one span that ends now and return the id of its trace."""
    trace, now = secrets.token_hex(16), time.time_ns()
    span = {
        "traceId": trace,
        "spanId": secrets.token_hex(8),
        "name": "workflow.execute",
        "kind": 1,
        "startTimeUnixNano": str(now - 10**9),
        "endTimeUnixNano": str(now),
        "attributes": [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()],
    }
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "n8n"}}]}
    body = {"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": [span]}]}]}
    request(host, f"http://127.0.0.1:{OTLP}/v1/traces", body)
    return trace


def spans_of(host: Any, trace: str) -> list[Any]:
    """Return the spans of a trace as Jaeger has them now."""
    answer = host.run(f"curl --silent http://127.0.0.1:{QUERY}/api/traces/{trace}")
    data = json.loads(answer.stdout).get("data") or []
    return [span for item in data for span in item["spans"]]


def wait_for_health(host: Any) -> None:
    """Wait until Jaeger answers again."""
    host.check_output(
        "curl --silent --fail --retry 60 --retry-delay 1 --retry-all-errors --output /dev/null "
        f"http://127.0.0.1:{HEALTH}/status"
    )


def test_the_service_runs_in_a_sandbox(running: Callable[[str], None], exposure: Callable[[str], float]) -> None:
    running("jaeger.service")
    assert exposure("jaeger.service") <= 2.0


def test_it_listens_on_loopback_only(listeners: Callable[[], set[tuple[str, int]]]) -> None:
    assert listeners() == {("127.0.0.1", port) for port in (QUERY, OTLP, HEALTH, METRICS, 16685)}


def test_a_trace_can_be_read_at_once_and_found_by_its_attributes(host: Any) -> None:
    execution = str(time.time_ns())
    trace = send(host, **{"n8n.execution.id": execution, "n8n.workflow.name": "Orders"})
    (span,) = spans_of(host, trace)
    assert span["operationName"] == "workflow.execute"
    assert "n8n" in request(host, f"http://127.0.0.1:{QUERY}/api/services")["data"]
    tags = json.dumps({"n8n.execution.id": execution}).replace(" ", "").replace("{", "%7B").replace("}", "%7D")
    found = request(
        host, f"http://127.0.0.1:{QUERY}/api/traces?service=n8n&lookback=1h&tags={tags.replace(chr(34), '%22')}"
    )
    assert [item["traceID"] for item in found["data"]] == [trace]
    otlp = request(host, f"http://127.0.0.1:{QUERY}/api/v3/traces/{trace}")
    assert trace in json.dumps(otlp)


def test_what_was_acknowledged_survives_a_kill(host: Any) -> None:
    traces = [send(host) for _ in range(5)]
    before = host.check_output("systemctl show -P MainPID jaeger")
    host.check_output("systemctl kill --signal=KILL jaeger")
    wait_for_health(host)
    assert host.check_output("systemctl show -P MainPID jaeger") != before
    assert [len(spans_of(host, trace)) for trace in traces] == [1] * 5


def test_it_ends_in_order_and_keeps_the_traces(host: Any) -> None:
    trace = send(host)
    started = time.monotonic()
    host.check_output("systemctl restart jaeger")
    wait_for_health(host)
    assert time.monotonic() - started < 20
    assert len(spans_of(host, trace)) == 1


def test_traces_end_with_their_time(host: Any) -> None:
    listed = host.check_output("grep -A1 ttl /etc/n8n-platform/jaeger/jaeger.yml")
    assert "5h" in listed


def test_prometheus_finds_its_metrics(host: Any) -> None:
    send(host)
    assert "otelcol_receiver_accepted_spans" in request(host, f"http://127.0.0.1:{METRICS}/metrics")


def test_it_stays_small(host: Any) -> None:
    assert int(host.check_output("systemctl show -P MemoryCurrent jaeger")) < 300 * 2**20


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"jaeger_settings": {"extensions": {"jaeger_query": {"colour": "red"}}}}, "colour"),
        ({"jaeger_settings": {"service": {"pipelines": {"traces": {"exporters": ["nowhere"]}}}}}, "nowhere"),
        ({"jaeger_retention_hours": 0}, "jaeger_retention_hours must be at least 1"),
    ],
)
def test_what_jaeger_would_not_take_never_reaches_it(
    host: Any, converge: Callable[..., Any], settings: dict[str, Any], reason: str
) -> None:
    before = host.check_output("systemctl show -P MainPID jaeger; md5sum /etc/n8n-platform/jaeger/*")
    result = converge(**settings)
    assert result.returncode != 0
    assert reason in result.stdout
    assert host.check_output("systemctl show -P MainPID jaeger; md5sum /etc/n8n-platform/jaeger/*") == before

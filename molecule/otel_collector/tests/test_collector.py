"""The service itself, traces, metrics of spans, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

OURS = {23100, 9095, 4317, 24318, 28888, 28889, 23133, 4418, 16685, 16686, 13134, 8890}
SPANS = "http://127.0.0.1:28889/metrics"


def metrics(host: Any, *wanted: str, address: str = SPANS) -> str:
    """Return what an address exposes, as soon as it holds all wanted texts (the metrics of spans come every 15 s)."""
    tests = " && ".join(f"printf %s \"$page\" | grep -q -- '{text}'" for text in wanted)
    loop = f'until page=$(curl --silent {address}) && {tests}; do sleep 0.5; done; printf %s "$page"'
    return str(host.check_output("timeout 40 bash -c %s", loop))


def test_the_units_run_in_a_sandbox(running: Callable[[str], None], exposure: Callable[[str], float]) -> None:
    for unit in ("otel-collector.service", "loki.service", "jaeger.service"):
        running(unit)
        assert exposure(unit) <= 2.0, unit


def test_everything_listens_on_loopback_only(listeners: Callable[[], set[tuple[str, int]]]) -> None:
    assert listeners() == {("127.0.0.1", port) for port in OURS}


def test_a_trace_arrives_with_its_host_and_environment(send: Any, traces: Any) -> None:
    trace = send(**{"n8n.node.type": "n8n-nodes-base.httpRequest"})
    spans = traces([trace])[trace]
    assert {span["operationName"] for span in spans} == {"workflow.execute", "node.execute"}
    tags = {tag["key"]: tag["value"] for tag in spans[0]["process"]["tags"]}
    assert tags["host.name"] == "n8n-platform-otel-collector"
    assert tags["deployment.environment"] == "shop"


def test_spans_become_metrics(host: Any, send: Any) -> None:
    send(**{"n8n.node.type": "n8n-nodes-base.set"})
    page = metrics(host, "calls_total.*n8n_node_type=.n8n-nodes-base.set.*} [1-9]")
    (calls,) = [
        line
        for line in page.splitlines()
        if line.startswith("traces_span_metrics_calls_total{")
        and 'span_name="node.execute"' in line
        and "n8n-nodes-base.set" in line
    ]
    assert float(calls.rsplit(" ", 1)[1]) >= 1
    assert "collector_instance_id" not in page
    assert "traces_span_metrics_duration_milliseconds_bucket{" in page
    assert 'le="500"' in page


def test_it_measures_itself(host: Any) -> None:
    wanted = ["otelcol_exporter_sent_log_records", "otelcol_exporter_queue_size", "otelcol_process_memory_rss"]
    page = metrics(host, *wanted, address="http://127.0.0.1:28888/metrics")
    assert "otelcol_exporter_send_failed_log_records_total" in page or "otelcol_exporter_sent_log_records_total" in page


def test_the_collector_reads_no_secret(host: Any) -> None:
    user = host.check_output("systemctl show -P User otel-collector")
    assert user == "otelcol"
    assert host.run("runuser -u otelcol -- ls /etc/n8n-platform/secrets").rc != 0


@pytest.fixture
def sampled(converge: Any) -> Iterator[None]:
    """Store one percent of the traces meanwhile."""
    assert converge(otel_collector_sample_percent=1).returncode == 0
    yield
    assert converge().returncode == 0


@pytest.mark.usefixtures("sampled")
def test_with_sampling_errors_and_slow_traces_stay(send: Any, traces: Any) -> None:
    kept = [send(error=True), send(seconds=30)]
    others = [send() for _ in range(20)]
    assert set(traces(kept, seconds=30)) == set(kept)
    assert len(traces(others, 0, 0)) < 10


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"otel_collector_settings": {"processors": {"memory_limiter": {"colour": "red"}}}}, "colour"),
        ({"otel_collector_secret_patterns": ["(unclosed"]}, "unclosed"),
        ({"otel_collector_services": [{"service": "a", "units": "(unclosed"}]}, "unclosed"),
        ({"otel_collector_settings": {"service": {"pipelines": {"logs": {"exporters": ["nowhere"]}}}}}, "nowhere"),
        ({"otel_collector_sample_percent": 0}, "must be above 0"),
        ({"platform_loki_url": "", "platform_traces_otlp_url": ""}, "nowhere to send to"),
    ],
)
def test_what_the_collector_would_not_take_never_reaches_it(
    host: Any, converge: Callable[..., Any], settings: dict[str, Any], reason: str
) -> None:
    state = "systemctl show -P MainPID otel-collector; md5sum /etc/n8n-platform/otel-collector/*.yml"
    before = host.check_output(state)
    result = converge(**settings)
    assert result.returncode != 0
    assert reason in result.stdout
    assert host.check_output(state) == before

"""An execution is found by its number: its metrics, its log lines, its trace."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from molecule.observability.driver import LOKI, Stack
from molecule.observability.tests.conftest import Runs
from molecule.waiting import until

# What each process of the platform is called in the logs.
SERVICES = {
    *("n8n-main", "n8n-webhook", "n8n-worker", "n8n-runner", "n8n-events", "n8n-audit", "traefik-access"),
    *("postgres", "redis", "backup", "platform", "system"),
}


def test_the_deadmans_switch_works_all_the_time(stack: Stack) -> None:
    until(lambda: bool(stack.received("deadman")), 150, "the dead man's switch was pressed")


def test_everything_answers_prometheus(stack: Stack, runs: Runs) -> None:
    assert runs.good
    until(lambda: not stack.metric("up == 0"), 90, "every target answers")
    jobs = {series["job"] for series in stack.metric("up")}
    assert jobs >= {
        *("node", "postgres", "redis", "process", "n8n-main", "n8n-webhook", "n8n-worker", "traefik"),
        *("prometheus", "alertmanager", "loki", "otelcol", "jaeger", "spanmetrics"),
    }
    processes = {series["process"] for series in stack.metric('up{job=~"n8n-.+"}')}
    assert processes == {"main", "webhook-1", "worker-1", "worker-2"}
    assert {series["instance"] for series in stack.metric('up{job="n8n-main"}')} == {stack.container}


def test_metrics_count_the_executions(stack: Stack, runs: Runs) -> None:
    def counted(workflow: str, status: str) -> float:
        return stack.executions().get((workflow, status), 0) - runs.counted.get((workflow, status), 0)

    until(lambda: counted("obsGood000000001", "success") >= len(runs.good), 60, "all are counted")
    assert counted("obsGood000000001", "success") == len(runs.good)
    until(lambda: counted("obsBad0000000001", "failed") == runs.bad, 60, "failed ones are counted")
    until(lambda: counted("obsSlow000000001", "success") == runs.slow, 60, "slow ones are counted")


def test_log_lines_of_an_execution_are_found_by_its_number(stack: Stack, runs: Runs) -> None:
    query = f'{{service_name=~"n8n-.+"}} | execution_id="{runs.good[-1]}"'
    until(lambda: len(stack.lines(query)) >= 3, 60, "the lines of an execution")
    entries = stack.entries(query)
    assert {labels["service_name"] for labels, _ in entries} >= {"n8n-events", "n8n-worker"}
    assert all(labels["host_name"] == stack.container for labels, _ in entries)
    assert any("n8n.workflow.success" in line for _, line in entries)
    query = '{service_name="n8n-events"} |= "n8n.workflow.failed" | workflow_id="obsBad0000000001"'
    until(lambda: len(stack.lines(query, since=time.time() - runs.broken_at)) == runs.bad, 60, "all failures")


def test_every_service_logs_with_the_agreed_labels_only(stack: Stack, runs: Runs) -> None:
    assert runs.good
    labels = stack.ask((f"{LOKI}/labels", {}))[0].data["data"]
    assert set(labels) - {"__stream_shard__"} == {"service_name", "host_name", "deployment_environment"}
    found = stack.ask((f"{LOKI}/label/service_name/values", {}))[0].data["data"]
    missing = SERVICES - set(found)
    # The audit has lines once somebody did something; nobody did here.
    assert missing <= {"n8n-audit", "n8n-runner"}, missing
    assert set(found) <= SERVICES | {"traefik"}


def test_one_trace_goes_from_the_entrance_to_the_outgoing_request(stack: Stack, runs: Runs) -> None:
    number = str(runs.good[-1])

    def traces() -> list[dict[str, Any]]:
        return stack.traces("n8n", **{"n8n.execution.id": number})

    until(lambda: len(traces()) == 1, 90, f"the trace of execution {number}", every=3)

    def names() -> set[tuple[str, str]]:
        trace = traces()[0]
        processes = {key: value["serviceName"] for key, value in trace["processes"].items()}
        return {(processes[span["processID"]], span["operationName"]) for span in trace["spans"]}

    until(lambda: {service for service, _ in names()} >= {"traefik", "n8n"}, 60, "Traefik's spans", every=3)
    trace = traces()[0]
    assert {"workflow.execute", "node.execute"} <= {name for service, name in names() if service == "n8n"}, names()
    tags = {tag["key"]: tag["value"] for span in trace["spans"] for tag in span["tags"]}
    assert tags["n8n.workflow.id"] == "obsGood000000001"
    roles = {
        tag["value"]
        for process in trace["processes"].values()
        for tag in process["tags"]
        if tag["key"] == "n8n.instance.role"
    }
    assert "worker" in roles, trace["processes"]
    # One tree: every parent is there.
    spans = {span["spanID"] for span in trace["spans"]}
    parents = [reference["spanID"] for span in trace["spans"] for reference in span["references"]]
    assert len(spans) - len(parents) == 1
    assert set(parents) <= spans
    called = [call for call in stack.received("call") if json.loads(call["body"])["execution"] == number]
    assert called[0]["headers"]["traceparent"].split("-")[1] == trace["traceID"].rjust(32, "0")


def test_a_line_can_be_asked_for_within_seconds(stack: Stack, runs: Runs, show: Callable[[str], None]) -> None:
    assert runs.good
    waits = []
    for number in range(5):
        text = f"fresh-{number}-{time.time_ns()}"
        began = time.monotonic()
        stack.run(f"echo {text} | systemd-cat -t fresh")
        until(lambda text=text: stack.count(f'{{service_name="system"}} |= "{text}"', 300) == 1, 30, text, every=0.2)  # type: ignore[misc]
        waits.append(time.monotonic() - began)
    show(f"log line to queryable: {sorted(waits)[2]:.1f} s (median of 5, most {max(waits):.1f} s)")
    assert max(waits) < 15

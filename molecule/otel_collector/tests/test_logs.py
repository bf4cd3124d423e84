"""What becomes of lines: class, level, ids, and what may not be in them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from typing import Any

import pytest

SERVICES = [
    ("n8n-main.service", "n8n-main"),
    ("n8n-webhook@2.service", "n8n-webhook"),
    ("n8n-worker@4.service", "n8n-worker"),
    ("n8n-runner@4.service", "n8n-runner"),
    ("traefik.service", "traefik"),
    ("postgresql@17-main.service", "postgres"),
    ("redis-queue.service", "redis"),
    ("n8n-bridge-api@1.service", "bridge"),
    ("n8n-pulsar-broker.service", "pulsar"),
    ("n8n-backup.service", "backup"),
    ("n8n-guard.service", "platform"),
    ("something.service", "system"),
]


def test_each_unit_has_its_class_and_there_are_no_other_labels(say: Any, logs: Any) -> None:
    mark = secrets.token_hex(8)
    for unit, _ in SERVICES:
        say(unit, f"{mark} from {unit}")
    found = logs(f'{{host_name=~".+"}} |= "{mark} from"', len(SERVICES))
    assert {(row["labels"]["unit"], row["labels"]["service_name"]) for row in found} == set(SERVICES)
    for row in found:
        assert row["labels"]["host_name"] == "n8n-platform-otel-collector"
        assert row["labels"]["deployment_environment"] == "shop"


def test_labels_are_three(host: Any, logs: Any) -> None:
    logs('{host_name=~".+"}')
    answer = json.loads(host.check_output("curl --silent http://127.0.0.1:23100/loki/api/v1/labels"))
    assert set(answer["data"]) == {"service_name", "host_name", "deployment_environment"}


def test_what_was_logged_before_there_was_a_collector_is_there(logs: Any) -> None:
    assert logs('{service_name="n8n-main"} |= "line from before"')


def test_what_systemd_says_of_a_unit_counts_as_its_own(host: Any, logs: Any) -> None:
    host.run("systemd-run --quiet --wait --collect --unit=n8n-worker@9.service false")
    assert logs('{service_name="n8n-worker"} | unit="n8n-worker@9.service" |= "status=1"')


def test_lines_of_n8n_are_found_by_execution_and_level(say: Any, logs: Any) -> None:
    execution = str(secrets.randbelow(10**9))
    metadata = {"executionId": execution, "workflowId": "wf1"}
    line = {"level": "error", "message": "Workflow failed", "metadata": metadata, "timestamp": "2026-01-01T00:00:00Z"}
    say("n8n-worker@1.service", json.dumps(line), json.dumps({**line, "level": "debug", "metadata": {}}))
    (row,) = logs(
        f'{{service_name="n8n-worker"}} | execution_id="{execution}" | detected_level="error" | workflow_id="wf1"'
    )
    assert json.loads(row["line"]) == line
    assert logs(f'{{service_name="n8n-worker"}} | json | metadata_executionId="{execution}"')


def test_lines_of_the_bridge_are_found_by_event_execution_and_trace(say: Any, logs: Any) -> None:
    event, execution, trace = secrets.token_hex(16), secrets.token_hex(16), secrets.token_hex(16)
    line = {"level": "warning", "message": "delivered", "event_id": event, "execution_id": execution, "trace_id": trace}
    say("n8n-bridge-consumer@1.service", json.dumps(line))
    query = f'event_id="{event}" | execution_id="{execution}" | trace_id="{trace}" | detected_level="warn"'
    assert logs(f'{{service_name="bridge"}} | {query}')


@pytest.mark.parametrize(("status", "level"), [(200, "info"), (404, "warn"), (503, "error")])
def test_access_lines_are_a_class_of_their_own_and_name_their_trace(
    say: Any, logs: Any, status: int, level: str
) -> None:
    trace = secrets.token_hex(16)
    line = {"RequestMethod": "GET", "RequestPath": "/webhook/a", "DownstreamStatus": status, "level": "info"}
    say("traefik.service", json.dumps({**line, "TraceId": trace, "SpanId": secrets.token_hex(8)}))
    (row,) = logs(f'{{service_name="traefik-access"}} | trace_id="{trace}" | status="{status}"')
    assert row["labels"]["detected_level"] == level


def test_events_are_in_the_stream_of_events_and_audits_in_that_of_the_audit(event: Any, logs: Any) -> None:
    execution, user = str(secrets.randbelow(10**9)), f"{secrets.token_hex(4)}@shop.example"
    event(
        "worker-3", "n8n.workflow.failed", executionId=execution, workflowId="wf2", errorMessage=f"no such user {user}"
    )
    event("main", "n8n.audit.user.login.success", _email=user, userId="7")
    (row,) = logs(f'{{service_name="n8n-events"}} | execution_id="{execution}" | event="n8n.workflow.failed"')
    assert row["labels"]["process"] == "worker-3"
    assert row["labels"]["detected_level"] == "error"
    assert user not in row["line"]
    (row,) = logs(f'{{service_name="n8n-audit"}} |= "{user}"')
    assert row["labels"]["event"] == "n8n.audit.user.login.success"
    assert row["labels"]["process"] == "main"


def test_a_log_that_was_renamed_is_read_to_its_end_and_once(host: Any, event: Any, logs: Any) -> None:
    marks = [secrets.token_hex(8) for _ in range(3)]
    event("main", "n8n.node.started", mark=marks[0])
    host.check_output("mv /var/log/n8n/main/events.log /var/log/n8n/main/events-1.log")
    for mark in marks[1:]:
        event("main", "n8n.node.finished", mark=mark)
    for mark in marks:
        assert len(logs(f'{{service_name="n8n-events"}} |= "{mark}"')) == 1
    assert logs('{service_name=~"n8n-(events|audit)"} |= "EventMessageConfirm"', 1, 1) == []


PLANTED = [
    "password=SECRET",
    "POSTGRES_PASSWORD: SECRET",
    '{"apiKey":"SECRET","user":"ann"}',
    r"{\"password\":\"SECRET\"}",
    "Authorization: Bearer SECRET",
    "authorization: Basic SECRETxx==",
    "GET /webhook/a?token=SECRET&page=2",
    "postgres://n8n:SECRET@db.example:5432/n8n",
    "N8N_ENCRYPTION_KEY=SECRET",
    "set-cookie: n8n-auth=SECRET; Path=/",
    "key eyJhbGciOiJIUzI1NiJ9.SECRET.c2ln was refused",
    "pushed with ghp_SECRETSECRET",
    "sk-ant-api03-SECRETSECRET",
    "written to ann.SECRET@mail.example",
    "-----BEGIN EC PRIVATE KEY-----\\nSECRET\\n-----END EC PRIVATE KEY-----",
]


def test_no_planted_secret_is_stored_anywhere(
    host: Any, say: Any, logs: Any, event: Any, send: Any, traces: Any
) -> None:
    secret, mark = secrets.token_hex(8), secrets.token_hex(8)
    lines = [f"{mark} {text}".replace("SECRET", secret) for text in PLANTED]
    say("n8n-main.service", *lines)
    event("main", "n8n.node.failed", mark=mark, authorization=f"Bearer {secret}")
    trace = send(
        **{"http.url": f"https://u:{secret}@api.example/", "x.authorization": secret, "note": f"token={secret}"}
    )
    found = logs(f'{{host_name=~".+"}} |= "{mark}"', len(PLANTED) + 1)
    assert len(found) == len(PLANTED) + 1
    assert [row["line"] for row in found if secret in row["line"]] == []
    assert sum("****" in row["line"] for row in found) == len(PLANTED) + 1
    assert any('"user":"ann"' in row["line"] for row in found)
    assert any("&page=2" in row["line"] for row in found)
    spans = json.dumps(traces([trace]))
    assert "api.example" in spans
    assert secret not in spans
    assert host.run("grep -raq %s /srv/otel-collector /var/lib/loki /var/lib/jaeger", secret).rc == 1


def test_patterns_of_ones_own_are_masked(say: Any, logs: Any) -> None:
    mark = secrets.token_hex(8)
    say("n8n-main.service", f"{mark} order of customer-123456 came")
    (row,) = logs(f'{{service_name="n8n-main"}} |= "{mark}"')
    assert row["line"] == f"{mark} order of **** came"


def test_ordinary_lines_stay_as_they_are(say: Any, logs: Any) -> None:
    mark = secrets.token_hex(8)
    lines = [
        f"{mark} Execution 1234567890123456789 finished in 1200 ms, 12 items",
        f"{mark} checkpoint complete: wrote 57 buffers (0.3%); sync=0.004 s, total=6.040 s",
        f"{mark} Started n8n-worker@3.service - n8n worker 3.",
        f'{mark} {{"status":200,"path":"/rest/workflows/AbCdEf0123456789"}}',
        f"{mark} äöü 漢字 \u2713",
    ]
    say("n8n-main.service", *lines)
    assert {row["line"] for row in logs(f'{{service_name="n8n-main"}} |= "{mark}"', len(lines))} == set(lines)


@pytest.fixture(autouse=True)
def collector_runs(running: Callable[[str], None]) -> None:
    """Say so first if the collector does not run."""
    running("otel-collector.service")

"""Ways to write on the test host and to ask its stores."""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections.abc import Callable
from typing import Any

import pytest

PROGRAM = "/usr/local/share/telemetry-test/telemetry.py"
LOKI, JAEGER, OTLP = "http://127.0.0.1:23100", "http://127.0.0.1:16686", "http://127.0.0.1:24318"


@pytest.fixture
def logs(host: Any) -> Callable[..., list[Any]]:
    """Return `logs(query, count, seconds)`: the lines a question gives, as soon as there are `count`."""

    def ask(query: str, count: int = 1, seconds: int = 20) -> list[Any]:
        return list(json.loads(host.check_output(f"{PROGRAM} logs {LOKI} {shlex.quote(query)} {count} {seconds}")))

    return ask


@pytest.fixture
def traces(host: Any) -> Callable[..., dict[str, Any]]:
    """Return `traces(ids, count, seconds)`: the stored ones of some traces."""

    def ask(ids: list[str], count: int | None = None, seconds: int = 20) -> dict[str, Any]:
        wanted = len(ids) if count is None else count
        return dict(json.loads(host.check_output(f"{PROGRAM} traces {JAEGER} {wanted} {seconds} {' '.join(ids)}")))

    return ask


@pytest.fixture
def say(host: Any) -> Callable[..., None]:
    """Return `say(unit, line)`: let a unit of that name log a line."""

    def log(unit: str, *lines: str) -> None:
        text = shlex.quote("\n".join(lines))
        host.check_output(
            f"systemd-run --quiet --wait --collect --description=test --unit={shlex.quote(unit)} printf '%s\\n' {text}"
        )

    return log


@pytest.fixture
def event(host: Any) -> Callable[..., None]:
    """Return `event(process, name, **payload)`: write an event as a process of n8n does."""

    def write(process: str, name: str, **payload: Any) -> None:
        line = {
            "__type": "$$EventMessageWorkflow",
            "id": secrets.token_hex(8),
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S.123+00:00", time.gmtime()),
            "eventName": name,
            "message": name,
            "payload": payload,
        }
        confirmation = {
            "__type": "$$EventMessageConfirm",
            "confirm": line["id"],
            "ts": line["ts"],
            "source": {"id": "0"},
        }
        for item in (line, confirmation):
            host.check_output(f"printf '%s\\n' {shlex.quote(json.dumps(item))} >> /var/log/n8n/{process}/events.log")

    return write


@pytest.fixture
def send(host: Any) -> Callable[..., str]:
    """Return `send(error, seconds, **attributes)`: send a trace of two spans and return its id."""

    def post(error: bool = False, seconds: float = 0.2, **attributes: str) -> str:
        trace, root, now = secrets.token_hex(16), secrets.token_hex(8), time.time_ns()

        def span(name: str, identifier: str, **more: Any) -> dict[str, Any]:
            values = [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]
            times = {"startTimeUnixNano": str(now - int(seconds * 10**9)), "endTimeUnixNano": str(now)}
            return {
                "traceId": trace,
                "spanId": identifier,
                "name": name,
                "kind": 1,
                "attributes": values,
                **times,
                **more,
            }

        failed = {"status": {"code": 2}} if error else {}
        spans = [
            span("workflow.execute", root, **failed),
            span("node.execute", secrets.token_hex(8), parentSpanId=root),
        ]
        resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "n8n"}}]}
        body = json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]})
        host.check_output(
            "curl --silent --show-error --fail-with-body --retry 30 --retry-delay 1 --retry-connrefused "
            f"-H 'Content-Type: application/json' --data {shlex.quote(body)} {OTLP}/v1/traces"
        )
        return trace

    return post


@pytest.fixture
def wait_until_ready(host: Any) -> Callable[[], None]:
    """Return a function that waits until the collector answers."""

    def wait() -> None:
        host.check_output(
            "curl --silent --fail --retry 60 --retry-delay 1 --retry-all-errors --output /dev/null http://127.0.0.1:23133/"
        )

    return wait

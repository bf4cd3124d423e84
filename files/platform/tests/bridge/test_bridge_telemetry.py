"""Logs, spans, the port for health and metrics, settings, ids."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import time
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from n8n_platform.bridge import ids, settings, telemetry
from n8n_platform.bridge.ops import Health, OpsServer, notify
from n8n_platform.bridge.sampling import LimitedSampler
from n8n_platform.bridge.settings import SettingsError
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision
from prometheus_client import CollectorRegistry, Counter

MINIMAL: dict[str, Any] = {
    "environment": "test",
    "database": {"host": "/run/postgresql"},
    "n8n": {"urls": ["http://127.0.0.1:5701"]},
}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def configured(directory: Path, **more: Any) -> settings.Settings:
    path = directory / "settings.json"
    path.write_text(json.dumps({**MINIMAL, "secrets_dir": str(directory), **more}))
    return settings.load(path)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_have_defaults(tmp_path: Path) -> None:
    found = configured(tmp_path, limits={"tenants": {"acme": {"events_per_second": 5}}})
    assert found.api.port_base == 8600
    assert found.limits.tenants["acme"].events_per_second == 5
    assert found.database.ca_file is None
    assert configured(tmp_path, database={"host": "x", "ca_file": "/ca"}).database.ca_file == Path("/ca")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"database": {"host": "x", "port": "5432"}}, r"\$\.database\.port"),
        ({"database": {"host": "x", "ca_file": 5}}, r"\$\.database\.ca_file"),
        ({"surprise": {}}, "surprise"),
        ({"limits": {"event_bytes": 0}}, r"\$\.limits\.event_bytes"),
        ({"tracing": {"ratio": 2}}, r"\$\.tracing\.ratio"),
        ({"environment": None}, r"\$\.environment"),
    ],
)
def test_unusable_settings_name_the_key(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=f"settings.json is not usable.*{message}.*Run the role bridge again"):
        configured(tmp_path, **more)


def test_missing_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="The role bridge writes it"):
        settings.load(tmp_path / "none.json")


def test_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    found = configured(tmp_path)
    (tmp_path / "key").write_text(" value \n")
    (tmp_path / "empty").write_text("\n")
    assert found.secret("key") == "value"
    assert found.optional_secret("key") == "value"
    assert found.optional_secret("none") is None
    with pytest.raises(SettingsError, match="The role secrets makes it"):
        found.secret("none")
    with pytest.raises(SettingsError, match="is empty"):
        found.secret("empty")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    assert found.optional_secret("key") is None


# --- ids --------------------------------------------------------------------------------------------------------------


@given(st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)))
def test_an_id_knows_its_day(moment: datetime) -> None:
    moment = moment.replace(tzinfo=UTC)
    identity = ids.new_id(moment.timestamp())
    assert identity.version == 7
    assert ids.is_event_id(identity)
    assert abs((ids.born(identity) - moment).total_seconds()) < 0.002
    assert ids.first_id(ids.day(identity)) <= identity


def test_ids_sort_by_time_and_differ() -> None:
    now = time.time()
    made = [ids.new_id(now + number / 100) for number in range(100)]
    assert made == sorted(made)
    assert len({ids.new_id(now) for _ in range(1000)}) == 1000
    assert not ids.is_event_id(UUID("f47ac10b-58cc-4372-a567-0e02b2c3d479"))
    assert ids.born(ids.first_id(date(2026, 11, 23))) == datetime(2026, 11, 23, tzinfo=UTC)


# --- logs -------------------------------------------------------------------------------------------------------------


def test_a_log_line_carries_the_ids(caplog: pytest.LogCaptureFixture) -> None:
    formatter = telemetry.JsonFormatter("bridge", "1")
    with caplog.at_level(logging.INFO), telemetry.log_context(event_id="e", tenant=None, execution_id="x"):
        logging.getLogger("some").info("done %s", "it", extra={"message_id": "1:2"})
        line = json.loads(formatter.format(caplog.records[0]))
    assert line["message"] == "done it"
    assert line["event_id"] == "e"
    assert line["execution_id"] == "x"
    assert line["message_id"] == "1:2"
    assert line["service"] == "bridge"
    assert "tenant" not in line
    assert line["timestamp"].endswith("+00:00")
    assert "event_id" not in json.loads(formatter.format(caplog.records[0]))


def test_the_journal_gets_priorities_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    formatter = telemetry.JsonFormatter("bridge", "1", journal=True)
    try:
        raise ValueError("line\nbreak")
    except ValueError:
        logging.getLogger("some").exception("failed\nbadly")
    text = formatter.format(caplog.records[0])
    assert text.startswith("<3>{")
    assert "\n" not in text
    assert "ValueError" in json.loads(text[3:])["exception"]


def test_configuring_logs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        monkeypatch.setenv("JOURNAL_STREAM", "8:1")
        telemetry.configure_logging("bridge", "2", "warning")
        logging.getLogger("x").warning("seen")
        logging.getLogger("x").info("not seen")
        assert [handler.stream for handler in root.handlers] == [sys.stderr]  # type: ignore[attr-defined]
    finally:
        root.handlers[:], root.level = before, level
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0].removeprefix("<4>"))["instance"] == "2"


# --- spans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (TRACE, True),
        (None, False),
        ("", False),
        ("00-" + "0" * 32 + "-b7ad6b7169203331-01", False),
        ("00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-01", False),
        (TRACE + "\n", False),
        (TRACE.upper(), False),
    ],
)
def test_traceparents(text: str | None, good: bool) -> None:
    assert telemetry.valid_traceparent(text) == (text if good else None)
    assert telemetry.trace_id_of(TRACE) == "0af7651916cd43dd8448eb211c80319c"


def test_spans_continue_the_trace_they_are_given(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    tracing = telemetry.Tracing(configured(tmp_path), "bridge", "1", exporter=exporter)
    assert tracing.enabled
    with tracing.span("work", "consumer", TRACE, {"a": 1}) as span:
        assert span.trace_id == telemetry.trace_id_of(TRACE)
        assert span.traceparent != TRACE
        span.set(messaging__system="pulsar", nothing=None)
    with pytest.raises(KeyError), tracing.span("broken", "internal", "nonsense") as other:
        raise KeyError("x")
    first, second = exporter.get_finished_spans()
    assert first.attributes == {"a": 1, "messaging.system": "pulsar"}
    assert first.resource.attributes["service.name"] == "bridge"
    assert first.parent is not None
    assert format(first.parent.span_id, "016x") == TRACE.split("-")[2]
    assert second.parent is None
    assert second.status.description == "KeyError"
    assert other.trace_id != span.trace_id
    tracing.shutdown()


def test_a_trace_that_is_not_kept_stays_unkept(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    tracing = telemetry.Tracing(configured(tmp_path), "bridge", "1", exporter=exporter)
    with tracing.span("work", "server", TRACE[:-1] + "0") as span:
        span.set(a=1)
        assert span.traceparent is not None
        assert span.traceparent.endswith("-00")
    assert exporter.get_finished_spans() == ()


def test_new_traces_are_limited_and_others_go_on(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    tracing = telemetry.Tracing(configured(tmp_path, tracing={"per_second": 3}), "bridge", "1", exporter=exporter)
    for _ in range(50):
        with tracing.span("new", "server"):
            pass
    assert 3 <= len(exporter.get_finished_spans()) <= 4
    exporter.clear()
    for _ in range(50):
        with tracing.span("known", "server", TRACE):
            pass
    assert len(exporter.get_finished_spans()) == 50


def test_a_limit_is_one_of_a_second() -> None:
    now = [0.0]
    sampler = LimitedSampler(1.0, 2, clock=lambda: now[0])

    def kept(times: int) -> list[bool]:
        return [sampler.should_sample(None, 1, "x").decision is Decision.RECORD_AND_SAMPLE for _ in range(times)]

    assert kept(3) == [True, True, False]
    now[0] = 0.5
    assert kept(2) == [True, False]
    assert sampler.get_description() == "LimitedSampler{TraceIdRatioBased{1.0},2/s}"
    assert LimitedSampler(0.0, 2).should_sample(None, 1, "x").decision is Decision.DROP


def test_without_a_collector_traces_are_passed_on(tmp_path: Path) -> None:
    tracing = telemetry.Tracing(configured(tmp_path), "bridge", "1")
    assert not tracing.enabled
    with tracing.span("work", "server", TRACE) as span:
        span.set(a=1)
        span.fail("no matter")
        assert span.traceparent == TRACE
    with tracing.span("work", "server", "nonsense") as span:
        assert span.traceparent is None
        assert span.trace_id is None
    tracing.shutdown()


def test_spans_go_to_the_collector_in_the_background(tmp_path: Path) -> None:
    tracing = telemetry.Tracing(configured(tmp_path, tracing={"endpoint": "http://127.0.0.1:1/"}), "bridge", "1")
    assert tracing.enabled
    tracing.shutdown()


# --- the port for whoever watches -------------------------------------------------------------------------------------


def test_health_and_metrics() -> None:
    registry = CollectorRegistry()
    Counter("bridge_test_total", "A test.", registry=registry).inc()
    health = Health()
    broken: list[Exception] = []

    async def check() -> str | None:
        if broken:
            raise broken[0]
        return None

    async def request(port: int, text: str) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(text.encode())
        answer = (await reader.read()).decode()
        writer.close()
        return (int(answer.split(" ")[1]) if answer else 0), answer

    async def story() -> None:
        server = OpsServer(health, registry)
        port = await server.start("127.0.0.1", 0)
        assert (await request(port, "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200
        status, text = await request(port, "GET /metrics?x=1 HTTP/1.1\r\n\r\n")
        assert status == 200
        assert "bridge_test_total 1.0" in text
        health.add("database", check)
        assert (await request(port, "GET /health/ready HTTP/1.1\r\n\r\n"))[0] == 200
        broken.append(OSError("gone"))
        status, text = await request(port, "GET /health/ready HTTP/1.1\r\n\r\n")
        assert status == 503
        assert "OSError: gone" in text
        broken[0] = TimeoutError()
        assert "does not answer" in (await request(port, "GET /health/ready HTTP/1.1\r\n\r\n"))[1]
        health.stopping = True
        assert "is stopping" in (await request(port, "GET /health/ready HTTP/1.1\r\n\r\n"))[1]
        assert (await request(port, "POST /metrics HTTP/1.1\r\n\r\n"))[0] == 405
        assert (await request(port, "GET / HTTP/1.1\r\n\r\n"))[0] == 404
        status, text = await request(port, "HEAD /metrics HTTP/1.1\r\n\r\n")
        assert status == 200
        assert text.endswith("\r\n\r\n")
        assert (await request(port, "nonsense\r\n\r\n"))[0] == 0
        assert (await request(port, "GET /" + "x" * 9000 + " HTTP/1.1\r\n\r\n"))[0] == 0
        await server.close()

    asyncio.run(story())


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert channel.recv(100) == b"READY=1"
    monkeypatch.setenv("NOTIFY_SOCKET", "@n8n-platform-nobody")
    notify("READY=1")

"""When the watchdog bites."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from n8n_platform import files, watchdog
from n8n_platform.queue import Counts, QueueError
from n8n_platform.settings import Settings
from n8n_platform.watchdog import METRICS, Systemd, Unit, Watchdog


class FakeSystemd(Systemd):
    """Units that are active for ages, unless told otherwise."""

    def __init__(self, units: dict[str, Unit] | None = None) -> None:
        self.units = units or {}
        self.done: list[str] = []

    def show(self, unit: str) -> Unit:
        return self.units.get(unit, Unit("active", 100000))

    def restart(self, unit: str) -> None:
        self.done.append(f"restart {unit}")

    def kill(self, unit: str) -> None:
        self.done.append(f"kill {unit}")


class FakeQueue:
    """A queue with counts, or without an answer."""

    def __init__(self, counts: Counts | None) -> None:
        self.known = counts

    def counts(self) -> Counts:
        if self.known is None:
            raise QueueError("down")
        return self.known


IDLE = Counts(0, 0, 0)
Look = Callable[..., list[str]]


@pytest.fixture
def systemd() -> FakeSystemd:
    return FakeSystemd()


@pytest.fixture
def look(settings: Settings, systemd: FakeSystemd) -> Look:
    """Return a function that lets the watchdog look at a time, with the named addresses red."""

    def do(at: float, red: tuple[str, ...] = (), backing: bool = True, jobs: Counts | None = IDLE) -> list[str]:
        return Watchdog(
            settings,
            lambda: FakeQueue(jobs),  # type: ignore[arg-type, return-value]
            systemd,
            ready=lambda url: url not in red,
            accepts=lambda host, port: backing,
            clock=lambda: at,
        ).run()

    return do


def test_a_unit_that_stays_red_is_restarted_once(look: Look, systemd: FakeSystemd) -> None:
    look(990)
    assert look(1000, red=("http://m/",)) == []
    assert look(1060, red=("http://m/",)) == []
    assert "n8n-main.service runs but was not ready for 125 s" in look(1125, red=("http://m/",))[0]
    # Not again before the cool-down has passed.
    assert look(1300, red=("http://m/",)) == []
    assert look(1724, red=("http://m/",)) == []
    assert look(1726, red=("http://m/",)) != []
    assert systemd.done == ["restart n8n-main.service"] * 2


def test_a_short_redness_is_forgotten(look: Look) -> None:
    look(1000, red=("http://m/",))
    look(1060)
    assert look(1130, red=("http://m/",)) == []


def test_nothing_is_restarted_while_the_databases_are_down(look: Look) -> None:
    look(990)
    look(1000, red=("http://m/",))
    assert look(1200, red=("http://m/",), backing=False) == []
    assert look(1310, red=("http://m/",)) == []
    assert look(1325, red=("http://m/",)) != []


def test_a_unit_that_starts_or_stops_is_left_alone(look: Look, systemd: FakeSystemd) -> None:
    systemd.units = {"n8n-main.service": Unit("activating", 500), "n8n-webhook@1.service": Unit("deactivating", 500)}
    red = ("http://m/", "http://w1/")
    look(1000, red=red)
    assert look(2000, red=red) == []


def test_a_young_unit_has_its_full_time(look: Look, systemd: FakeSystemd) -> None:
    look(1000, red=("http://m/",))
    systemd.units = {"n8n-main.service": Unit("active", 30)}
    assert look(1125, red=("http://m/",)) == []


def test_one_of_a_kind_at_a_time(look: Look, systemd: FakeSystemd) -> None:
    red = ("http://w1/", "http://w2/", "http://m/")
    look(990)
    look(1000, red=red)
    look(1125, red=red)
    assert systemd.done == ["restart n8n-main.service", "restart n8n-webhook@1.service"]


def test_a_unit_that_does_not_stop_when_told_is_killed(look: Look, systemd: FakeSystemd) -> None:
    look(990)
    look(1000, red=("http://m/",))
    look(1125, red=("http://m/",))
    systemd.units = {"n8n-main.service": Unit("deactivating", 61)}
    assert "has not stopped for 61 s: killed" in look(1190, red=("http://m/",))[0]
    assert systemd.done[-1] == "kill n8n-main.service"


def test_workers_that_take_no_jobs_are_killed(look: Look, systemd: FakeSystemd) -> None:
    jobs = Counts(waiting=5, active=0, silent=3)
    assert look(1000, jobs=jobs) == []
    assert look(1059, jobs=jobs) == []
    assert len(look(1061, jobs=jobs)) == 2
    assert systemd.done == ["kill n8n-worker@1.service", "kill n8n-worker@2.service"]
    look(1062, jobs=jobs)
    assert look(1130, jobs=jobs) == []


@pytest.mark.parametrize("jobs", [Counts(0, 0, 0), Counts(5, 1, 0), None])
def test_a_moment_with_work_or_without_a_view_begins_anew(look: Look, jobs: Counts | None) -> None:
    look(1000, jobs=Counts(5, 0, 0))
    look(1050, jobs=jobs)
    assert look(1070, jobs=Counts(5, 0, 0)) == []


def test_young_workers_have_time_to_begin(look: Look, systemd: FakeSystemd) -> None:
    systemd.units = {f"n8n-worker@{index}.service": Unit("active", 10) for index in (1, 2)}
    look(1000, jobs=Counts(5, 0, 0))
    assert look(1100, jobs=Counts(5, 0, 0)) == []


def test_a_host_without_workers_does_not_look_at_the_queue(settings: Settings, systemd: FakeSystemd) -> None:
    only = replace(settings, watchdog=replace(settings.watchdog, units={"n8n-main.service": "http://m/"}))
    dog = Watchdog(only, lambda: pytest.fail("asked"), systemd, lambda url: True, lambda host, port: True)
    assert dog.run() == []


def test_a_unit_that_was_never_ready_may_take_longer(look: Look, systemd: FakeSystemd) -> None:
    systemd.units = {"n8n-main.service": Unit("active", 500)}
    look(1000, red=("http://m/",))
    assert look(1299, red=("http://m/",)) == []
    assert look(1300, red=("http://m/",)) != []


def test_metrics(look: Look, settings: Settings) -> None:
    look(990)
    look(1000, red=("http://m/",))
    look(1125, red=("http://m/",))
    text = (settings.state_dir / METRICS).read_text()
    assert 'n8n_watchdog_restarts_total{unit="n8n-main.service"} 1\n' in text
    assert 'n8n_watchdog_not_ready_seconds{unit="n8n-main.service"} 125\n' in text


def test_readiness_is_asked_by_http() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/good" else 503)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    assert watchdog.ready(f"http://{address}/good")
    assert not watchdog.ready(f"http://{address}/bad")
    assert not watchdog.ready(f"https://{address}/good")
    assert watchdog.accepts("127.0.0.1", server.server_port)
    server.shutdown()
    server.server_close()
    assert not watchdog.accepts("127.0.0.1", server.server_port)


def test_a_directory_stands_for_a_socket(tmp_path: Path) -> None:
    assert not watchdog.accepts(str(tmp_path), 5432)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / ".s.PGSQL.5432"))
        listener.listen()
        assert watchdog.accepts(str(tmp_path), 5432)


def test_commands_to_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        given.append(words[1:])
        return subprocess.CompletedProcess(words, 0, "ActiveState=active\nStateChangeTimestampMonotonic=1000000\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    systemd = Systemd()
    unit = systemd.show("n8n-main.service")
    assert (unit.state, unit.age > 0) == ("active", True)
    systemd.restart("a.service")
    systemd.kill("a.service")
    assert given[1:] == [["restart", "--no-block", "a.service"], ["kill", "--signal=SIGKILL", "a.service"]]
    assert files.read_json(Path("/nonexistent")) == {}

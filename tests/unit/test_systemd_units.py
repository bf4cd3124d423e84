# SPDX-License-Identifier: GPL-3.0-or-later
"""The module systemd_units against a systemctl that keeps its units in files."""

from __future__ import annotations

import http.server
import os
import shlex
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plugins.modules import systemd_units
from plugins.modules.systemd_units import answers, changed_at

# Answers like systemctl; each unit is a file of properties. A unit named broken* does not start.
SYSTEMCTL = """
cd {state}
command=$1; shift
units=()
while [ $# -gt 0 ]; do
  case $1 in --property) shift ;; --*) ;; *) units+=("$1") ;; esac
  shift
done
set_property() {{ sed -i "s/^$2=.*/$2=$3/" "$1"; }}
case $command in
  show)
    first=1
    for unit in "${{units[@]}}"; do
      [ $first = 1 ] || echo
      first=0
      cat "$unit" 2>/dev/null || printf 'Id=%s\\nLoadState=not-found\\nActiveState=inactive\\n' "$unit"
    done ;;
  list-units) for unit in *.service; do [ -f "$unit" ] && echo "$unit loaded active running A unit"; done ;;
  list-unit-files) echo "n8n-worker@.service disabled enabled"; for unit in *.service; do echo "$unit enabled"; done ;;
  daemon-reload) for unit in *.service; do set_property "$unit" NeedDaemonReload no; done ;;
  *)
    for unit in "${{units[@]}}"; do
      if [ ! -f "$unit" ]; then echo "Unit $unit could not be found." >&2; exit 5; fi
      case $command in
        start|restart)
          case $unit in broken*) echo "Job for $unit failed." >&2; exit 1 ;; esac
          set_property "$unit" ActiveState active ;;
        stop) set_property "$unit" ActiveState inactive ;;
        enable) set_property "$unit" UnitFileState enabled ;;
        disable) set_property "$unit" UnitFileState disabled ;;
      esac
    done ;;
esac
"""


@dataclass
class Systemd:
    """The fake: its units and what systemctl was asked to do."""

    state: Path
    command: Any

    def unit(self, name: str, active: str = "active", enabled: str = "enabled", **more: str) -> None:
        properties = {
            "Id": name,
            "LoadState": "loaded",
            "ActiveState": active,
            "UnitFileState": enabled,
            "NeedDaemonReload": "no",
            **more,
        }
        (self.state / name).write_text("".join(f"{key}={value}\n" for key, value in properties.items()))

    @property
    def changes(self) -> list[list[str]]:
        """The calls that change something."""
        calls: list[list[str]] = self.command.calls
        return [call for call in calls if call[0] not in ("show", "list-units", "list-unit-files")]


@pytest.fixture
def systemd(tmp_path: Path, fake_command: Callable[..., Any]) -> Systemd:
    state = tmp_path / "units"
    state.mkdir()
    fake_command("journalctl", stdout="the journal\nsays why\n")
    return Systemd(state, fake_command("systemctl", script=SYSTEMCTL.format(state=shlex.quote(str(state)))))


@pytest.fixture
def units(run_module: Callable[..., Any], systemd: Systemd) -> Callable[..., Any]:
    def run(check: bool = False, **arguments: Any) -> Any:
        return run_module(systemd_units, arguments, check=check)

    return run


def test_a_converged_host_is_left_alone(units: Any, systemd: Systemd) -> None:
    systemd.unit("a.service")
    systemd.unit("b.timer", enabled="static")
    result = units(units=["a.service", "b.timer"])
    assert (result["changed"], result["started"], result["enabled"], result["stopped"]) == (False, [], [], [])
    assert systemd.changes == []
    assert len(systemd.command.calls) == 1


def test_nothing_wanted_is_fine(units: Any, systemd: Systemd) -> None:
    assert not units()["changed"]
    assert systemd.command.calls == []


def test_missing_things_are_enabled_and_started_in_order(units: Any, systemd: Systemd) -> None:
    systemd.unit("a.service", active="inactive", enabled="disabled", NeedDaemonReload="yes")
    systemd.unit("b.service", active="failed")
    systemd.unit("c.service", enabled="disabled")
    arguments = {"units": ["b.service", "a.service", "c.service"]}
    expected = {"changed": True, "started": ["b.service", "a.service"], "enabled": ["a.service", "c.service"]}
    predicted = units(check=True, **arguments)
    assert expected.items() <= predicted.items()
    assert systemd.changes == []
    done = units(**arguments)
    assert expected.items() <= done.items()
    assert systemd.changes == [
        ["daemon-reload"],
        ["enable", "--quiet", "a.service", "c.service"],
        ["start", "b.service", "a.service"],
    ]
    assert not units(**arguments)["changed"]


def test_restart_starts_what_does_not_run(units: Any, systemd: Systemd) -> None:
    systemd.unit("a.service")
    systemd.unit("b.service", active="inactive")
    assert units(units=["a.service", "b.service"], state="restarted")["started"] == ["a.service", "b.service"]
    assert sorted(systemd.changes) == [["restart", "a.service"], ["start", "b.service"]]


def test_serial_restarts_wait_for_each_unit(
    units: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("a.service", "b.service"):
        systemd.unit(name)
    asked: list[tuple[str, int]] = []

    def probe(address: str) -> bool:
        asked.append((address, len(systemd.changes)))
        return True

    monkeypatch.setattr(systemd_units, "answers", probe)
    ready = {"a.service": "tcp:a:1", "b.service": "tcp:b:1", "c.service": "tcp:c:1"}
    units(units=["a.service", "b.service"], state="restarted", serial=True, ready=ready)
    assert asked[:2] == [("tcp:a:1", 1), ("tcp:b:1", 2)]
    assert {address for address, _ in asked[2:]} == set(ready.values())
    assert systemd.changes == [["restart", "a.service"], ["restart", "b.service"]]


def test_surplus_instances_are_stopped(units: Any, systemd: Systemd) -> None:
    for number in (1, 2, 3):
        systemd.unit(f"n8n-worker@{number}.service")
    systemd.unit("n8n-worker@4.service", active="inactive", enabled="disabled")
    systemd.unit("n8n-main.service")
    arguments = {"units": ["n8n-worker@1.service"], "surplus": "n8n-worker@*.service"}
    result = units(**arguments)
    assert result["stopped"] == ["n8n-worker@2.service", "n8n-worker@3.service"]
    assert systemd.changes == [
        ["disable", "--quiet", "n8n-worker@2.service", "n8n-worker@3.service"],
        ["stop", "n8n-worker@2.service", "n8n-worker@3.service"],
    ]
    assert not units(**arguments)["changed"]


def test_stopped_disables_and_stops(units: Any, systemd: Systemd) -> None:
    systemd.unit("a.service")
    systemd.unit("b.service", active="inactive", enabled="disabled")
    arguments = {"units": ["a.service", "b.service", "unknown.service"], "state": "stopped"}
    assert units(check=True, **arguments)["stopped"] == ["a.service"]
    assert units(**arguments)["stopped"] == ["a.service"]
    assert not units(**arguments)["changed"]


def test_services_older_than_their_sources_are_restarted(units: Any, systemd: Systemd, tmp_path: Path) -> None:
    configuration = tmp_path / "a.conf"
    configuration.touch()
    os.utime(configuration, (1000, 1000))
    systemd.unit("a.service", ExecMainStartTimestamp="@999")
    systemd.unit("b.service", ExecMainStartTimestamp="@1001")
    systemd.unit("c.timer", ExecMainStartTimestamp="")
    wanted = ["a.service", "b.service", "c.timer"]
    assert units(units=wanted, sources=[str(configuration), str(tmp_path / "absent")])["started"] == ["a.service"]
    assert systemd.changes == [["restart", "a.service"]]


def test_a_unit_that_fails_shows_its_journal(units: Any, systemd: Systemd) -> None:
    systemd.unit("broken.service", active="failed")
    result = units(units=["broken.service"])
    assert result["msg"] == "systemctl start broken.service: Job for broken.service failed."
    assert result["journal"] == ["the journal", "says why"]


def test_an_unknown_unit_is_named(units: Any) -> None:
    assert "nope.service could not be found" in units(units=["nope.service"])["msg"]


def test_a_unit_that_does_not_get_ready_shows_its_journal(
    units: Any, systemd: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(systemd_units, "answers", lambda probe: probe == "tcp:up:1")
    systemd.unit("a.service")
    result = units(units=["a.service"], ready={"a.service": "tcp:down:1", "b.service": "tcp:up:1"}, timeout=5)
    assert result["msg"] == "Not ready in time: a.service (tcp:down:1)"
    assert result["journal"]


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response({"/ok": 200, "/empty": 204}.get(self.path, 503))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    httpd = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_probes_of_an_http_address(server: http.server.HTTPServer) -> None:
    base = f"http://127.0.0.1:{server.server_port}"
    assert answers(f"{base}/ok")
    assert not answers(f"{base}/empty")
    assert not answers(f"{base}/unwell")
    assert answers(f"tcp:127.0.0.1:{server.server_port}")


def test_probes_accept_any_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Answer:
        status = 200

        def __enter__(self) -> Answer:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def urlopen(address: str, timeout: float, context: Any) -> Answer:
        seen.append(context)
        return Answer()

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    assert answers("https://127.0.0.1/")
    assert seen[0].verify_mode == ssl.CERT_NONE


def test_probes_of_sockets(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert answers(f"unix:{path}")
    assert not answers(f"unix:{path}")
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert not answers(f"tcp:127.0.0.1:{port}")


def test_the_newest_change_counts(tmp_path: Path) -> None:
    old, link = tmp_path / "old", tmp_path / "link"
    old.touch()
    os.utime(old, (10, 10))
    link.symlink_to("old")
    os.utime(link, (20, 20), follow_symlinks=False)
    assert changed_at([str(old)]) == 10
    assert changed_at([str(old), str(link)]) == 20
    assert changed_at([str(tmp_path / "none")]) == 0

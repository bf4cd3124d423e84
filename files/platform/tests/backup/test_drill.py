"""The restore drill: what it starts, what it checks, what it remembers, and that it leaves nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from n8n_platform import files
from n8n_platform.backup.config import Config
from n8n_platform.backup.report import Report
from n8n_platform.restore import commands as restore
from n8n_platform.restore import drill, drill_server, drill_steps
from n8n_platform.restore import host as restore_host
from n8n_platform.restore import stock as restore_stock
from n8n_platform.restore import tools as restore_tools

from files.platform.tests.backup.restore_fakes import FakeHost
from files.platform.tests.backup.test_restore_plan import SET, config, fake

__all__ = ["config", "fake"]


@pytest.fixture
def run(config: Config, fake: FakeHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: Any) -> Any:
    """Return a function that runs a drill and returns (code, record, everything it said)."""
    fake.sql = {"SELECT status": "success", **fake.sql}
    fake.sql |= {
        "SELECT pg_snapshot_xmax": "800",
        "substr(pg_walfile_name": '{"timeline": 2, "lsn": "0/9", "last_commit": null}',
        "json_array_elements_text": '{"workflow_entity": 1}',
        "FROM credentials_entity": "1",
        "SELECT count(*) FROM changed": "2",
        '"activeVersionId" IS NOT NULL': "0",
    }
    fake.said = "Successfully exported 1 credentials."
    layout = replace(fake.layout(), drill=replace(fake.layout().drill, timeout_seconds=1))
    monkeypatch.setattr(restore_host, "load", lambda path=None: layout)
    monkeypatch.setattr(restore, "Host", lambda layout, stanza: restore_host.Host(layout, stanza, fake))
    monkeypatch.setattr(drill, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(drill_steps, "CANARY_SECONDS", 0)
    monkeypatch.setattr(drill_steps, "ask", lambda address, body=None: {"sum": 42, "execution": "77"})
    monkeypatch.setattr(restore_tools, "pour", lambda path, commands: None)

    def command(*words: str) -> tuple[int, dict[str, Any], str]:
        code, out, err = call("drill", *words)
        records = restore_stock.history_of(config, "drills")
        return code, records[-1] if records else {}, out + err

    return command


def test_the_newest_physical_backup_is_proved(run: Any, fake: FakeHost, config: Config) -> None:
    code, record, said = run()
    assert code == 0, said
    assert record["backup"] == "20261120-020000F_20261121-020000D"
    assert record["rpo_seconds"] == 0.0
    evidence = record["evidence"]
    assert (evidence["pg_checksums"], evidence["pg_amcheck"]) == ("ok", "ok")
    assert (evidence["credentials_decrypted"], evidence["canary_execution"]) == (1, 77)
    assert "RTO" in said
    restored = next(line for line in fake.calls if "--archive-mode=off" in line)
    assert "MemoryMax" in restored
    assert any("archive_mode=off" in line and "IPAddressDeny=any" in line for line in fake.calls)
    assert any("publish:workflow" in line for line in fake.calls)
    assert list((fake.root / "drill").iterdir()) == []
    assert restore_stock.drilled(config, record["backup"]).startswith("ok")


def test_a_set_is_proved_to_the_row(run: Any, config: Config, fake: FakeHost) -> None:
    (config.sets_dir / SET / "database.dump.zst").write_bytes(b"PGDMP")
    code, record, said = run("--set", SET, "--json")
    assert code == 0, said
    assert (record["kind"], record["set"], record["data_as_of"]) == ("logical", SET, "2026-11-21T02:00:00+00:00")
    checked = json.loads((config.sets_dir / SET / "verification.json").read_text(encoding="utf-8"))
    assert checked["entries"][-1]["by"] == "drill"
    fake.sql["json_array_elements_text"] = '{"workflow_entity": 0}'
    code, record, said = run("--set", SET)
    assert (code, record["result"]) == (1, "failed")
    assert "workflow_entity: 0 instead of 1" in said


def test_unknown_sets_and_servers_that_do_not_start_fail(run: Any, fake: FakeHost) -> None:
    assert "There is no set" in run("--set", "20200101T000000Z-x")[2]
    fake.states[drill_server.POSTGRES_UNIT] = "failed\n"
    fake.said = "FATAL:  could not locate required checkpoint record\n"
    code, _, said = run()
    assert code == 1
    assert "could not locate" in said
    assert list((fake.root / "drill").iterdir()) == []


def test_an_n8n_that_does_not_start_or_answer_fails(run: Any, fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.states[drill_server.N8N_UNIT] = "failed\n"
    assert "n8n does not start" in run()[2]
    fake.states.clear()
    monkeypatch.setattr(drill_steps, "ask", lambda address, body=None: {"sum": 41})
    assert "did not answer" in run()[2]
    monkeypatch.setattr(drill_steps, "ask", lambda address, body=None: {"sum": 42, "execution": "77"})
    fake.sql["SELECT status"] = "error"
    assert "not stored as a success" in run()[2]


def test_too_little_room_and_no_n8n(run: Any, fake: FakeHost, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore_stock, "room", lambda path: 1)
    assert "the drill needs" in run()[2]
    monkeypatch.undo()
    layout = replace(fake.layout(), n8n=None)
    host = restore_host.Host(layout, "n8n", fake)
    found = drill_steps.Drill(config, host, Report(quiet=True)).run("")
    assert "not installed on this host" in found.evidence["n8n"]


def test_cleaning_up_after_a_killed_drill(run: Any, fake: FakeHost) -> None:
    (fake.root / "drill/data").mkdir(parents=True)
    assert run("--clean")[0] == 0
    assert list((fake.root / "drill").iterdir()) == []
    assert any(f"systemctl stop {drill_server.POSTGRES_UNIT}" in line for line in fake.calls)


def test_asking_this_host() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "ok"}')

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.handle_request, daemon=True).start()
        assert drill_steps.ask(f"http://127.0.0.1:{server.server_port}/") == {"status": "ok"}
        address = f"http://127.0.0.1:{server.server_port}/"
    assert drill_steps.ask(address) is None


def test_old_records_go(run: Any, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill, "KEPT_RECORDS", 1)
    (config.state_dir / "drills").mkdir(parents=True)
    files.write_json(config.state_dir / "drills" / "20200101T000000Z.json", {})
    run()
    assert len(list((config.state_dir / "drills").iterdir())) == 1

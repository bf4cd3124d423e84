"""The command line."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from n8n_platform import cli, files, guard, queue, rerun, schema, store, watchdog
from n8n_platform.settings import Settings

Run = Callable[..., int]
DATA = json.dumps(
    [
        {"executionData": "1"},
        {"nodeExecutionStack": "2"},
        ["3"],
        {"data": "4"},
        {"main": "5"},
        ["6"],
        ["7"],
        {"json": "8"},
        {"uid": "9"},
        "a-1",
    ]
)


class FakeStore:
    """A list with one open and one rerunning entry."""

    def __init__(self) -> None:
        time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        base = {
            "workflow_id": "w1",
            "workflow_name": "Orders",
            "mode": "webhook",
            "reason": "crashed",
            "detail": "",
            "created_at": time,
            "started_at": None,
            "found_at": time,
            "attempts": 0,
            "rerun_id": None,
        }
        self.rows = [
            {**base, "execution_id": 5, "state": "open", "size": 20_000},
            {**base, "execution_id": 6, "state": "rerunning", "size": 0, "workflow_name": ""},
        ]
        self.payloads: dict[int, str] = {5: DATA, 7: "[{}]"}

    def listed(self) -> list[dict[str, Any]]:
        return self.rows

    def data(self, execution_id: int) -> str | None:
        return self.payloads.get(execution_id)

    def dismiss(self, execution_id: int) -> bool:
        return execution_id == 5


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> FakeStore:
    found = FakeStore()
    monkeypatch.setattr(store, "connect", lambda config: found)
    monkeypatch.setattr("n8n_platform.settings.load", lambda path: settings)
    return found


def test_the_list_for_people(fake: FakeStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["executions", "lost"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["5", "open", "2026-01-02", "03:04:05", "20", "kB", "crashed", "Orders"]
    assert lines[2].split() == ["6", "rerunning", "2026-01-02", "03:04:05", "gone", "crashed", "w1"]
    assert any("n8n-platform executions rerun ID" in line for line in lines)


def test_an_empty_list(fake: FakeStore, capsys: pytest.CaptureFixture[str]) -> None:
    fake.rows = []
    assert cli.main(["executions", "lost"]) == 0
    assert capsys.readouterr().out == "No execution is lost or stuck.\n"


def test_the_list_for_programs(fake: FakeStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["executions", "lost", "--json", "--payload"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["command"] == "n8n-platform executions rerun 5"
    assert (first["payload"], second["payload"]) == ([{"uid": "a-1"}], [])
    assert (first["created_at"], first["started_at"]) == ("2026-01-02T03:04:05+00:00", None)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["5"], 0, '"uid": "a-1"'),
        (["5", "--raw"], 0, "nodeExecutionStack"),
        (["6"], 1, "No payload of execution 6 is kept"),
        (["7"], 1, "has no payload to start from"),
    ],
)
def test_show(fake: FakeStore, capsys: pytest.CaptureFixture[str], words: list[str], code: int, text: str) -> None:
    assert cli.main(["executions", "show", *words]) == code
    assert text in capsys.readouterr().out


def test_rerun(fake: FakeStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Runner:
        def rerun(self, execution_id: int) -> rerun.Result:
            return rerun.Result(execution_id, 9 if execution_id == 5 else None, "refused")

    monkeypatch.setattr(rerun, "connect", lambda config, database: Runner())
    assert cli.main(["executions", "rerun", "--all"]) == 0
    assert "5: runs again as execution 9\n1 begun, 0 not." in capsys.readouterr().out
    assert cli.main(["executions", "rerun", "5", "6"]) == 1
    assert "6: not run again: refused" in capsys.readouterr().out
    fake.rows = []
    assert cli.main(["executions", "rerun", "--all"]) == 0
    assert capsys.readouterr().out == "Nothing to run again.\n"


def test_dismiss(fake: FakeStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["executions", "dismiss", "5"]) == 0
    assert cli.main(["executions", "dismiss", "5", "8"]) == 1
    assert capsys.readouterr().out == "8: is not in the list\n"


def test_guard_run_prints_what_happened(
    fake: FakeStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = guard.Outcome(
        changed=["schema"], crashed=[1], listed=[2, 3], followed={"reopened": 4}, problems=["Redis does not answer"]
    )
    monkeypatch.setattr(guard.Guard, "run", lambda self: outcome)
    monkeypatch.setattr(queue, "connect", lambda config: None)
    assert cli.main(["guard", "run"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line[:3] for line in out] == ["<5>", "<4>", "<4>", "<5>", "<4>"]
    monkeypatch.setattr(guard.Guard, "run", lambda self: guard.Outcome())
    assert cli.main(["guard", "run"]) == 0
    assert capsys.readouterr().out == ""


def test_guard_status(fake: FakeStore, settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["guard", "status"]) == 1
    files.write_json(settings.state_dir / guard.STATE, {"lost": 0, "problems": []})
    assert cli.main(["guard", "status"]) == 0
    files.write_json(settings.state_dir / guard.STATE, {"lost": 2, "problems": []})
    assert cli.main(["guard", "status"]) == 1


def test_watchdog_run(fake: FakeStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(watchdog.Watchdog, "run", lambda self: ["bitten"])
    assert cli.main(["watchdog", "run"]) == 0
    assert capsys.readouterr().out == "<4>bitten\n"


def test_failures_are_one_sentence(
    fake: FakeStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def down(config: Settings) -> FakeStore:
        raise schema.StoreError("PostgreSQL does not answer: refused")

    monkeypatch.setattr(store, "connect", down)
    assert cli.main(["executions", "lost"]) == cli.UNUSABLE
    assert capsys.readouterr().err == "n8n-platform: PostgreSQL does not answer: refused\n"


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (9999, "9999 B"), (16_000_000, "16 MB"), (9**13, "2541 GB")])
def test_sizes(size: int, text: str) -> None:
    assert cli.human_size(size) == text


def test_module_can_be_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["n8n-platform", "--settings", str(tmp_path / "none.json"), "guard", "status"])
    monkeypatch.delitem(sys.modules, "n8n_platform.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("n8n_platform", run_name="__main__")
    assert ended.value.code == cli.UNUSABLE
    assert "The role guard writes it" in capsys.readouterr().err

# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands events and routes: what they ask the database, what they print, how they end."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from n8n_platform.bridge import cli, events_cli, ids

from files.platform.tests.bridge.consumer_fakes import NOW

ROUTES = Path(__file__).resolve().parents[3] / "bridge" / "routes.example.yml"
EVENT = ids.new_id(NOW)


def row(**changes: Any) -> dict[str, Any]:
    return {
        "id": EVENT,
        "tenant": "acme",
        "execution_id": "run-1",
        "type": "order.created",
        "workflow": None,
        "route": "orders",
        "state": "dead",
        "attempt": 3,
        "created_at": datetime.fromtimestamp(NOW, UTC),
        "last_error": "n8n answered 410",
        **changes,
    }


class FakeConnection:
    """Answers by query; remembers what was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, tuple[Any, ...]]] = []
        self.closed = False

    async def _answer(self, query: str, *arguments: Any) -> Any:
        self.asked.append((query, arguments))
        found = self.answers.get(query)
        return found.pop(0) if isinstance(found, Queue) else found

    fetch = fetchrow = fetchval = execute = _answer

    def transaction(self) -> FakeConnection:
        return self

    async def __aenter__(self) -> FakeConnection:
        return self

    async def __aexit__(self, *error: object) -> None:
        return None

    async def close(self) -> None:
        self.closed = True


class Queue(list[Any]):
    """Answers given one after another."""


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """Return a settings file whose secrets are beside it."""
    (tmp_path / "bridge_db_password").write_text("secret")
    path = tmp_path / "settings.json"
    values = {
        "environment": "test",
        "database": {"host": "/run"},
        "n8n": {"urls": ["http://n8n"]},
        "secrets_dir": str(tmp_path),
    }
    path.write_text(json.dumps(values))
    return path


def run(
    monkeypatch: pytest.MonkeyPatch, settings_file: Path, answers: dict[str, Any], *words: str
) -> tuple[int, FakeConnection]:
    connection = FakeConnection(answers)

    async def connect(**options: Any) -> FakeConnection:
        assert options["database"] == "n8n_bridge"
        return connection

    monkeypatch.setattr(asyncpg, "connect", connect)
    code = cli.main(["--settings", str(settings_file), "events", *words])
    assert connection.closed
    return code, connection


def test_the_newest_are_listed(monkeypatch: Any, settings_file: Path, capsys: Any) -> None:
    code, connection = run(
        monkeypatch, settings_file, {events_cli.LIST: [row()]}, "list", "--tenant", "acme", "--state", "dead"
    )
    assert code == 0
    assert connection.asked[0][1] == (1, "acme", None, "dead", 50)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [
        str(EVENT),
        "dead",
        "2027-01-15",
        "08:00:00",
        "3",
        "acme",
        "orders",
        "order.created",
    ]
    assert len(lines) == 2


def test_lists_are_json_when_asked(monkeypatch: Any, settings_file: Path, capsys: Any) -> None:
    run(monkeypatch, settings_file, {events_cli.LIST: [row()]}, "list", "--json")
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["id"], found["created_at"]) == (str(EVENT), "2027-01-15T08:00:00+00:00")


def test_dead_letters_come_with_their_reason(monkeypatch: Any, settings_file: Path, capsys: Any) -> None:
    code, connection = run(monkeypatch, settings_file, {events_cli.DEAD: [row()]}, "dead", "--route", "orders")
    assert code == 0
    assert connection.asked[0][1] == (False, None, "orders", 50)
    printed = capsys.readouterr().out
    assert "n8n answered 410" in printed
    assert "events replay --dead" in printed
    run(monkeypatch, settings_file, {events_cli.DEAD: []}, "dead")
    assert capsys.readouterr().out == "No event was given up.\n"


def test_an_event_is_shown(monkeypatch: Any, settings_file: Path, capfdbinary: Any) -> None:
    answers = {events_cli.SHOW: row(body=b'{"a": 1}', size=8)}
    code, connection = run(monkeypatch, settings_file, answers, "show", str(EVENT))
    assert code == 0
    assert connection.asked[0][1] == (ids.day(EVENT), EVENT)
    printed = capfdbinary.readouterr().out.decode()
    assert "execution_id   run-1" in printed
    assert "workflow" not in printed
    assert '"a"' not in printed
    run(monkeypatch, settings_file, answers, "show", str(EVENT), "--body")
    assert capfdbinary.readouterr().out == b'{"a": 1}'
    run(monkeypatch, settings_file, answers, "show", str(EVENT), "--json")
    assert json.loads(capfdbinary.readouterr().out)["size"] == 8
    assert run(monkeypatch, settings_file, {}, "show", str(EVENT))[0] == 1


def test_events_are_sent_again(monkeypatch: Any, settings_file: Path, capsys: Any) -> None:
    answers = {events_cli.REPLAY: Queue([UUID(int=1), None])}
    code, connection = run(monkeypatch, settings_file, answers, "replay", str(EVENT), str(EVENT))
    assert code == 1
    day, old, fresh, again = connection.asked[0][1]
    assert (day, old, again) == (ids.day(EVENT), EVENT, False)
    assert ids.is_event_id(fresh)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{EVENT}: sent again as {fresh}"
    assert "not sent again" in lines[1]


def test_all_dead_letters_are_sent_again_oldest_first(monkeypatch: Any, settings_file: Path, capsys: Any) -> None:
    older = ids.new_id(NOW - 60)
    answers = {events_cli.DEAD: [row(), row(id=older)], events_cli.REPLAY: UUID(int=1)}
    code, connection = run(monkeypatch, settings_file, answers, "replay", "--dead", "--limit", "2")
    assert code == 0
    assert [arguments[1] for _, arguments in connection.asked[1:]] == [older, EVENT]
    assert run(monkeypatch, settings_file, {events_cli.DEAD: []}, "replay", "--dead")[0] == 0
    assert run(monkeypatch, settings_file, {}, "replay")[0] == 1
    assert "Name events" in capsys.readouterr().out


def test_events_are_cancelled(monkeypatch: Any, settings_file: Path, capsys: Any) -> None:
    answers = {events_cli.CANCEL: Queue([EVENT, None])}
    code, connection = run(monkeypatch, settings_file, answers, "cancel", str(EVENT), str(EVENT))
    assert code == 1
    assert "DELETE FROM bridge.outbox" in connection.asked[1][0]
    assert capsys.readouterr().out.splitlines()[0] == f"{EVENT}: cancelled"


@pytest.mark.parametrize("text", ["7", "3f1e0fd4-6d1b-4e8a-9a3f-1f4f0a3c7a11"])
def test_other_ids_are_refused(settings_file: Path, capsys: Any, text: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--settings", str(settings_file), "events", "show", text])
    assert "is no id of an event" in capsys.readouterr().err


def test_a_database_that_is_away_is_said(monkeypatch: Any, settings_file: Path, capsys: Any) -> None:
    async def connect(**options: Any) -> None:
        raise OSError("refused")

    monkeypatch.setattr(asyncpg, "connect", connect)
    assert cli.main(["--settings", str(settings_file), "events", "list"]) == 69
    assert capsys.readouterr().err == "n8n-platform: PostgreSQL does not answer: refused\n"


def test_routes_are_checked(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["routes", "check", str(ROUTES)]) == 0
    assert "5 routes" in capsys.readouterr().out
    words = ["--type", "report.x", "--tenant", "acme", "--workflow", "a-report"]
    assert cli.main(["routes", "check", str(ROUTES), *words]) == 0
    assert capsys.readouterr().out == "route reports: by dealscale.workflow.long, /webhook/a-report\n"
    assert cli.main(["routes", "check", str(ROUTES), "--type", "analytics.x"]) == 0
    assert capsys.readouterr().out == "route analytics: by dealscale.analytics.events, no webhook\n"
    assert cli.main(["routes", "check", str(ROUTES), "--type", "other"]) == 1
    bad = tmp_path / "routes.yml"
    bad.write_text("version: 1\nroutes:\n  - name: A\n")
    assert cli.main(["routes", "check", str(bad)]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{bad}:3: ")


def test_what_pulsar_lost_is_sent_again(
    monkeypatch: pytest.MonkeyPatch, settings_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"event_id": EVENT}]
    code, connection = run(monkeypatch, settings_file, {events_cli.RESEND: rows}, "resend", "--tenant", "acme")
    assert (code, connection.asked[0][1]) == (0, ("acme", None, 10_000))
    assert capsys.readouterr().out == "1 events are in the outbox again.\n"
    run(monkeypatch, settings_file, {events_cli.RESEND: rows}, "resend", "--limit", "1")
    assert "Repeat" in capsys.readouterr().out

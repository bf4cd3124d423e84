"""Statements sent to PostgreSQL. What they do is proved by the scenario `faults` against the real thing."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Callable, Mapping
from datetime import date
from importlib import resources
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from n8n_platform import store
from n8n_platform.schema import INDEX, TRIGGERS, StoreError, outdated, partitions
from n8n_platform.settings import Database, Settings
from n8n_platform.store import Store

from files.platform.tests.fakes import FakeConnection

VERSION = hashlib.sha256(resources.files("n8n_platform").joinpath("schema.sql").read_bytes()).hexdigest()[:16]


@given(st.dates(date(2000, 1, 1), date(2100, 1, 1)), st.booleans())
def test_partitions_follow_each_other_and_hold_today(today: date, monthly: bool) -> None:
    found = list(partitions(today, monthly).values())
    assert found[0][0] <= today < found[0][1]
    assert all(first[1] == second[0] for first, second in itertools.pairwise(found))


@given(st.dates(date(2000, 1, 1), date(2100, 1, 1)), st.booleans(), st.integers(0, 400))
def test_partitions_of_today_are_never_outdated(today: date, monthly: bool, days: int) -> None:
    assert not any(outdated(suffix, today, days) for suffix in partitions(today, monthly))


def test_outdated_partitions() -> None:
    today = date(2026, 3, 10)
    assert outdated("20260306", today, 3)
    assert not outdated("20260307", today, 3)
    assert outdated("202601", today, 30)
    assert not outdated("202602", today, 30)
    assert not outdated("default", today, 0)


def complete(triggers: list[str] | None = None) -> dict[str, Any]:
    names = list(TRIGGERS) if triggers is None else triggers
    return {
        "obj_description": [{"v": VERSION}],
        "FROM pg_trigger": [{"tgname": name} for name in names],
        "indisvalid": [{"v": True}],
    }


def test_nothing_is_created_twice() -> None:
    connection = FakeConnection(complete())
    assert Store(connection).ensure(payload_copy=True) == []
    assert not connection.said("CREATE")


def test_everything_missing_is_created() -> None:
    connection = FakeConnection()
    changed = Store(connection).ensure(payload_copy=True)
    assert changed == ["schema", *TRIGGERS, INDEX]
    assert connection.said("CREATE INDEX CONCURRENTLY")
    assert connection.said(f"COMMENT ON SCHEMA n8n_platform IS '{VERSION}'")


def test_the_copy_can_be_switched_off() -> None:
    connection = FakeConnection(complete())
    assert Store(connection).ensure(payload_copy=False) == ["n8n_platform_keep_payload"]
    assert connection.said("DROP TRIGGER n8n_platform_keep_payload ON execution_data")
    assert Store(FakeConnection(complete(["n8n_platform_archive"]))).ensure(payload_copy=False) == []


def test_partitions_are_made_and_dropped() -> None:
    def names(values: Mapping[str, Any]) -> list[dict[str, Any]]:
        payload = ["default", "20260101", "20260310", "20260311", "20260312"]
        archive = ["default", "202501", "202603", "202604"]
        return [{"suffix": name} for name in (payload if values["table"] == "execution_payload" else archive)]

    connection = FakeConnection({"current_date": [{"v": date(2026, 3, 11)}], "pg_inherits": names})
    assert Store(connection).partition(3, 365) == [
        "execution_payload_20260313",
        "execution_payload_20260101",
        "execution_archive_202501",
    ]
    assert connection.said("CREATE TABLE n8n_platform.execution_payload_20260313 PARTITION OF")
    assert connection.said("DROP TABLE n8n_platform.execution_archive_202501")


ONE = [{"id": 5, "execution_id": 5, "data": "[{}]"}]


@pytest.mark.parametrize(
    ("call", "part", "answer", "expected"),
    [
        (lambda s: s.n8n_is_there(), "num_nulls", [{"v": True}], True),
        (lambda s: s.unsettled(30), "status IN ('new', 'running')", ONE, ONE),
        (lambda s: s.parents([5]), "AS parent_status", ONE, {5: ONE[0]}),
        (lambda s: s.mark_crashed([5]), "SET status = 'crashed'", ONE, [5]),
        (lambda s: s.crashed(), "e.status = 'crashed'", ONE, ONE),
        (lambda s: s.died(900), "n8n_platform.died", ONE, ONE),
        (lambda s: s.add([5], "crashed"), "INSERT INTO n8n_platform.lost_execution", ONE, [5]),
        (lambda s: s.listed(), "state <> 'closed' ORDER BY", ONE, ONE),
        (lambda s: s.listed([5]), "ANY (%(ids)s) ORDER BY", ONE, ONE),
        (lambda s: s.data(5), "coalesce", [{"v": "[{}]"}], "[{}]"),
        (lambda s: s.data(5), "coalesce", [{"v": None}], None),
        (lambda s: s.claim(5), "AND state = 'open' RETURNING", ONE, True),
        (lambda s: s.claim(5), "AND state = 'open' RETURNING", [], False),
        (lambda s: s.rerun_of(5), "SET rerun_id", [{"v": 9}], 9),
        (lambda s: s.rerun_of(5), "SET rerun_id", [], None),
        (lambda s: s.dismiss(5), "'dismissed'", ONE, True),
        (lambda s: s.numbers(), "payload_bytes", [{"open": 1}], {"open": 1}),
        (lambda s: s.owner_email(), "global:owner", [{"v": "a@b"}], "a@b"),
        (lambda s: s.owner_email(), "global:owner", [], None),
    ],
)
def test_answers_are_taken_over(
    call: Callable[[Store], Any], part: str, answer: list[dict[str, Any]], expected: Any
) -> None:
    connection = FakeConnection({part: answer})
    assert call(Store(connection)) == expected
    assert connection.said(part)


def test_statements_without_an_answer() -> None:
    connection = FakeConnection()
    found = Store(connection)
    found.prune(3, 30)
    found.cover([5])
    found.release(5)
    found.restore(5)
    assert connection.said("execution_payload_default")
    assert connection.said("'part of its parent'")
    assert connection.said("SET state = 'open'")
    # A pruned execution is created again; data that can still start is left alone.
    assert connection.said("INSERT INTO execution_entity")
    assert connection.said("WHERE NOT n8n_platform.can_start(execution_data.data)")


def test_errors_of_postgresql_become_one_kind() -> None:
    def fail(values: Mapping[str, Any]) -> list[dict[str, Any]]:
        raise ValueError("canceling statement due to lock timeout\n")

    found = Store(FakeConnection({"FROM pg_trigger": fail}), (ValueError,))
    with pytest.raises(StoreError, match=r"^PostgreSQL: canceling statement due to lock timeout$"):
        found.triggers()


def test_follow_ups_count_by_outcome() -> None:
    connection = FakeConnection({"'finished after all'": ONE, "SET state = 'open' WHERE l.state": ONE * 2})
    assert Store(connection).reconcile(300) == {"finished after all": 1, "reopened": 2}


@pytest.mark.parametrize("ca_file", ["", "/etc/tls/ca.crt"])
def test_connecting(settings: Settings, monkeypatch: pytest.MonkeyPatch, ca_file: str) -> None:
    given: dict[str, Any] = {}

    class Error(Exception):
        pass

    def connect(**options: Any) -> FakeConnection:
        given.update(options)
        if options["host"] == "down":
            raise Error("refused")
        return FakeConnection()

    monkeypatch.setitem(sys.modules, "psycopg", SimpleNamespace(connect=connect, Error=Error))
    monkeypatch.setitem(sys.modules, "psycopg.rows", SimpleNamespace(dict_row=dict))
    database = Database("db.internal", 5432, "n8n", "n8n", ca_file)
    store.connect(Settings(**{**vars(settings), "database": database}))
    assert given["password"] == "postgres_n8n_password-value"
    assert "timezone=UTC" in given["options"]
    assert given.get("sslmode", "") == ("verify-ca" if ca_file else "")
    with pytest.raises(StoreError, match="PostgreSQL does not answer: refused"):
        store.connect(Settings(**{**vars(settings), "database": Database("down", 1, "n8n", "n8n")}))

"""Decisions of the guard."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from n8n_platform import files
from n8n_platform.guard import METRICS, STATE, Guard, sort_children, without_job
from n8n_platform.queue import Queue
from n8n_platform.settings import Settings

from files.platform.tests.fakes import FakeRedis


class FakeStore:
    """A database as the guard sees it."""

    def __init__(
        self, rows: list[dict[str, Any]] | None = None, parents: dict[int, dict[str, Any]] | None = None
    ) -> None:
        self.rows = rows or []
        self.known_parents = parents or {}
        self.crashed_rows: list[dict[str, Any]] = []
        self.died_rows: list[dict[str, Any]] = []
        self.there = True
        self.active = {"n8n_platform_keep_payload"}
        self.marked: list[int] = []
        self.added: list[tuple[list[int], str]] = []
        self.covered: list[int] = []
        self.window = 0

    def n8n_is_there(self) -> bool:
        return self.there

    def ensure(self, payload_copy: bool) -> list[str]:
        return []

    def partition(self, payload_days: int, archive_days: int) -> list[str]:
        return ["execution_payload_20260101"]

    def triggers(self) -> set[str]:
        return self.active

    def unsettled(self, grace_seconds: int) -> list[dict[str, Any]]:
        return self.rows

    def parents(self, ids: list[int]) -> dict[int, dict[str, Any]]:
        return {key: value for key, value in self.known_parents.items() if key in ids}

    def mark_crashed(self, ids: list[int]) -> list[int]:
        self.marked += ids
        return list(ids)

    def reconcile(self, claim_seconds: int) -> dict[str, int]:
        return {}

    def crashed(self) -> list[dict[str, Any]]:
        return self.crashed_rows

    def died(self, window_seconds: int) -> list[dict[str, Any]]:
        self.window = window_seconds
        return self.died_rows

    def add(self, ids: list[int], reason: str) -> list[int]:
        self.added.append((ids, reason))
        return ids

    def cover(self, ids: list[int]) -> None:
        self.covered += ids

    def prune(self, payload_days: int, closed_days: int) -> None:
        return

    def numbers(self) -> dict[str, Any]:
        return {
            "open": 2,
            "without_payload": 1,
            "rerunning": 0,
            "oldest": 900,
            "overdue_waits": 0,
            "payload_bytes": 8192,
        }


def row(execution_id: int, mode: str = "webhook", status: str = "running") -> dict[str, Any]:
    return {"id": execution_id, "mode": mode, "status": status}


def run(settings: Settings, store: FakeStore, redis: FakeRedis, at: float) -> Any:
    return Guard(settings, store, Queue(redis, settings.queue), clock=lambda: at).run()  # type: ignore[arg-type]


def with_job(*ids: int) -> FakeRedis:
    keys: dict[str, Any] = {"n8n:{instance:}members": 1, "n8n:jobs:wait": [str(item) for item in ids]}
    keys |= {f"n8n:jobs:{item}": {"data": json.dumps({"executionId": str(item)})} for item in ids}
    return FakeRedis(keys)


def test_a_missing_job_counts_only_after_a_second_look(settings: Settings) -> None:
    store = FakeStore([row(1), row(2)])
    assert run(settings, store, with_job(2), at=1000).crashed == []
    assert run(settings, store, with_job(2), at=1010).crashed == []
    assert run(settings, store, with_job(2), at=1031).crashed == [1]
    assert store.marked == [1]


def test_a_job_that_came_back_is_no_suspect_any_more(settings: Settings) -> None:
    store = FakeStore([row(1)])
    run(settings, store, with_job(), at=1000)
    assert run(settings, store, with_job(1), at=1031).suspects == {}
    assert run(settings, store, with_job(), at=1062).crashed == []


@pytest.mark.parametrize(
    ("redis", "sentence"),
    [
        (FakeRedis(error=OSError("refused")), "Redis does not answer: refused"),
        (FakeRedis({}), "No n8n process reports to this Redis under this prefix"),
    ],
)
def test_without_a_trustworthy_queue_nothing_is_settled(settings: Settings, redis: FakeRedis, sentence: str) -> None:
    store = FakeStore([row(1)])
    store.crashed_rows = [row(7, status="crashed")]
    run(settings, store, redis, at=1000)
    outcome = run(settings, store, redis, at=2000)
    assert store.marked == []
    assert sentence in outcome.problems[0]
    # Listing needs no queue.
    assert outcome.listed == [7]


def test_a_queue_that_has_just_started_is_given_time(settings: Settings) -> None:
    store = FakeStore([row(1)])
    redis = with_job()
    redis.uptime = 5
    run(settings, store, redis, at=1000)
    assert run(settings, store, redis, at=2000).suspects == {}


def test_executions_inside_their_parents_process_have_no_job() -> None:
    rows = [row(1), row(2, "integrated"), row(3, "cli"), row(4)]
    assert without_job(rows, {4}) == ([1], [2, 3])


PARENT = {"parent_status": "running", "listed": False, "age": 100}


def test_children_share_the_fate_of_their_parent() -> None:
    parents = {
        1: PARENT,
        2: {**PARENT, "parent_status": "crashed"},
        3: {**PARENT, "parent_status": "error", "listed": True},
        4: {**PARENT, "parent_status": "success"},
        5: {**PARENT, "parent_status": "success", "age": 30000},
        6: {**PARENT, "parent_status": None, "age": 30000},
        7: {**PARENT, "parent_status": "waiting", "age": 30000},
    }
    assert sort_children(parents, 21600) == ([2, 3], [5, 6])


def test_running_children_end_with_their_parent(settings: Settings) -> None:
    store = FakeStore([row(2, "integrated"), row(3, "integrated")], {2: {**PARENT, "listed": True}, 3: PARENT})
    assert run(settings, store, with_job(), at=1000).crashed == [2]


def test_what_is_listed_and_why(settings: Settings) -> None:
    parents = {8: {**PARENT, "listed": True}, 9: {**PARENT, "parent_status": None}, 10: PARENT}
    store = FakeStore(parents=parents)
    store.crashed_rows = [row(7), row(8, "integrated"), row(9, "integrated"), row(10, "integrated")]
    reasons = {11: "payload-overwritten", 12: "platform-error", 13: "payload-overwritten"}
    store.died_rows = [{**row(key), "reason": reason} for key, reason in reasons.items()]
    outcome = run(settings, store, with_job(), at=1000)
    assert outcome.listed == [7, 11, 13, 12, 9]
    assert store.added == [
        ([7], "crashed"),
        ([11, 13], "payload-overwritten"),
        ([12], "platform-error"),
        ([9], "crashed"),
    ]
    assert store.covered == [8]


def test_the_window_covers_a_pause_of_the_guard(settings: Settings) -> None:
    store = FakeStore()
    run(settings, store, with_job(), at=1_000_000)
    assert store.window == 900 + 7 * 86400
    run(settings, store, with_job(), at=1_000_060)
    assert store.window == 960


def test_report_and_metrics(settings: Settings) -> None:
    outcome = run(settings, FakeStore(), with_job(), at=1000)
    assert outcome.changed == ["execution_payload_20260101"]
    report = files.read_json(settings.state_dir / STATE)
    assert (report["lost"], report["lost_without_payload"], report["payload_copy_active"]) == (2, 1, True)
    metrics = (settings.state_dir / METRICS).read_text()
    assert "\nn8n_guard_lost_executions 2\n" in metrics
    assert "\nn8n_guard_lost_oldest_age_seconds 100\n" in metrics


def test_a_missing_trigger_is_a_problem_only_where_it_is_wanted(settings: Settings) -> None:
    store = FakeStore()
    store.active = set()
    assert "trigger that keeps payloads is missing" in run(settings, store, with_job(), at=1).problems[0]
    off = replace(settings, guard=replace(settings.guard, payload_copy=False))
    assert run(off, store, with_job(), at=1).problems == []


def test_before_n8n_has_started_there_is_nothing_to_guard(settings: Settings) -> None:
    store = FakeStore()
    store.there = False
    outcome = run(settings, store, with_job(), at=1)
    assert outcome.problems == ["n8n has not created its tables yet; start n8n-main."]
    assert (settings.state_dir / METRICS).exists()

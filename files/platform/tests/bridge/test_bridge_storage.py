"""Group commit, the statements of the store, the outbox and the upkeep; scenarios test them with PostgreSQL itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from n8n_platform.bridge import db, ids, maintain, outbox, store
from n8n_platform.bridge.broker import NotStoredError
from n8n_platform.bridge.group import GroupCommit
from n8n_platform.bridge.metrics import PublishMetrics
from n8n_platform.bridge.outbox import Backlog, Outbox
from n8n_platform.bridge.settings import Database, Limits, N8n, Retention, Settings
from n8n_platform.bridge.signing import Keyring
from n8n_platform.bridge.store import EventStore, NewEvent, Stored
from prometheus_client import CollectorRegistry

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
TOPIC = "dealscale.workflow.short"


def event(key: str | None = None, tenant: str = "acme", digest: bytes = b"x" * 32) -> NewEvent:
    identity = ids.new_id(NOW.timestamp())
    return NewEvent(
        identity,
        tenant,
        "4711",
        "order.created",
        None,
        "short",
        TOPIC,
        b"{}",
        "application/json",
        digest,
        None,
        NOW,
        NOW + timedelta(days=1),
        key=key,
    )


class FakeConnection:
    """A connection and a pool at once: answers are given by a part of the statement."""

    def __init__(self, answers: Mapping[str, Any] | None = None) -> None:
        self.answers = dict(answers or {})
        self.said: list[tuple[str, tuple[Any, ...]]] = []
        self.error: BaseException | None = None

    def _answer(self, query: str, values: tuple[Any, ...], default: Any) -> Any:
        if self.error:
            raise self.error
        self.said.append((" ".join(query.split()), values))
        for part, answer in self.answers.items():
            if part in self.said[-1][0]:
                return answer(*values) if callable(answer) else answer
        return default

    async def fetch(self, query: str, *values: Any, timeout: float = 0) -> Any:
        return self._answer(query, values, [])

    async def fetchrow(self, query: str, *values: Any) -> Any:
        return self._answer(query, values, None)

    async def fetchval(self, query: str, *values: Any) -> Any:
        return self._answer(query, values, None)

    async def execute(self, query: str, *values: Any) -> Any:
        return self._answer(query, values, "DELETE 0")

    @contextlib.asynccontextmanager
    async def acquire(self, timeout: float = 0) -> AsyncIterator[FakeConnection]:
        yield self

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        yield

    def values(self, part: str) -> list[tuple[Any, ...]]:
        return [values for query, values in self.said if part in query]


# --- group commit -----------------------------------------------------------------------------------------------------


class Recorder:
    """Stores groups, slowly enough for others to gather."""

    def __init__(self) -> None:
        self.groups: list[list[NewEvent]] = []
        self.fail: dict[str, list[BaseException]] = {}
        self.gate = asyncio.Event()

    async def accept(self, events: Sequence[NewEvent]) -> list[Stored]:
        self.groups.append(list(events))
        await self.gate.wait()
        for item in events:
            if errors := self.fail.get(item.key or ""):
                raise errors.pop(0)
        return [Stored(item.id, seq=number) for number, item in enumerate(events)]


def test_what_arrives_meanwhile_is_committed_together() -> None:
    async def story() -> None:
        recorder, sizes = Recorder(), list[int]()
        group = GroupCommit(recorder.accept, largest=4, parallel=1, observe=sizes.append)
        given_events = [[event()], [event()], [event(), event()], [event(), event()], [event()]]
        waiting = [asyncio.create_task(group.add(events)) for events in given_events]
        await asyncio.sleep(0)
        recorder.gate.set()
        answers = await asyncio.gather(*waiting)
        assert [[item.id for item in answer] for answer in answers] == [
            [item.id for item in events] for events in given_events
        ]
        assert sizes == [4, 3]
        await group.drain()

    asyncio.run(story())


def test_one_bad_event_does_not_harm_its_neighbours() -> None:
    async def story() -> None:
        recorder = Recorder()
        recorder.fail["bad"] = [ValueError("not storable")] * 9
        group = GroupCommit(recorder.accept, parallel=1)
        first = asyncio.create_task(group.add([event()]))
        await asyncio.sleep(0)
        tasks = [asyncio.create_task(group.add([event(key)])) for key in ("good", "bad", "fine")]
        await asyncio.sleep(0)
        recorder.gate.set()
        await first
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(answer, ValueError) for answer in answers] == [False, True, False]

    asyncio.run(story())


def test_a_lost_connection_fails_the_whole_group_and_a_deadlock_none() -> None:
    async def story() -> None:
        recorder = Recorder()
        recorder.gate.set()
        group = GroupCommit(recorder.accept, unavailable=(OSError,), again=(asyncpg.DeadlockDetectedError,))
        recorder.fail["lost"] = [ConnectionResetError()]
        with pytest.raises(ConnectionResetError):
            await group.add([event("lost")])
        recorder.fail["dead"] = [asyncpg.DeadlockDetectedError()]
        assert len(await group.add([event("dead")])) == 1

    asyncio.run(story())


def test_a_request_that_goes_away_does_not_stop_its_commit() -> None:
    async def story() -> None:
        recorder = Recorder()
        group = GroupCommit(recorder.accept, unavailable=(OSError,))
        gone = [asyncio.create_task(group.add([event(key)])) for key in (None, "lost", None)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        recorder.fail["lost"] = [ConnectionResetError()]
        recorder.gate.set()
        await asyncio.gather(*gone, return_exceptions=True)
        await group.drain()
        assert sum(map(len, recorder.groups)) == 3

    asyncio.run(story())


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20), st.integers(1, 8), st.integers(1, 3))
def test_every_request_gets_its_own_answer(sizes: list[int], largest: int, parallel: int) -> None:
    async def story() -> None:
        recorder = Recorder()
        recorder.gate.set()
        group = GroupCommit(recorder.accept, largest, parallel)
        requests = [[event() for _ in range(size)] for size in sizes]
        answers = await asyncio.gather(*map(group.add, requests))
        assert [[item.id for item in answer] for answer in answers] == [[e.id for e in events] for events in requests]
        assert all(len(events) <= max(largest, *sizes) for events in recorder.groups)

    asyncio.run(story())


# --- store ------------------------------------------------------------------------------------------------------------


def test_keys_are_taken_in_one_order_and_answers_keep_theirs() -> None:
    given_events = [event("b"), event(None), event("a"), event("a", "zeta", b"y" * 32)]
    earlier = ids.new_id(NOW.timestamp() - 60)

    def accept(*columns: list[Any]) -> list[dict[str, Any]]:
        keys = columns[store.COLUMNS.index("key")]
        assert keys == [None, "a", "b", "a"]
        return [{"id": columns[0][0], "seq": 1}, {"id": columns[0][2], "seq": 2}]

    rows = [
        {"tenant": "acme", "key": "a", "body_hash": b"x" * 32, "event_id": earlier, "waiting": True},
        {"tenant": "zeta", "key": "a", "body_hash": b"x" * 32, "event_id": earlier, "waiting": False},
    ]
    connection = FakeConnection({"INSERT INTO bridge.event": accept, "FROM bridge.idempotency": rows})
    answers = asyncio.run(EventStore(connection).accept(given_events))
    assert answers == [
        Stored(given_events[0].id, seq=2),
        Stored(given_events[1].id, seq=1),
        Stored(earlier, fresh=False, same=True, waiting=True),
        Stored(earlier, fresh=False, same=False, waiting=False),
    ]


def test_questions_name_the_day_and_the_tenant() -> None:
    connection = FakeConnection({"SELECT e.*": {"id": 1}})
    events = EventStore(connection)
    identity = ids.new_id(NOW.timestamp())
    assert asyncio.run(events.find("acme", identity)) == {"id": 1}
    assert connection.said[0][1] == (date(2026, 11, 23), identity, "acme")
    assert asyncio.run(events.find("acme", UUID(int=1))) is None
    connection.answers = {"state = 'dead'": [{"id": 1}]}
    assert asyncio.run(events.dead("acme", None, "short", 10, False)) == [{"id": 1}]
    asyncio.run(events.replaced("acme", identity, identity))
    assert "SET replaced_by" in connection.said[-1][0]


def test_cancelling_takes_the_message_out_of_the_outbox() -> None:
    identity = ids.new_id(NOW.timestamp())
    connection = FakeConnection({"'cancelled', now()": identity})
    assert asyncio.run(EventStore(connection).cancel("acme", identity))
    assert connection.values("DELETE FROM bridge.outbox") == [(identity,)]
    refused = FakeConnection()
    assert not asyncio.run(EventStore(refused).cancel("acme", identity))
    assert refused.values("DELETE FROM bridge.outbox") == []


def test_claims_in_the_database() -> None:
    identity = ids.new_id(NOW.timestamp())
    granted = EventStore(FakeConnection({"INSERT INTO bridge.claim": "815"}))
    assert asyncio.run(granted.claim("acme", identity, "815", 60)) == store.Claim("815", done=False, granted=True)
    held = EventStore(FakeConnection({"SELECT execution, done_at": {"execution": "814", "done_at": NOW}}))
    assert asyncio.run(held.claim("acme", identity, "815", 60)) == store.Claim("814", done=True)
    assert asyncio.run(held.claim_done("acme", identity, "815")) == store.Claim("814", done=True)
    assert asyncio.run(EventStore(FakeConnection()).claim_done("acme", identity, "815")) is None


def test_usage_is_added_up() -> None:
    connection = FakeConnection({"INSERT INTO bridge.usage": [{"tenant": "a", "events": 7, "bytes": 70}]})
    found = asyncio.run(EventStore(connection).add_usage(date(2026, 11, 23), {"b": (2, 20), "a": (1, 10)}))
    assert found == {"a": (7, 70)}
    assert connection.said[0][1] == (date(2026, 11, 23), ["a", "b"], [1, 2], [10, 20])


# --- outbox -----------------------------------------------------------------------------------------------------------


class FakeSender:
    """Pulsar for the outbox."""

    def __init__(self) -> None:
        self.enabled = True
        self.open: set[str] = {TOPIC, "dealscale.deadletter.workflow.short"}
        self.failing: set[str] = set()
        self.messages: list[tuple[str, bytes, Mapping[str, str]]] = []
        self.prepared: list[str] = []

    async def prepare(self, topics: list[str]) -> None:
        self.prepared = topics

    def connected(self, topic: str) -> bool:
        return topic in self.open

    def submit(self, topic: str, payload: bytes, properties: Mapping[str, str]) -> asyncio.Future[str]:
        self.messages.append((topic, payload, properties))
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if topic in self.failing:
            future.set_exception(NotStoredError("Timeout"))
        else:
            future.set_result("1:1:0:-1")
        return future


EVENT_COLUMNS = ("id", "execution_id", "type", "traceparent", "created_at", "expires_at")


def row(seq: int, topic: str = TOPIC, **more: Any) -> dict[str, Any]:
    base = event()
    found = {name: getattr(base, name) for name in EVENT_COLUMNS}
    return {"seq": seq, "event_id": base.id, "topic": topic, "tenant": "acme", "reason": None, "event": found, **more}


class OutboxStage:
    """An outbox with a fake database and a fake Pulsar."""

    def __init__(self, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        topics = [{"topic": topic} for topic in sorted({item["topic"] for item in rows})]
        self.connection = FakeConnection(
            {
                "SELECT DISTINCT topic": topics,
                "SELECT seq, event_id": list(rows),
                "FROM bridge.event": [item["event"] for item in rows if item["event"]],
            }
        )
        self.sender = FakeSender()
        self.keyring = Keyring.of("m" * 40)
        self.registry = CollectorRegistry()
        self.outbox = Outbox(
            self.connection, self.sender, self.keyring, Limits(outbox_rows=100), PublishMetrics(self.registry)
        )


def test_the_sweeper_publishes_what_is_left() -> None:
    async def story() -> None:
        dead = row(2, "dealscale.deadletter.workflow.short", reason="410 Gone")
        stage = OutboxStage([row(1), dead, row(3, event=None)])
        assert await stage.outbox.sweep() == 2
        assert stage.sender.prepared == ["dealscale.deadletter.workflow.short", TOPIC]
        assert stage.connection.values("DELETE FROM bridge.outbox") == [([1, 2, 3],)]
        topic, payload, properties = stage.sender.messages[1]
        assert properties["reason"] == "410 Gone"
        assert stage.keyring.verify(properties, payload, topic, datetime.now(UTC).timestamp()).tenant == "acme"
        assert stage.registry.get_sample_value("bridge_outbox_swept_total", {"topic": TOPIC}) == 1

    asyncio.run(story())


def test_what_pulsar_does_not_take_is_postponed() -> None:
    async def story() -> None:
        stage = OutboxStage([row(1), row(2, "dealscale.deadletter.workflow.short")])
        stage.sender.failing = {TOPIC}
        assert await stage.outbox.sweep() == 1
        assert stage.connection.values("DELETE FROM bridge.outbox") == [([2],)]
        assert stage.connection.values("attempts = attempts + 1") == [([1], outbox.PATIENCE_SECONDS)]

    asyncio.run(story())


def test_nothing_is_taken_for_topics_that_cannot_be_reached() -> None:
    async def story() -> None:
        stage = OutboxStage([row(1)])
        stage.sender.open = set()
        assert await stage.outbox.sweep() == 0
        assert stage.connection.values("SELECT seq, event_id") == []
        stage.sender.enabled = False
        assert await stage.outbox.sweep() == 0

    asyncio.run(story())


def test_rows_are_forgotten_together_and_kept_when_that_fails() -> None:
    async def story() -> None:
        stage = OutboxStage()
        await stage.outbox.forget()
        assert stage.connection.said == []
        for seq in (1, 2, 3):
            stage.outbox.stored(seq)
        stage.connection.error = ConnectionResetError()
        with pytest.raises(ConnectionResetError):
            await stage.outbox.forget()
        stage.connection.error = None
        stage.outbox.stored(4)
        stage.outbox.failed(5)
        await stage.outbox.forget()
        assert stage.connection.values("DELETE FROM bridge.outbox") == [([1, 2, 3, 4],)]
        assert stage.connection.values("not_before = now()") == [([5],)]

    asyncio.run(story())


def test_the_backlog_is_looked_at() -> None:
    async def story() -> None:
        stage = OutboxStage()
        stage.connection.answers["extract(epoch"] = [
            {"topic": TOPIC, "rows": 60, "age": 12.5},
            {"topic": "a.b.c", "rows": 40, "age": 1.0},
        ]
        await stage.outbox.look()
        assert stage.outbox.backlog == Backlog(100, {TOPIC: 12.5, "a.b.c": 1.0})
        assert stage.registry.get_sample_value("bridge_outbox_age_seconds") == 12.5
        assert stage.outbox.backlog.refusal(TOPIC, Limits(outbox_rows=100)) is not None
        assert stage.outbox.backlog.refusal(TOPIC, Limits(outbox_age_seconds=10)) is not None
        assert stage.outbox.backlog.refusal("a.b.c", Limits(outbox_age_seconds=10)) is None

    asyncio.run(story())


def test_the_outbox_works_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        stage = OutboxStage([row(1)])
        task = asyncio.create_task(stage.outbox.run())
        stage.outbox.stored(7)

        async def seen(part: str) -> None:
            while not stage.connection.values(part):
                await asyncio.sleep(0.001)

        for part in ("DELETE FROM bridge.outbox", "extract(epoch", "SELECT seq, event_id"):
            await asyncio.wait_for(seen(part), 60)
        stage.outbox.stored(8)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        forgotten = [seq for (seqs,) in stage.connection.values("DELETE FROM bridge.outbox") for seq in seqs]
        assert {7, 8} <= set(forgotten)

    monkeypatch.setattr(outbox, "FORGET_SECONDS", 0.001)
    asyncio.run(story())


def test_work_goes_on_after_failures(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[BaseException] = [ConnectionResetError("away"), ValueError("a bug")]
    pauses: list[float] = []

    async def work() -> None:
        if errors:
            raise errors.pop(0)

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", pause)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(outbox.forever("work", work, 1.0))
    assert pauses == [2.0, 3.0, 1.0, 1.0]
    assert "PostgreSQL does not answer" in caplog.text
    assert "a bug" in caplog.text


# --- upkeep -----------------------------------------------------------------------------------------------------------


def test_partitions_are_made_ahead_and_old_ones_dropped() -> None:
    today = date(2026, 11, 23)
    names = [{"name": f"event_202611{day:02}"} for day in (5, 6, 22, 23)]
    open_day = ids.first_id(date(2026, 11, 6))
    counts = {"SELECT (SELECT count(*)": lambda low, high: 3 if low == open_day else 0}
    deletes = iter(["DELETE 10000", "DELETE 5", "DELETE 0", "DELETE 1"])
    connection = FakeConnection(
        {"FROM pg_inherits": names, **counts, "DELETE FROM bridge": lambda *_: next(deletes, "DELETE 0")}
    )
    done = asyncio.run(maintain.run(connection, Retention(ahead_days=2), today))
    assert done.created == ["event_20261124", "event_20261125"]
    assert done.dropped == ["event_20261105"]
    assert done.kept == ["event_20261106"]
    assert done.deleted == {"delivery": 10005, "claim": 0, "idempotency": 1}
    # What belongs to the day that is kept is kept as well.
    assert connection.values("DELETE FROM bridge.delivery")[0] == (open_day,)
    assert connection.values("DELETE FROM bridge.idempotency")[0] == (ids.first_id(date(2026, 11, 21)),)
    assert connection.values("SET LOCAL lock_timeout")
    assert connection.values("SELECT pg_advisory_xact_lock")[0] == (db.SCHEMA_LOCK,)


# --- the pool ---------------------------------------------------------------------------------------------------------


def test_the_pool_waits_for_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bridge_db_password").write_text("secret")
    settings = Settings(environment="test", database=Database(host="db"), n8n=N8n(urls=[]), secrets_dir=tmp_path)
    tries: list[dict[str, Any]] = []

    async def create_pool(**options: Any) -> str:
        tries.append(options)
        if len(tries) < 3:
            raise ConnectionRefusedError("down")
        return "pool"

    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setattr(asyncpg, "create_pool", create_pool)
    assert asyncio.run(db.open_pool(settings, "test", retry=0)) == "pool"
    assert tries[0]["password"]() == "secret"
    assert tries[0]["ssl"] is False
    asyncio.run(tries[0]["reset"](None))
    assert tries[0]["server_settings"]["application_name"] == "test"
    (tmp_path / "ca.crt").write_text("no certificate")
    with pytest.raises(OSError, match=r"(?i)pem|certificate|no start line"):
        db.options(
            Settings(environment="t", database=Database(host="db", ca_file=tmp_path / "ca.crt"), n8n=N8n(urls=[])), "t"
        )

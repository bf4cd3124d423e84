# SPDX-License-Identifier: GPL-3.0-or-later
"""A consumer process as a whole: its start, its work, its orderly end, and what it refuses to start with."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from n8n_platform.bridge import broker, db, deliveries_sql, receiver, settings
from n8n_platform.bridge.consumer import addresses, caller, process
from n8n_platform.bridge.settings import Settings, SettingsError

from files.platform.tests.bridge.consumer_fakes import KEYS, TOPIC, FakeN8n, event, message

ROUTES = """\
version: 1
routes:
  - {name: short, topic: dealscale.workflow.short, webhook: "/webhook/{workflow}"}
"""


class FakePool:
    """One event, known by its queries."""

    def __init__(self) -> None:
        self.item = event()
        self.ends: list[str] = []
        self.closed = False

    async def fetch(self, query: str, *arguments: Any) -> list[Any]:
        if query == deliveries_sql.LOOK:
            return [{"id": self.item.id, "tenant": "acme", "route": "short", "topic": TOPIC, "state": None}]
        if query == deliveries_sql.TAKE:
            return [{**vars(self.item), "state": "leased"}]
        if query == deliveries_sql.END:
            self.ends += arguments[2]
            return [{"event_id": item} for item in arguments[0]]
        if query == deliveries_sql.COUNTS:
            return [{"retry": 0, "dead": 0}]
        return []

    async def fetchval(self, query: str, *arguments: Any) -> int:
        return 1 if query in (deliveries_sql.FORMER, deliveries_sql.OWN) else 0

    async def close(self) -> None:
        self.closed = True


class FakeReceiver:
    """A receiver that works with what a test gives to its handler."""

    made: list[FakeReceiver] = []  # noqa: RUF012

    def __init__(self, topic: str, subscribe: Any, handle: Any, loop: Any, silence: Any) -> None:
        self.topic, self.handle = topic, handle
        self.steps: list[str] = []
        self.made.append(self)

    def start(self) -> None:
        self.steps.append("start")

    def stop(self) -> None:
        self.steps.append("stop")

    async def join(self) -> None:
        self.steps.append("join")

    async def close(self) -> None:
        self.steps.append("close")

    def trouble(self) -> str | None:
        return "no broker is connected"


class FakeClient:
    closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def made(tmp_path: Path) -> Settings:
    """Return settings whose files exist."""
    for name, value in {
        "bridge_db_password": "x",
        "bridge_signing_key": "a-master-secret-of-length",
        "bridge_webhook_secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    }.items():
        (tmp_path / name).write_text(value)
    (tmp_path / "routes.yml").write_text(ROUTES)
    values = {
        "environment": "test",
        "database": {"host": "/run"},
        "n8n": {"urls": ["http://n8n"]},
        "pulsar": {"url": "pulsar://127.0.0.1:1"},
        "consumer": {"ops_base": 1},
        "delivery": {"stop_seconds": 0.2},
        "secrets_dir": str(tmp_path),
        "routes_file": str(tmp_path / "routes.yml"),
    }
    (tmp_path / "settings.json").write_text(json.dumps(values))
    return settings.load(tmp_path / "settings.json")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> tuple[FakePool, FakeN8n, FakeClient]:
    """Put fakes in the place of PostgreSQL, Pulsar and n8n."""
    pool, n8n, client = FakePool(), FakeN8n(), FakeClient()

    async def open_pool(*arguments: Any) -> FakePool:
        return pool

    FakeReceiver.made = []
    monkeypatch.setattr(db, "open_pool", open_pool)
    monkeypatch.setattr(broker, "connect", lambda *arguments: client)
    monkeypatch.setattr(receiver, "Receiver", FakeReceiver)
    monkeypatch.setattr(caller, "client", lambda *a: httpx.AsyncClient(transport=httpx.MockTransport(n8n.handle)))
    return pool, n8n, client


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def started(made: Settings, world: Any) -> process.Process:
    found = process.Process(made, -1)
    # Port 0: the system picks one.
    assert found.ops_port == 0
    await found.start()
    await until(lambda: bool(FakeReceiver.made) and bool(found.addresses.ready))
    return found


def test_a_message_goes_all_the_way(made: Settings, world: Any) -> None:
    pool, n8n, client = world

    async def run() -> None:
        found = await started(made, world)
        assert (FakeReceiver.made[0].topic, FakeReceiver.made[0].steps) == (TOPIC, ["start"])
        await FakeReceiver.made[0].handle([message(pool.item, issued_at=int(time.time()))])
        await until(lambda: pool.ends == ["done"])
        assert str(n8n.requests[0].url) == "http://n8n/webhook/orders"
        assert (await found.health.problems()) == {TOPIC: "no broker is connected"}
        await found.stop()
        assert FakeReceiver.made[0].steps == ["start", "stop", "join", "close"]
        assert client.closed
        assert pool.closed
        assert found.health.stopping

    asyncio.run(run())


def test_calls_that_take_too_long_at_the_end_are_left(made: Settings, world: Any) -> None:
    pool, n8n, _ = world

    async def run() -> None:
        n8n.gate.clear()
        found = await started(made, world)
        await FakeReceiver.made[0].handle([message(pool.item, issued_at=int(time.time()))])
        await until(lambda: bool(n8n.requests))
        await found.stop()
        assert pool.ends == []
        assert pool.closed

    asyncio.run(run())


def test_new_routes_count_and_bad_ones_are_reported(
    made: Settings, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "TOPICS_SECONDS", 0.01)

    async def run() -> None:
        found = await started(made, world)
        found.routes.every_s = 0
        made.routes_file.write_text(ROUTES.replace("workflow.short", "workflow.long"))
        await until(lambda: len(FakeReceiver.made) == 2)
        made.routes_file.write_text("nonsense")
        await until(lambda: found.route_metrics.failures._value.get() > 0)
        assert set(found.receivers) == {TOPIC, "dealscale.workflow.long"}
        await found.stop()

    asyncio.run(run())


def test_a_scheduler_that_is_stuck_is_reported(made: Settings, world: Any) -> None:
    async def run() -> None:
        found = await started(made, world)
        found.scheduler.last_pass -= 100
        # Asked at once: a pass might begin in between.
        assert "no pass for 1" in str(await found.health.checks["scheduler"]())
        await found.stop()

    asyncio.run(run())


def test_nothing_is_begun_while_n8n_cannot_be_called(
    made: Settings, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, n8n, _ = world
    monkeypatch.setattr(addresses, "EVERY_SECONDS", 0.01)

    async def run() -> None:
        found = await started(made, world)
        n8n.readiness = lambda request: 503
        await until(lambda: found.limits.closed)
        assert (await found.health.problems())["n8n"] == "no webhook process can be called"
        handling = asyncio.create_task(FakeReceiver.made[0].handle([message(pool.item, issued_at=int(time.time()))]))
        await asyncio.sleep(0.05)
        assert n8n.requests == []
        n8n.readiness = lambda request: 200
        await until(lambda: pool.ends == ["done"])
        await handling
        await found.stop()

    asyncio.run(run())


def test_the_end_is_asked_for_by_a_signal(made: Settings, world: Any) -> None:
    pool, _, _ = world

    async def run() -> None:
        serving = asyncio.create_task(process.serve(made, -1))
        await until(lambda: bool(FakeReceiver.made))
        os.kill(os.getpid(), signal.SIGTERM)
        await serving

    asyncio.run(run())
    assert pool.closed


def test_it_can_be_stopped_before_the_database_answers(
    made: Settings, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = []

    async def open_pool(*arguments: Any) -> None:
        waiting.append(True)
        await asyncio.Event().wait()

    monkeypatch.setattr(db, "open_pool", open_pool)

    async def run() -> None:
        serving = asyncio.create_task(process.serve(made, -1))
        await until(lambda: bool(waiting))
        os.kill(os.getpid(), signal.SIGTERM)
        await serving

    asyncio.run(run())


def test_the_database_is_part_of_its_health(made: Settings, world: Any) -> None:
    async def run() -> None:
        found = process.Process(made, -1)
        assert await found._database() == "not connected yet"
        await found.broker.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("routes.yml", "nonsense", r"routes\.yml:1: the file must be a mapping"),
        ("bridge_signing_key", "short", "a key to sign messages with must have 16 bytes or more"),
        ("bridge_webhook_secret", "whsec_!", "a webhook secret is 'whsec_' and base64"),
    ],
)
def test_it_does_not_start_with_bad_files(made: Settings, name: str, content: str, sentence: str) -> None:
    (made.secrets_dir / name).write_text(content)
    with pytest.raises(SettingsError, match=sentence):
        process.run(made, -1)


def test_previous_keys_live_on(made: Settings) -> None:
    (made.secrets_dir / "bridge_webhook_secret_previous").write_text(
        "whsec_" + "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
    )
    (made.secrets_dir / "bridge_signing_key_previous").write_text("the-previous-master-key")
    assert process.webhook_keys(made)[1] == KEYS[0]
    assert len(process.keyring(made).masters) == 2

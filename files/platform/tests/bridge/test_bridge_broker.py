"""Messages to Pulsar: what counts as stored, and what happens while it is away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from n8n_platform.bridge.broker import Broker, NotStoredError
from n8n_platform.bridge.metrics import BrokerMetrics
from n8n_platform.bridge.settings import Database, N8n, Pulsar, Settings
from prometheus_client import CollectorRegistry

TOPIC = "dealscale.workflow.short"
SETTINGS = Settings(
    environment="test", database=Database(host="/"), n8n=N8n(urls=[]), pulsar=Pulsar(url="pulsar://127.0.0.1:1")
)


def identity(ledger: int, entry: int = 0) -> Any:
    return SimpleNamespace(
        ledger_id=lambda: ledger, entry_id=lambda: entry, partition=lambda: 0, batch_index=lambda: -1
    )


class FakeProducer:
    """Answers from a thread of its own, as the real one does."""

    def __init__(self) -> None:
        self.connected = True
        self.result = "Ok"
        self.ledger = 7
        self.silent = False
        self.error: Exception | None = None
        self.sent: list[bytes] = []
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()

    def is_connected(self) -> bool:
        return self.connected

    def send_async(self, content: bytes, callback: Callable[..., None], properties: Mapping[str, str]) -> None:
        if self.error:
            raise self.error
        self.sent.append(content)
        if not self.silent:
            arguments = (SimpleNamespace(name=self.result), identity(self.ledger, len(self.sent)))
            threading.Thread(target=callback, args=arguments).start()


class FakeClient:
    """Opens producers, or fails to."""

    def __init__(self) -> None:
        self.producer = FakeProducer()
        self.failures = 0
        self.opened: list[tuple[str, dict[str, Any]]] = []
        self.closed = False

    def create_producer(self, topic: str, **options: Any) -> FakeProducer:
        self.opened.append((topic, options))
        if self.failures:
            self.failures -= 1
            raise RuntimeError("Timeout")
        return self.producer

    def close(self) -> None:
        self.closed = True


class Stage:
    """A broker with a fake client and a clock that stands still."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.client = FakeClient()
        self.now = 0.0
        self.registry = CollectorRegistry()
        metrics = BrokerMetrics(self.registry)
        self.broker = Broker(settings, "token", metrics, lambda *_: self.client, lambda: self.now)

    def not_stored(self, reason: str) -> float:
        return self.registry.get_sample_value("bridge_pulsar_not_stored_total", {"reason": reason}) or 0.0


async def outcome(future: asyncio.Future[str]) -> str:
    try:
        return await asyncio.wait_for(asyncio.shield(future), 60)
    except NotStoredError as error:
        return error.reason


def test_a_receipt_gives_the_message_id() -> None:
    async def story() -> None:
        stage = Stage()
        await stage.broker.prepare([TOPIC])
        assert stage.broker.available(TOPIC)
        results = await asyncio.gather(*(outcome(stage.broker.submit(TOPIC, b"x", {})) for _ in range(50)))
        assert sorted(results) == sorted(f"7:{number}:0:-1" for number in range(1, 51))
        assert stage.broker.pending == 0
        topic, options = stage.client.opened[0]
        assert topic == "persistent://dealscale/workflow/short"
        assert options["batching_enabled"] is True
        assert options["send_timeout_millis"] == 5000
        assert len(stage.client.opened) == 1
        assert stage.registry.get_sample_value("bridge_pulsar_send_seconds_count") == 50
        await stage.broker.close()
        assert stage.client.closed

    asyncio.run(story())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ledger": -1}, "no_ledger"),
        ({"result": "Timeout"}, "Timeout"),
        ({"connected": False}, "disconnected"),
        ({"error": ValueError("too large")}, "refused"),
    ],
)
def test_what_does_not_count_as_stored(change: dict[str, Any], reason: str) -> None:
    async def story() -> None:
        stage = Stage()
        await stage.broker.prepare([TOPIC])
        vars(stage.client.producer).update(change)
        assert await outcome(stage.broker.submit(TOPIC, b"x", {})) == reason
        assert stage.not_stored(reason) == 1
        assert reason == "refused" or not stage.broker.available(TOPIC)
        assert stage.broker.pending == 0
        await stage.broker.close()

    asyncio.run(story())


def test_after_a_failure_only_the_outbox_tries() -> None:
    async def story() -> None:
        stage = Stage()
        await stage.broker.prepare([TOPIC])
        stage.client.producer.result = "Timeout"
        assert await outcome(stage.broker.submit(TOPIC, b"x", {})) == "Timeout"
        assert not stage.broker.available(TOPIC)
        assert stage.broker.connected(TOPIC)
        stage.client.producer.result = "Ok"
        assert await outcome(stage.broker.submit(TOPIC, b"x", {})) == "7:2:0:-1"
        assert stage.broker.available(TOPIC)
        stage.client.producer.result = "Timeout"
        await outcome(stage.broker.submit(TOPIC, b"x", {}))
        stage.now = 10
        assert stage.broker.available(TOPIC)
        await stage.broker.close()

    asyncio.run(story())


def test_a_producer_is_opened_for_the_first_message() -> None:
    async def story() -> None:
        stage = Stage()
        assert not stage.broker.available(TOPIC)
        futures = [stage.broker.submit(TOPIC, b"x", {}) for _ in range(3)]
        assert {await outcome(future) for future in futures} == {"7:1:0:-1", "7:2:0:-1", "7:3:0:-1"}
        assert len(stage.client.opened) == 1
        await stage.broker.close()

    asyncio.run(story())


def test_attempts_to_open_a_producer_are_spaced() -> None:
    async def story() -> None:
        stage = Stage()
        stage.client.failures = 2
        assert await outcome(stage.broker.submit(TOPIC, b"x", {})) == "unavailable"
        assert await outcome(stage.broker.submit(TOPIC, b"x", {})) == "unavailable"
        assert len(stage.client.opened) == 1
        stage.now = 1.1
        await stage.broker.prepare([TOPIC])
        assert len(stage.client.opened) == 2
        stage.now = 2.9
        assert await outcome(stage.broker.submit(TOPIC, b"x", {})) == "unavailable"
        assert len(stage.client.opened) == 2
        stage.now = 3.2
        assert await outcome(stage.broker.submit(TOPIC, b"x", {})) == "7:1:0:-1"
        assert stage.not_stored("unavailable") == 3
        await stage.broker.close()

    asyncio.run(story())


def test_a_producer_that_stays_away_is_opened_anew() -> None:
    async def story() -> None:
        stage = Stage()
        await stage.broker.prepare([TOPIC])
        old = stage.client.producer
        old.connected = False
        await stage.broker.prepare([TOPIC])
        stage.now = 19
        await stage.broker.prepare([TOPIC])
        assert len(stage.client.opened) == 1
        # It came back meanwhile: the time begins anew.
        old.connected = True
        await stage.broker.prepare([TOPIC])
        old.connected = False
        stage.now = 30
        await stage.broker.prepare([TOPIC])
        stage.now = 51
        stage.client.producer = FakeProducer()
        assert not stage.broker.available(TOPIC)
        await stage.broker.prepare([TOPIC])
        assert stage.broker.available(TOPIC)
        assert len(stage.client.opened) == 2
        assert await asyncio.to_thread(old.closed.wait, 60)
        # The same happens to who only sends.
        stage.client.producer.connected = False
        assert await outcome(stage.broker.submit(TOPIC, b"x", {})) == "disconnected"
        stage.now = 72
        assert await outcome(stage.broker.submit(TOPIC, b"x", {})) == "disconnected"
        stage.client.producer = FakeProducer()
        assert await outcome(stage.broker.submit(TOPIC, b"x", {})) == "7:1:0:-1"
        await stage.broker.close()

    asyncio.run(story())


def test_without_pulsar_nothing_is_sent() -> None:
    async def story() -> None:
        bare = Settings(environment="test", database=Database(host="/"), n8n=N8n(urls=[]))
        stage = Stage(bare)
        assert not stage.broker.enabled
        await stage.broker.prepare([TOPIC])
        assert await outcome(stage.broker.submit(TOPIC, b"x", {})) == "disabled"
        await stage.broker.close()

    asyncio.run(story())


def test_receipts_that_come_too_late_harm_nobody() -> None:
    async def story() -> Callable[..., None]:
        stage = Stage()
        await stage.broker.prepare([TOPIC])
        late: list[Callable[..., None]] = []

        def send(content: bytes, callback: Callable[..., None], properties: Mapping[str, str]) -> None:
            late.append(callback)

        stage.client.producer.send_async = send  # type: ignore[method-assign]
        future = stage.broker.submit(TOPIC, b"x", {})
        done, _ = await asyncio.wait([future], timeout=0.01)
        assert not done
        future.cancel()
        late[0](SimpleNamespace(name="Ok"), identity(1))
        await stage.broker.close()
        assert await outcome(stage.broker.submit(TOPIC, b"x", {})) == "disconnected"
        return late[0]

    callback = asyncio.run(story())
    # The event loop has ended by now.
    callback(SimpleNamespace(name="Ok"), identity(1))

# SPDX-License-Identifier: GPL-3.0-or-later
"""Receiving from Pulsar and settling messages, with a client made of queues."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any

import pytest
from n8n_platform.bridge import receiver as module
from n8n_platform.bridge.receiver import BATCH, Received, Receiver, Settler

TOPIC = "dealscale.workflow.short"


class SilenceError(Exception):
    """Nothing came in time."""


class FakeId:
    def __init__(self, number: int) -> None:
        self.number = number

    def ledger_id(self) -> int:
        return 7

    def entry_id(self) -> int:
        return self.number

    def partition(self) -> int:
        return -1

    def batch_index(self) -> int:
        return 0


class FakeMessage:
    def __init__(self, number: int) -> None:
        self.number = number

    def message_id(self) -> FakeId:
        return FakeId(self.number)

    def data(self) -> bytes:
        return b"%d" % self.number

    def properties(self) -> dict[str, str]:
        return {"kid": "k"}


class FakeConsumer:
    """Gives messages that are put into its queue; an exception there is raised."""

    def __init__(self) -> None:
        self.queue: queue.Queue[FakeMessage | Exception] = queue.Queue()
        self.connected = True
        self.closed = False
        self.settled: list[tuple[str, Any]] = []

    def receive(self, timeout_millis: int) -> FakeMessage:
        try:
            found = self.queue.get(timeout=min(timeout_millis, 20) / 1000)
        except queue.Empty:
            raise SilenceError from None
        if isinstance(found, Exception):
            raise found
        return found

    def is_connected(self) -> bool:
        return self.connected

    def close(self) -> None:
        self.closed = True
        raise OSError("already closed")

    def acknowledge(self, handle: Any) -> None:
        if handle == "bad":
            raise OSError("not connected")
        self.settled.append(("good", handle))

    def negative_acknowledge(self, handle: Any) -> None:
        self.settled.append(("bad", handle))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


class Scene:
    """A receiver among fakes. Make it inside an event loop."""

    def __init__(self, *consumers: FakeConsumer | Exception) -> None:
        self.consumers = list(consumers)
        self.addresses: list[str] = []
        self.batches: list[list[Received]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.receiver = Receiver(TOPIC, self.subscribe, self.handle, asyncio.get_running_loop(), SilenceError)

    def subscribe(self, address: str) -> FakeConsumer:
        self.addresses.append(address)
        found = self.consumers.pop(0) if self.consumers else OSError("no broker")
        if isinstance(found, Exception):
            raise found
        return found

    async def handle(self, batch: list[Received]) -> None:
        self.batches.append(batch)
        await self.gate.wait()

    async def end(self) -> None:
        """Stop everything."""
        self.receiver.stop()
        self.gate.set()
        await self.receiver.join()
        await self.receiver.close()

    @property
    def ids(self) -> list[str]:
        """The messages that were handed over, in order."""
        return [message.message_id for batch in self.batches for message in batch]


def test_messages_are_handed_over_in_order() -> None:
    async def run() -> None:
        consumer = FakeConsumer()
        scene = Scene(consumer)
        assert scene.receiver.trouble() == "not subscribed yet"
        for number in range(BATCH + 20):
            consumer.queue.put(FakeMessage(number))
        scene.receiver.start()
        await until(lambda: len(scene.ids) == BATCH + 20)
        assert scene.ids == [f"7:{number}:-1:0" for number in range(BATCH + 20)]
        assert scene.addresses == ["persistent://dealscale/workflow/short"]
        first = scene.batches[0][0]
        assert (first.topic, first.payload, first.properties) == (TOPIC, b"0", {"kid": "k"})
        assert scene.receiver.trouble() is None
        consumer.connected = False
        assert scene.receiver.trouble() == "no broker is connected"
        await scene.end()
        assert consumer.closed

    asyncio.run(run())


def test_nothing_more_is_received_while_a_batch_is_not_taken() -> None:
    async def run() -> None:
        consumer = FakeConsumer()
        scene = Scene(consumer)
        scene.gate.clear()
        consumer.queue.put(FakeMessage(1))
        scene.receiver.start()
        await until(lambda: len(scene.batches) == 1)
        consumer.queue.put(FakeMessage(2))
        await asyncio.sleep(0.05)
        assert consumer.queue.qsize() == 1
        scene.gate.set()
        await until(lambda: len(scene.ids) == 2)
        await scene.end()

    asyncio.run(run())


def test_a_broker_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF", (0.01, 0.02))

    async def run() -> None:
        first, second = FakeConsumer(), FakeConsumer()
        scene = Scene(OSError("no broker"), OSError("no broker"), first, second)
        scene.receiver.start()
        await until(lambda: scene.receiver.consumer is first)
        first.queue.put(FakeMessage(1))
        first.queue.put(OSError("closed"))
        await until(lambda: scene.receiver.consumer is second)
        second.queue.put(FakeMessage(2))
        await until(lambda: "7:2:-1:0" in scene.ids)
        assert first.closed
        await scene.end()

    asyncio.run(run())


def test_what_comes_while_it_stops_is_not_handed_over() -> None:
    async def run() -> None:
        consumer = FakeConsumer()
        scene = Scene(consumer)
        scene.receiver.start()
        await until(lambda: scene.receiver.consumer is consumer)
        scene.receiver.stop()
        consumer.queue.put(FakeMessage(1))
        await scene.end()
        assert scene.batches == []

    asyncio.run(run())


def test_a_loop_that_ended_ends_the_thread() -> None:
    consumer = FakeConsumer()
    holder: list[Receiver] = []

    async def run() -> None:
        scene = Scene(consumer)
        holder.append(scene.receiver)
        scene.receiver.start()
        await until(lambda: scene.receiver.consumer is consumer)

    asyncio.run(run())
    consumer.queue.put(FakeMessage(1))
    holder[0].thread.join(5)
    assert not holder[0].thread.is_alive()


def test_messages_are_settled_in_another_thread() -> None:
    async def run() -> None:
        consumer = FakeConsumer()
        main = threading.get_ident()
        threads: list[int] = []
        acknowledge = consumer.acknowledge

        def watched(handle: Any) -> None:
            threads.append(threading.get_ident())
            acknowledge(handle)

        consumer.acknowledge = watched  # type: ignore[method-assign]
        settler = Settler()

        def message(handle: str) -> Received:
            return Received(TOPIC, handle, b"", {}, consumer, handle)

        settler.acknowledge(message("a"))
        settler.refuse(message("b"))
        settler.acknowledge(message("bad"))
        settler.acknowledge(message("c"))
        await settler.flush()
        assert consumer.settled == [("good", "a"), ("bad", "b"), ("good", "c")]
        assert main not in threads
        await settler.flush()

    asyncio.run(run())


def test_the_subscription_is_shared() -> None:
    class Client:
        def __init__(self) -> None:
            self.call: dict[str, Any] = {}

        def subscribe(self, *arguments: Any, **options: Any) -> str:
            self.call = {"arguments": arguments, **options}
            return "consumer"

    client = Client()
    subscribe = module.subscriber(client, "n8n-bridge", "consumer-1", 50)
    found: Any = subscribe("persistent://a/b/c")
    assert found == "consumer"
    assert client.call["arguments"] == ("persistent://a/b/c", "n8n-bridge")
    assert client.call["consumer_type"].name == "Shared"
    assert client.call["receiver_queue_size"] == 50
    assert issubclass(module.silence(), Exception)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Receiving from Pulsar: one thread for each topic, which never gives up a receive that may bring a message.

The client's asynchronous ``receive`` loses a message when it is cancelled, so the loop lives in a thread, with a
timeout inside the client. A batch is handed to the event loop, and the next one is received only when that has taken
it: what the bridge cannot work on stays in Pulsar.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, Protocol

from n8n_platform.bridge.broker import message_id
from n8n_platform.bridge.ids import pulsar_topic

LOG = logging.getLogger(__name__)
# Longest silent receive, ms: how long it can take to notice that the process stops.
RECEIVE_MS = 500
BATCH = 100
# Seconds between attempts to subscribe, doubled from the first to the second.
BACKOFF = (1.0, 30.0)
# After so many seconds a message that was refused comes again.
REDELIVER_SECONDS = 30


@dataclass(frozen=True)
class Received:
    """A message with all that is needed to settle it later. ``topic`` is the short name."""

    topic: str
    message_id: str
    payload: bytes
    properties: dict[str, str]
    consumer: Any
    handle: Any


class Subscribe(Protocol):
    """Opens a consumer of a topic; blocks, raises when that fails."""

    def __call__(self, address: str) -> Any:
        """Return a consumer of the client."""


Handler = Callable[[list[Received]], Coroutine[Any, Any, None]]


class Receiver:
    """The loop of one topic. ``silence`` is the exception of a receive that brought nothing."""

    def __init__(
        self,
        topic: str,
        subscribe: Subscribe,
        handle: Handler,
        loop: asyncio.AbstractEventLoop,
        silence: type[BaseException],
    ) -> None:
        self.topic, self.subscribe, self.handle, self.loop, self.silence = topic, subscribe, handle, loop, silence
        self.problem: str | None = "not subscribed yet"
        self.stopping = threading.Event()
        self.consumer: Any = None
        self.thread = threading.Thread(target=self._run, name=f"receive {topic}", daemon=True)

    def start(self) -> None:
        """Begin to receive."""
        self.thread.start()

    def stop(self) -> None:
        """Ask the loop to end; it hands over nothing more, what it still receives comes again after close."""
        self.stopping.set()

    async def join(self) -> None:
        """Wait until the loop has ended."""
        while self.thread.is_alive():
            await asyncio.to_thread(self.thread.join, 1.0)

    async def close(self) -> None:
        """Give the topic back: Pulsar sends everything unacknowledged to the others."""
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            with contextlib.suppress(Exception):
                await asyncio.to_thread(consumer.close)

    def trouble(self) -> str | None:
        """Return why nothing can come at the moment, or None."""
        consumer = self.consumer
        if self.problem is None and consumer is not None and not consumer.is_connected():
            return "no broker is connected"
        return self.problem

    def _run(self) -> None:
        wait = BACKOFF[0]
        while not self.stopping.is_set():
            try:
                self.consumer = self.subscribe(pulsar_topic(self.topic))
                self.problem, wait = None, BACKOFF[0]
                LOG.info("subscribed", extra={"topic": self.topic})
                self._receive(self.consumer)
            except (CancelledError, RuntimeError):
                # The event loop ended before the thread did.
                return
            except Exception as error:
                self.problem = f"{type(error).__name__}: {error}"
                LOG.warning("cannot receive", extra={"topic": self.topic, "error": self.problem, "again_in_s": wait})
                consumer, self.consumer = self.consumer, None
                if consumer is not None:
                    with contextlib.suppress(Exception):
                        consumer.close()
                self.stopping.wait(wait)
                wait = min(wait * 2, BACKOFF[1])

    def _receive(self, consumer: Any) -> None:
        while not self.stopping.is_set():
            batch = self._batch(consumer)
            if not batch or self.stopping.is_set():
                continue
            handing = self.handle(batch)
            try:
                done = asyncio.run_coroutine_threadsafe(handing, self.loop)
            except RuntimeError:
                handing.close()
                raise
            done.result()

    def _batch(self, consumer: Any) -> list[Received]:
        """Return what is there, at most BATCH messages; waits for the first one only."""
        found: list[Received] = []
        with contextlib.suppress(self.silence):
            while len(found) < BATCH:
                message = consumer.receive(1 if found else RECEIVE_MS)
                found.append(
                    Received(
                        self.topic,
                        message_id(message.message_id()),
                        message.data(),
                        dict(message.properties()),
                        consumer,
                        message,
                    )
                )
        return found


class Settler:
    """Acknowledges in a thread, many at a time: the client's calls may block."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Received, bool]] = []
        self.task: asyncio.Task[None] | None = None

    def acknowledge(self, message: Received) -> None:
        """Tell Pulsar that a message is taken care of."""
        self._add(message, True)

    def refuse(self, message: Received) -> None:
        """Ask Pulsar for the message again, later."""
        self._add(message, False)

    def _add(self, message: Received, good: bool) -> None:
        self.waiting.append((message, good))
        if self.task is None:
            self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while self.waiting:
            batch, self.waiting = self.waiting, []
            await asyncio.to_thread(_settle, batch)
        self.task = None

    async def flush(self) -> None:
        """Wait until everything said so far was passed to the client."""
        while self.task is not None:
            await self.task


def _settle(batch: Iterable[tuple[Received, bool]]) -> None:
    for message, good in batch:
        try:
            if good:
                message.consumer.acknowledge(message.handle)
            else:
                message.consumer.negative_acknowledge(message.handle)
        except Exception as error:
            # It comes again and is recognised.
            LOG.info(
                "a message could not be settled",
                extra={"topic": message.topic, "message_id": message.message_id, "error": str(error)},
            )


def subscriber(client: Any, subscription: str, name: str, queue: int) -> Subscribe:
    """Return what subscribes a topic with Pulsar's client; the subscription shares messages among all its consumers."""
    import pulsar  # noqa: PLC0415  (a large library that tests do without)

    def subscribe(address: str) -> Any:
        return client.subscribe(
            address,
            subscription,
            consumer_type=pulsar.ConsumerType.Shared,
            consumer_name=name,
            receiver_queue_size=queue,
            negative_ack_redelivery_delay_ms=REDELIVER_SECONDS * 1000,
            initial_position=pulsar.InitialPosition.Earliest,
        )

    return subscribe


def silence() -> type[BaseException]:
    """Return the exception of Pulsar's client for a receive that brought nothing."""
    import pulsar  # noqa: PLC0415

    found: type[BaseException] = pulsar.Timeout
    return found

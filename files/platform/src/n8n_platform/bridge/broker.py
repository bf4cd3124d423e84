# SPDX-License-Identifier: GPL-3.0-or-later
"""Storing messages in Pulsar: many at a time, never waiting for a broker that is away.

A message counts as stored only once Pulsar's receipt names a ledger. The client's receipts come from a thread of its
own; they are collected and handed to the event loop in one go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from n8n_platform.bridge.ids import pulsar_topic
from n8n_platform.bridge.metrics import BrokerMetrics
from n8n_platform.bridge.settings import Pulsar, Settings

LOG = logging.getLogger(__name__)
# Seconds between attempts to open a producer: doubled from the first to the second.
BACKOFF = (1.0, 10.0)
# The client gives a producer up without a word when a broker refuses it: one that is away for this long is opened anew.
REOPEN_SECONDS = 20.0
# After a message that was not stored new ones need not wait in vain: the outbox tries on its own for this long.
HOLD_SECONDS = 10.0
OPERATION_TIMEOUT_SECONDS = 10
CONNECTORS = 4


class NotStoredError(Exception):
    """Pulsar has not confirmed a message; ``reason`` is one word for metrics. It may still have stored it."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(text or reason)
        self.reason = reason


class Producer(Protocol):
    """What is used of the client's producer."""

    def send_async(self, content: bytes, callback: Callable[..., None], properties: Mapping[str, str]) -> None:
        """Store a message and call back from another thread with a result and a message id."""

    def is_connected(self) -> bool:
        """Return whether a broker is there."""

    def close(self) -> None:
        """Stop; blocks."""


class Client(Protocol):
    """What is used of the client; both calls block."""

    def create_producer(self, topic: str, **options: Any) -> Producer:
        """Open a producer; raise when no broker serves the topic."""

    def close(self) -> None:
        """End all connections; messages without a receipt fail."""


def connect(settings: Settings, token_name: str) -> Any:
    """Return a client of Pulsar that reads its token again for each connection, so that it may be changed any time."""
    import pulsar  # noqa: PLC0415  (a large library that tests do without)

    options: Pulsar = settings.pulsar
    tls = {"tls_trust_certs_file_path": str(options.ca_file)} if options.ca_file else {}
    return pulsar.Client(
        options.url,
        authentication=pulsar.AuthenticationToken(lambda: settings.secret(token_name)),
        operation_timeout_seconds=OPERATION_TIMEOUT_SECONDS,
        tls_validate_hostname=True,
        logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error),
        **tls,
    )


def message_id(value: Any) -> str:
    """Return a message id as Pulsar's own tools write it: ``ledger:entry:partition:batch index``."""
    return f"{value.ledger_id()}:{value.entry_id()}:{value.partition()}:{value.batch_index()}"


def _seen(future: asyncio.Future[str]) -> None:
    """Mark a failure as noticed: whoever gave up waiting does not look at it."""
    if not future.cancelled():
        future.exception()


class Broker:
    """The producers of one process, one for each topic. Make it inside the event loop that uses it."""

    def __init__(
        self,
        settings: Settings,
        token_name: str,
        metrics: BrokerMetrics,
        open_client: Callable[[Settings, str], Client] = connect,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.enabled = bool(settings.pulsar.url)
        self._token_name = token_name
        self._metrics = metrics
        self._open_client = open_client
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(CONNECTORS, thread_name_prefix="pulsar")
        self._client: Client | None = None
        self._producers: dict[str, Producer] = {}
        self._opening: dict[str, asyncio.Task[Producer]] = {}
        # By topic: when the next attempt may be made, and how long to wait after it.
        self._barred: dict[str, tuple[float, float]] = {}
        # By topic: since when its producer has had no broker.
        self._away: dict[str, float] = {}
        # By topic: until when messages go to the outbox at once.
        self._held: dict[str, float] = {}
        self._receipts: deque[tuple[str, asyncio.Future[str], Any, Any, float]] = deque()
        self._waking = False
        self._closed = False
        self.pending = 0

    async def prepare(self, topics: Iterable[str]) -> None:
        """Open producers ahead of the first message, and anew those long away; what fails is left for later."""
        topics = list(topics)
        if self.enabled:
            for topic in topics:
                self._drop_lost(topic)
            await asyncio.gather(*(self._open(topic) for topic in topics), return_exceptions=True)

    def _drop_lost(self, topic: str) -> None:
        producer = self._producers.get(topic)
        if producer is None or producer.is_connected():
            self._away.pop(topic, None)
        elif not self._closed and self._clock() - self._away.setdefault(topic, self._clock()) >= REOPEN_SECONDS:
            del self._producers[topic], self._away[topic]
            LOG.warning("opening a producer anew", extra={"topic": topic})
            # Its messages without a receipt fail by this, at the latest; the outbox has them.
            self._threads.submit(producer.close)

    def available(self, topic: str) -> bool:
        """Return whether a message for a topic will probably be stored at once."""
        return self.connected(topic) and self._clock() >= self._held.get(topic, 0.0)

    def connected(self, topic: str) -> bool:
        """Return whether there is a broker to try."""
        producer = self._producers.get(topic)
        return producer is not None and producer.is_connected()

    def submit(self, topic: str, payload: bytes, properties: Mapping[str, str]) -> asyncio.Future[str]:
        """Send a message; the future gives its id, or :class:`NotStoredError`, at the latest after the send timeout.

        Giving up waiting takes nothing back: do not cancel the future but ``shield`` it or use ``asyncio.wait``.
        """
        producer = self._producers.get(topic)
        if producer is None:
            late = self._loop.create_task(self._submit_late(topic, payload, properties))
            late.add_done_callback(_seen)
            return late
        future: asyncio.Future[str] = self._loop.create_future()
        self._send(topic, producer, future, payload, properties)
        return future

    async def _submit_late(self, topic: str, payload: bytes, properties: Mapping[str, str]) -> str:
        try:
            producer = await self._open(topic)
        except NotStoredError as error:
            self._metrics.not_stored.labels(error.reason).inc()
            raise
        future: asyncio.Future[str] = self._loop.create_future()
        self._send(topic, producer, future, payload, properties)
        return await future

    def _send(
        self,
        topic: str,
        producer: Producer,
        future: asyncio.Future[str],
        payload: bytes,
        properties: Mapping[str, str],
    ) -> None:
        # Without a connection the client would hold the message back; the outbox does that better.
        if self._closed or not producer.is_connected():
            self._drop_lost(topic)
            self._fail(future, NotStoredError("disconnected", "no broker is connected"))
            return
        started = self._clock()

        def receipt(result: Any, identity: Any) -> None:
            self._receipts.append((topic, future, result, identity, started))
            if not self._waking:
                self._waking = True
                with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                    self._loop.call_soon_threadsafe(self._settle)

        self.pending += 1
        try:
            producer.send_async(payload, receipt, properties=properties)
        except Exception as error:
            self.pending -= 1
            self._fail(future, NotStoredError("refused", str(error)))

    def _settle(self) -> None:
        """Fulfil the futures whose receipts have come."""
        self._waking = False
        while self._receipts:
            topic, future, result, identity, started = self._receipts.popleft()
            self.pending -= 1
            stored = result.name == "Ok" and identity.ledger_id() >= 0
            if not stored:
                self._held[topic] = self._clock() + HOLD_SECONDS
            if result.name != "Ok":
                self._fail(future, NotStoredError(result.name, f"Pulsar answered {result.name}"))
            elif not stored:
                # The broker took it for a copy of a message it has, which is not certain to be true.
                self._fail(future, NotStoredError("no_ledger", "the receipt names no ledger"))
            else:
                self._held.pop(topic, None)
                self._metrics.seconds.observe(self._clock() - started)
                if not future.done():
                    future.set_result(message_id(identity))

    def _fail(self, future: asyncio.Future[str], error: NotStoredError) -> None:
        self._metrics.not_stored.labels(error.reason).inc()
        if not future.done():
            future.set_exception(error)
            _seen(future)

    async def _open(self, topic: str) -> Producer:
        """Return the producer of a topic; all who ask meanwhile share one attempt."""
        if topic in self._producers:
            return self._producers[topic]
        if not self.enabled or self._closed:
            raise NotStoredError("disabled", "there is no Pulsar")
        if topic not in self._opening:
            until, wait = self._barred.get(topic, (0.0, BACKOFF[0]))
            if self._clock() < until:
                raise NotStoredError("unavailable", f"{topic} could not be opened, next attempt later")
            self._barred[topic] = (self._clock() + wait, min(wait * 2, BACKOFF[1]))
            task = self._loop.create_task(self._open_now(topic))
            self._opening[topic] = task
            task.add_done_callback(lambda _: self._opening.pop(topic, None))
        try:
            return await asyncio.shield(self._opening[topic])
        except NotStoredError:
            raise
        except Exception as error:
            raise NotStoredError("unavailable", f"{topic} cannot be opened: {error}") from error

    async def _open_now(self, topic: str) -> Producer:
        options = self.settings.pulsar
        if self._client is None:
            self._client = self._open_client(self.settings, self._token_name)
        client = self._client
        try:
            producer = await self._loop.run_in_executor(
                self._threads,
                lambda: client.create_producer(
                    pulsar_topic(topic),
                    send_timeout_millis=int(options.send_timeout_seconds * 1000),
                    max_pending_messages=options.max_pending,
                    batching_enabled=True,
                    batching_max_publish_delay_ms=options.batching_delay_ms,
                ),
            )
        except Exception as error:
            LOG.warning("cannot open a producer", extra={"topic": topic, "error": str(error)})
            raise
        self._producers[topic] = producer
        self._barred.pop(topic, None)
        LOG.info("opened a producer", extra={"topic": topic})
        return producer

    async def close(self) -> None:
        """End all connections. Messages without a receipt count as not stored."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                await self._loop.run_in_executor(self._threads, client.close)
        self._settle()
        self._threads.shutdown(wait=False, cancel_futures=True)

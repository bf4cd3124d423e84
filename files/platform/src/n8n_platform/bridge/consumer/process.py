# SPDX-License-Identifier: GPL-3.0-or-later
"""A consumer process: everything wired together, from its start to its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prometheus_client import CollectorRegistry

from n8n_platform.bridge import broker, db, receiver, signing
from n8n_platform.bridge.consumer import caller
from n8n_platform.bridge.consumer.addresses import Addresses
from n8n_platform.bridge.consumer.batch import Batcher, persist
from n8n_platform.bridge.consumer.delivery import Delivery, Tools
from n8n_platform.bridge.consumer.intake import Intake
from n8n_platform.bridge.consumer.limits import Limits
from n8n_platform.bridge.consumer.scheduler import Scheduler
from n8n_platform.bridge.deliveries import Deliveries, End, Event, Known, Wish, transient
from n8n_platform.bridge.metrics import BrokerMetrics, DeliveryMetrics, ProcessMetrics, RouteMetrics
from n8n_platform.bridge.ops import Health, OpsServer, notify
from n8n_platform.bridge.routes_file import RouteFile
from n8n_platform.bridge.routing import RoutesError
from n8n_platform.bridge.settings import Settings, SettingsError
from n8n_platform.bridge.telemetry import Tracing, configure_logging

LOG = logging.getLogger(__name__)
SERVICE = "n8n-bridge-consumer"
# Ends of attempts that one statement records at most.
FINISH_BATCH = 100
TOPICS_SECONDS = 2.0
# A pass of the scheduler may take so long when the process stops, seconds.
PASS_SECONDS = 5.0
# A scheduler that did no pass for so long is stuck, seconds.
STUCK_SECONDS = 60.0


class Patient:
    """The queries of the intake, each tried until the database answers."""

    def __init__(self, deliveries: Deliveries) -> None:
        self.deliveries = deliveries

    async def look(self, wanted: Sequence[UUID]) -> list[Known | None]:
        """Return what is known about events."""
        return await persist(lambda: self.deliveries.look(wanted), transient)

    async def take(self, wishes: Sequence[Wish]) -> list[Event | None]:
        """Take or put off events.

        When the answer of a statement that counted is lost, the next one finds the events taken and this process calls
        nobody: their leases run out and a scheduler goes on.
        """
        return await persist(lambda: self.deliveries.take(wishes), transient)


class Process:
    """The parts of a consumer. Make it inside the event loop."""

    def __init__(self, settings: Settings, instance: int) -> None:
        self.settings = settings
        self.name = f"consumer-{instance}@{socket.gethostname()}"
        self.registry = CollectorRegistry()
        ProcessMetrics(self.registry)
        self.health = Health()
        self.ops = OpsServer(self.health, self.registry)
        self.ops_port = settings.consumer.ops_base + instance
        self.tracing = Tracing(settings, SERVICE, str(instance))
        self.route_metrics = RouteMetrics(self.registry)
        self.routes = RouteFile(settings.routes_file, self._routes_read)
        self.keyring = keyring(settings)
        self.webhook_keys = webhook_keys(settings)
        self.receivers: dict[str, receiver.Receiver] = {}
        self.settler = receiver.Settler()
        self.broker = broker.Broker(settings, settings.pulsar.consumer_token, BrokerMetrics(self.registry))
        self.client: Any = None
        self.pool: Any = None

    def _routes_read(self, error: RoutesError | None) -> None:
        if error is None:
            self.route_metrics.loaded.set(time.time())
            LOG.info("read the routes")
        else:
            self.route_metrics.failures.inc()
            LOG.error("the new routes are not usable, the old ones stay in force", extra={"error": str(error)})

    async def start(self) -> None:
        """Begin to work; waits for PostgreSQL, and for nothing else."""
        settings, options = self.settings, self.settings.delivery
        await self.ops.start(settings.consumer.ops_host, self.ops_port)
        self.health.add("database", self._database)
        self.pool = await db.open_pool(settings, SERVICE)
        self.deliveries = Deliveries(self.pool, f"{self.name}/{os.getpid()}-{time.time():.0f}")
        if freed := await persist(self.deliveries.free_former, transient):
            LOG.warning("took over deliveries of a former run", extra={"count": freed})
        self.http = caller.client(str(settings.n8n.ca_file) if settings.n8n.ca_file else None, options.in_flight)
        self.finisher: Batcher[End, bool] = Batcher(self.deliveries.finish, FINISH_BATCH, transient)
        self.limits = Limits(
            options.in_flight, options.in_flight_per_tenant, options.breaker_failures, options.breaker_seconds
        )
        self.limits.closed = True
        self.addresses = Addresses(settings.n8n.urls, self.http, self._n8n_changed)
        tools = Tools(
            routes=lambda: self.routes.current,
            caller=caller.Caller(self.addresses, self.webhook_keys, self.http),
            limits=self.limits,
            finish=self.finisher.submit,
            metrics=DeliveryMetrics(self.registry),
            tracing=self.tracing,
            lease_s=options.lease_seconds,
        )
        self.delivery = delivery = Delivery(tools)
        self.scheduler = Scheduler(self.deliveries, delivery, options.scheduler_seconds, options.scheduler_batch)
        self.intake = Intake(
            self.keyring,
            Patient(self.deliveries),
            delivery,
            self.settler,
            self.broker.submit,
            put_off=self.scheduler.wake.set,
        )
        self.health.add("scheduler", self._scheduler)
        self.health.add("n8n", self._n8n)
        self.looking = asyncio.create_task(self.addresses.run())
        self.scheduling = asyncio.create_task(self.scheduler.run())
        self.watching = asyncio.create_task(self._watch_topics())
        notify("READY=1")
        LOG.info("started", extra={"owner": self.deliveries.owner})

    async def _database(self) -> str | None:
        if self.pool is None:
            return "not connected yet"
        await self.pool.fetchval("SELECT 1")
        return None

    async def _scheduler(self) -> str | None:
        age = time.monotonic() - self.scheduler.last_pass
        return f"no pass for {age:.0f} s" if age > STUCK_SECONDS else None

    async def _n8n(self) -> str | None:
        return None if self.addresses.ready else "no webhook process can be called"

    def _n8n_changed(self, ready: bool) -> None:
        """Begin or end to take work, as n8n can be called or not."""
        self.limits.closed = not ready
        if ready:
            self.delivery.freed.set()
            self.scheduler.wake.set()

    async def _watch_topics(self) -> None:
        """Receive from every topic of the routes. One that is taken out of them may still hold messages and stays."""
        while self.settings.pulsar.url:
            for topic in self.routes.current.topics:
                if topic not in self.receivers:
                    self._receive(topic)
            await asyncio.sleep(TOPICS_SECONDS)

    def _receive(self, topic: str) -> None:
        pulsar = self.settings.pulsar
        if self.client is None:
            self.client = broker.connect(self.settings, pulsar.consumer_token)
        found = receiver.Receiver(
            topic,
            receiver.subscriber(self.client, pulsar.subscription, self.name, self.settings.delivery.receiver_queue),
            self.intake.handle,
            asyncio.get_running_loop(),
            receiver.silence(),
        )
        self.receivers[topic] = found

        async def check() -> str | None:
            return found.trouble()

        self.health.add(topic, check)
        found.start()

    async def stop(self) -> None:
        """End: take nothing more, wait for calls under way, write down and acknowledge what came of them."""
        LOG.info("stopping")
        notify("STOPPING=1")
        self.health.stopping = True
        self.watching.cancel()
        self.looking.cancel()
        for item in self.receivers.values():
            item.stop()
        self.intake.stop()
        self.scheduler.stop()
        # A pass cut off in the middle would leave leases behind.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.scheduling, PASS_SECONDS)
        await asyncio.gather(self.watching, self.looking, self.scheduling, return_exceptions=True)
        tasks = self.intake.tasks | self.scheduler.tasks
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self.settings.delivery.stop_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(5):
                if freed := await self.deliveries.free_own():
                    LOG.warning("gave deliveries back before they ended", extra={"count": freed})
        await self.finisher.close()
        await self.settler.flush()
        for item in self.receivers.values():
            await item.join()
            await item.close()
        if self.client is not None:
            with contextlib.suppress(Exception):
                await asyncio.to_thread(self.client.close)
        await self.broker.close()
        await self.http.aclose()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(5):
                await self.pool.close()
        await asyncio.to_thread(self.tracing.shutdown)
        await self.ops.close()
        LOG.info("stopped")


def keyring(settings: Settings) -> signing.Keyring:
    """Return the keys of messages: the present one and, while it is being replaced, the previous one."""
    previous = settings.optional_secret(settings.signing_key + "_previous") or ""
    try:
        return signing.Keyring.of(settings.secret(settings.signing_key), previous)
    except ValueError as error:
        raise SettingsError(f"{settings.secret_file(settings.signing_key)}: {error}") from error


def webhook_keys(settings: Settings) -> list[bytes]:
    """Return the keys with which calls of webhooks are signed; with two of them a receiver may know either."""
    name = settings.n8n.webhook_secret
    found = [settings.secret(name), settings.optional_secret(name + "_previous")]
    try:
        return [signing.webhook_key(secret) for secret in found if secret]
    except ValueError as error:
        raise SettingsError(f"{settings.secret_file(name)}: {error}") from error


async def serve(settings: Settings, instance: int) -> None:
    """Run until the process is told to stop."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    process = Process(settings, instance)
    starting = asyncio.create_task(process.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        # PostgreSQL never answered, so there is nothing to put in order.
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    starting.result()
    await stopping
    await process.stop()


def run(settings: Settings, instance: int) -> int:
    """Run consumer ``instance`` (from 1) and return the exit code of the process."""
    configure_logging(SERVICE, str(instance), settings.log_level)
    try:
        import uvloop  # noqa: PLC0415  (faster, but not needed)
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(serve(settings, instance))
    except RoutesError as error:
        raise SettingsError(str(error)) from error
    return 0

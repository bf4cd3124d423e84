# SPDX-License-Identifier: GPL-3.0-or-later
"""The API process: everything it consists of, put together, and its life from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from n8n_platform.bridge import db, telemetry
from n8n_platform.bridge.api import accounts as account_file
from n8n_platform.bridge.api import app, oidc
from n8n_platform.bridge.api.auth import Authenticator, TokenIssuer
from n8n_platform.bridge.api.events import Services
from n8n_platform.bridge.api.limits import Limiter
from n8n_platform.bridge.api.publishing import Publisher
from n8n_platform.bridge.broker import Broker
from n8n_platform.bridge.group import GroupCommit
from n8n_platform.bridge.maintain import make_partitions
from n8n_platform.bridge.metrics import BrokerMetrics, ProcessMetrics, PublishMetrics, RouteMetrics
from n8n_platform.bridge.ops import Health, OpsServer, notify
from n8n_platform.bridge.outbox import Outbox, forever
from n8n_platform.bridge.routes_file import RouteFile
from n8n_platform.bridge.routing import Route, RoutesError
from n8n_platform.bridge.settings import Settings, SettingsError
from n8n_platform.bridge.signing import Keyring
from n8n_platform.bridge.store import EventStore

LOG = logging.getLogger(__name__)
SERVICE = "n8n-bridge-api"
PREPARE_SECONDS = 5.0
SAVE_SECONDS = 1.0
PARTITIONS_SECONDS = 3600.0
# Requests under way at a stop may take this long; systemd waits longer.
STOP_SECONDS = 15


def secrets_of(settings: Settings, name: str) -> list[str]:
    """Return a secret and, while it is being changed, the one before."""
    return [settings.secret(name), *filter(None, [settings.optional_secret(f"{name}_previous")])]


def route_file(settings: Settings, metrics: RouteMetrics) -> RouteFile:
    """Return the routes, which log and count their reloads; raise SettingsError when they cannot be used."""

    def told(error: RoutesError | None) -> None:
        if error is None:
            metrics.loaded.set_to_current_time()
            LOG.info("routes loaded", extra={"file": str(settings.routes_file)})
        else:
            metrics.failures.inc()
            LOG.error("the new routes are not usable, the old ones stay in force", extra={"problems": str(error)})

    try:
        return RouteFile(settings.routes_file, told)
    except RoutesError as error:
        raise SettingsError(f"the routes are not usable:\n{error}") from error


class Api:
    """One API process. :meth:`start` needs PostgreSQL and waits for it; Pulsar may come later."""

    def __init__(
        self,
        settings: Settings,
        instance: int,
        open_pool: Callable[[Settings, str], Coroutine[Any, Any, Any]] = db.open_pool,
        open_broker: Callable[[Settings, str, BrokerMetrics], Any] = Broker,
    ) -> None:
        self.settings = settings
        self.instance = instance
        self.registry = CollectorRegistry()
        ProcessMetrics(self.registry)
        self.metrics = PublishMetrics(self.registry)
        self.route_metrics = RouteMetrics(self.registry)
        self.health = Health()
        self.ops = OpsServer(self.health, self.registry)
        self.tracing = telemetry.Tracing(settings, SERVICE, str(instance))
        self.keyring = Keyring.of(*secrets_of(settings, settings.signing_key))
        self.accounts = account_file.load(settings)
        self.issuer = TokenIssuer(settings.tokens, self.accounts, secrets_of(settings, settings.tokens.key))
        self.routes = route_file(settings, self.route_metrics)
        self.limiter = Limiter(settings.limits, settings.processes.api)
        self._open_pool = open_pool
        self._open_broker = open_broker
        self._tasks: list[asyncio.Task[None]] = []
        self.pool: Any = None
        self.broker: Any = None
        self.outbox: Outbox | None = None
        self.group: GroupCommit | None = None

    def _decided(self, route: Route) -> None:
        self.route_metrics.decisions.labels(route.name, route.via).inc()

    async def start(self) -> ASGIApp:
        """Connect to everything and return the application."""
        settings = self.settings
        self.health.add("start", self._not_started)
        await self.ops.start(settings.api.ops_host, settings.api.ops_base + self.instance)
        self.pool = await self._open_pool(settings, SERVICE)
        self.broker = self._open_broker(settings, settings.pulsar.publisher_token, BrokerMetrics(self.registry))
        # A broker that is away must not keep us from accepting events.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.broker.prepare(self.routes.current.topics), PREPARE_SECONDS)
        store = EventStore(self.pool)
        self.outbox = Outbox(self.pool, self.broker, self.keyring, settings.limits, self.metrics)
        self.group = GroupCommit(
            store.accept,
            largest=settings.limits.batch_events,
            parallel=max(1, settings.database.pool_max // 2),
            unavailable=db.UNAVAILABLE,
            again=db.AGAIN,
            observe=self.metrics.group.observe,
        )
        publisher = Publisher(
            settings,
            self.group,
            self.broker,
            self.outbox,
            self.routes,
            self.keyring,
            self.limiter,
            self.metrics,
            self._decided,
            tracing=self.tracing,
        )
        external = settings.tokens.oidc
        authenticator = Authenticator(self.issuer, oidc.Issuer(external) if external else None)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self.outbox.run()),
            loop.create_task(forever("make partitions", self._make_partitions, PARTITIONS_SECONDS)),
            loop.create_task(forever("save usage", lambda: self.limiter.save(store.add_usage), SAVE_SECONDS)),
        ]
        self.health.checks.pop("start")
        self.health.add("database", self._check_database)
        services = Services(store, publisher, authenticator)
        return app.build(settings, services, self.accounts, self.issuer, self.tracing, self.metrics)

    async def _make_partitions(self) -> None:
        """Make tomorrow's partition, should the daily upkeep have failed all week."""
        async with self.pool.acquire() as connection:
            await make_partitions(connection, datetime.now(UTC).date(), 1)

    async def _not_started(self) -> str | None:
        return "is starting"

    async def _check_database(self) -> str | None:
        await self.pool.execute("SELECT FROM bridge.outbox LIMIT 1")
        return None

    async def stop(self) -> None:
        """End all connections, after what is under way."""
        self.health.stopping = True
        if self.group is not None:
            await self.group.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.broker is not None:
            await self.broker.close()
        if self.outbox is not None:
            with contextlib.suppress(*db.UNAVAILABLE):
                await self.outbox.forget()
        if self.pool is not None:
            with contextlib.suppress(*db.UNAVAILABLE):
                await asyncio.wait_for(self.pool.close(), 5)
        await self.ops.close()
        await asyncio.to_thread(self.tracing.shutdown)


class Server(uvicorn.Server):
    """A server that tells systemd when it answers and when it stops."""

    async def startup(self, sockets: Any = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started:
            notify("READY=1")
            LOG.info("ready", extra={"port": self.config.port})

    async def shutdown(self, sockets: Any = None) -> None:
        """Stop listening, end what is under way."""
        notify("STOPPING=1")
        await super().shutdown(sockets)


def config(settings: Settings, instance: int, application: ASGIApp) -> uvicorn.Config:
    """Return uvicorn's configuration."""
    tls = settings.api.tls
    return uvicorn.Config(
        application,
        host=settings.api.host,
        port=(settings.api.port_base or 0) + instance,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # Longer than Traefik keeps a connection it may use again.
        timeout_keep_alive=120,
        timeout_graceful_shutdown=STOP_SECONDS,
        backlog=1024,
        h11_max_incomplete_event_size=16384,
        # A name without a directory is a credential of the unit.
        ssl_certfile=str(settings.secret_file(str(tls.certificate_file))) if tls else None,
        ssl_keyfile=str(settings.secret_file(str(tls.key_file))) if tls else None,
    )


async def serve(settings: Settings, instance: int) -> None:
    """Run one API process until it is told to stop."""
    api = Api(settings, instance)
    try:
        application = await api.start()
        await Server(config(settings, instance, application)).serve()
    finally:
        await api.stop()


def run(settings: Settings, instance: int) -> int:
    """Run one API process; return its exit code."""
    telemetry.configure_logging(SERVICE, str(instance), settings.log_level)
    import uvloop  # noqa: PLC0415  (Linux only, and not needed by tests)

    uvloop.run(serve(settings, instance))
    return 0

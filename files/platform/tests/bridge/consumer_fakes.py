# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands in for PostgreSQL, Pulsar and n8n in tests of the consumer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
from n8n_platform.bridge import ids
from n8n_platform.bridge.broker import NotStoredError
from n8n_platform.bridge.consumer.addresses import Addresses
from n8n_platform.bridge.consumer.caller import Caller
from n8n_platform.bridge.consumer.delivery import Delivery, Tools
from n8n_platform.bridge.consumer.limits import Limits
from n8n_platform.bridge.deliveries import End, Event, Known, Wish
from n8n_platform.bridge.metrics import DeliveryMetrics
from n8n_platform.bridge.receiver import Received
from n8n_platform.bridge.routing import Backoff, Pattern, Route, Routes
from n8n_platform.bridge.settings import Database, N8n, Settings
from n8n_platform.bridge.signing import Keyring
from n8n_platform.bridge.telemetry import Tracing
from prometheus_client import CollectorRegistry

NOW = 1_800_000_000.0
TOPIC = "dealscale.workflow.short"
RING = Keyring.of("a-master-secret-of-length")
KEYS = [b"k" * 32]
ROUTES = Routes(
    (
        Route("short", "topic", TOPIC, "/webhook/{workflow}", type=Pattern(["short.*"]), max_attempts=3, concurrency=2),
        Route("listen", "topic", "dealscale.analytics.events", type=Pattern(["listen.*"])),
        Route("direct", "queue", webhook="/webhook/{workflow}", backoff=Backoff(0.5), concurrency=4),
    )
)
SETTINGS = Settings(environment="test", database=Database(host="/run"), n8n=N8n(urls=["http://n8n"]))


def event(**changes: Any) -> Event:
    """Return an event that is leased to this process."""
    made = datetime.fromtimestamp(NOW, UTC)
    values: dict[str, Any] = {
        "id": ids.new_id(NOW),
        "tenant": "acme",
        "execution_id": "run-1",
        "type": "short.x",
        "workflow": "orders",
        "route": "short",
        "topic": TOPIC,
        "body": b'{"a": 1}',
        "content_type": "application/json",
        "traceparent": None,
        "created_at": made,
        "expires_at": made + timedelta(days=3),
        "attempt": 1,
        "generation": 1,
    }
    return Event(**{**values, **changes})


@dataclass
class FakeStore:
    """Deliveries in memory. ``errors`` are raised first, one by one; ``events`` are those that were published."""

    events: dict[UUID, Event] = field(default_factory=dict)
    states: dict[UUID, str] = field(default_factory=dict)
    ends: list[End] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    freed: int = 0

    def add(self, item: Event, state: str | None = None) -> Event:
        """Publish an event."""
        self.events[item.id] = item
        if state:
            self.states[item.id] = state
        return item

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    async def look(self, wanted: Sequence[UUID]) -> list[Known | None]:
        self._fail()
        found: list[Known | None] = []
        for item in map(self.events.get, wanted):
            known = item and Known(item.tenant, item.route, item.topic, self.states.get(item.id))
            found.append(known or None)
        return found

    async def take(self, wishes: Sequence[Wish]) -> list[Event | None]:
        self._fail()
        granted: list[Event | None] = []
        for wish in wishes:
            free = wish.id not in self.states
            if free:
                self.states[wish.id] = wish.state
            taken = free and wish.state == "leased"
            granted.append(replace(self.events[wish.id], message_id=wish.message_id) if taken else None)
        return granted

    async def finish(self, end: End) -> bool:
        self._fail()
        self.ends.append(end)
        if self.states.get(end.event.id) == "cancelled":
            return False
        self.states[end.event.id] = end.state
        return True

    async def due(self) -> list[tuple[str, str]]:
        self._fail()
        return sorted({(self.events[item].tenant, self.events[item].route) for item in self.waiting()})

    def waiting(self) -> list[UUID]:
        """Return what is due."""
        return [item for item, state in self.states.items() if state == "retry"]

    async def lease(self, rooms: Sequence[tuple[str, str, int, float]]) -> list[Event]:
        self._fail()
        taken = []
        for tenant, route, room, _ in rooms:
            mine = [
                item
                for item in self.waiting()
                if (self.events[item].tenant, self.events[item].route) == (tenant, route)
            ]
            for item in mine[:room]:
                self.states[item] = "leased"
                taken.append(self.events[item])
        return taken

    async def free_expired(self) -> int:
        self.freed += 1
        return 1

    async def free_loose(self, working: Iterable[UUID]) -> int:
        return int(not set(working))

    async def counts(self) -> tuple[int, int]:
        return len(self.waiting()), list(self.states.values()).count("dead")


class FakeN8n:
    """n8n's webhooks: ``answer`` says what a request gets; ``gate`` holds answers back while it is not set."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response] | None = None) -> None:
        self.answer = answer or (lambda request: httpx.Response(200, text="ok"))
        self.readiness: Callable[[httpx.Request], int] = lambda request: 200
        self.requests: list[httpx.Request] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def handle(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        if request.url.path == "/healthz/readiness":
            return httpx.Response(self.readiness(request))
        self.requests.append(request)
        await self.gate.wait()
        return self.answer(request)

    def caller(self, *bases: str) -> Caller:
        """Return a caller of these webhooks."""
        http = httpx.AsyncClient(transport=httpx.MockTransport(self.handle))
        addresses = Addresses(bases or ["http://n8n:5701"], http, lambda ready: None)
        addresses.ready = list(addresses.bases)
        return Caller(addresses, KEYS, http, clock=lambda: NOW)


class FakeSettler:
    """Remembers what became of messages."""

    def __init__(self) -> None:
        self.good: list[str] = []
        self.bad: list[str] = []

    def acknowledge(self, message: Received) -> None:
        self.good.append(message.message_id)

    def refuse(self, message: Received) -> None:
        self.bad.append(message.message_id)


class FakeBroker:
    """Stores messages in memory, unless it is away."""

    def __init__(self) -> None:
        self.stored: list[tuple[str, bytes, Mapping[str, str]]] = []
        self.away = False

    async def submit(self, topic: str, payload: bytes, properties: Mapping[str, str]) -> str:
        if self.away:
            raise NotStoredError("disconnected")
        self.stored.append((topic, payload, properties))
        return "1:1:0:0"


def tools(n8n: FakeN8n, store: FakeStore, routes: Routes = ROUTES, limits: Limits | None = None) -> Tools:
    """Return what a delivery needs, made of fakes."""
    return Tools(
        routes=lambda: routes,
        caller=n8n.caller(),
        limits=limits or Limits(10, 5, 3, 10.0),
        finish=store.finish,
        metrics=DeliveryMetrics(CollectorRegistry()),
        tracing=Tracing(SETTINGS, "test", "1"),
        lease_s=60.0,
        clock=lambda: NOW,
    )


def delivery(n8n: FakeN8n, store: FakeStore, **more: Any) -> Delivery:
    """Return what delivers, made of fakes."""
    return Delivery(tools(n8n, store, **more))


def message(item: Event, number: int = 1, ring: Keyring = RING, topic: str = TOPIC, **claims: Any) -> Received:
    """Return the message of an event as the publisher makes it."""
    values: dict[str, Any] = {
        "event_id": str(item.id),
        "tenant": item.tenant,
        "execution_id": item.execution_id,
        "event_type": item.type,
        "topic": topic,
        "issued_at": int(NOW),
        "expires_at": int(NOW) + 3600,
    }
    payload, properties = ring.message(**{**values, **claims})
    return Received(topic, f"m{number}", payload, properties, None, None)

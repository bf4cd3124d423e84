"""Stand-ins for what the API talks to: PostgreSQL as a dictionary, Pulsar as a list."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from n8n_platform.bridge import routes_file
from n8n_platform.bridge.api import app
from n8n_platform.bridge.api.accounts import Account, Accounts
from n8n_platform.bridge.api.auth import Authenticator, TokenIssuer
from n8n_platform.bridge.api.events import Services
from n8n_platform.bridge.api.limits import Limiter
from n8n_platform.bridge.api.publishing import Publisher
from n8n_platform.bridge.broker import NotStoredError
from n8n_platform.bridge.metrics import PublishMetrics
from n8n_platform.bridge.outbox import Backlog
from n8n_platform.bridge.settings import Database, Limits, N8n, Pulsar, Settings
from n8n_platform.bridge.signing import Keyring
from n8n_platform.bridge.store import Claim, NewEvent, Stored
from n8n_platform.bridge.telemetry import Tracing
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

ROUTES = """
version: 1
routes:
  - name: short
    match: {type: "order.*"}
    topic: dealscale.workflow.short
    webhook: /webhook/orders
  - name: direct
    match: {type: "direct.*"}
    via: queue
    webhook: /webhook/direct
"""
EVERYTHING = frozenset({"publish:*", "events:read", "events:replay", "events:cancel", "claim"})
SECRET = "s" * 40


class MemoryStore:
    """Events in a dictionary, with the rules of the real tables."""

    def __init__(self) -> None:
        self.events: dict[UUID, dict[str, Any]] = {}
        self.keys: dict[tuple[str, str], tuple[UUID, bytes]] = {}
        self.claims: dict[tuple[str, UUID], tuple[str, bool]] = {}
        self.usage: dict[tuple[str, date], tuple[int, int]] = {}
        self.error: Exception | None = None
        self.seq = 0

    def _check(self) -> None:
        if self.error:
            raise self.error

    async def accept(self, events: Sequence[NewEvent]) -> list[Stored]:
        self._check()
        return [self._accept(event) for event in events]

    add = accept

    def _accept(self, event: NewEvent) -> Stored:
        if event.key is not None:
            earlier, digest = self.keys.setdefault((event.tenant, event.key), (event.id, event.body_hash))
            if earlier != event.id:
                return Stored(earlier, False, digest == event.body_hash, waiting=self.events[earlier]["waiting"])
        row = {name: getattr(event, name) for name in NewEvent.__slots__}
        row |= {"state": None if event.topic else "retry", "waiting": bool(event.topic), "size": len(event.body)}
        row |= {"attempt": 0, "next_at": None, "message_id": None, "last_status": None, "last_error": None}
        self.events[event.id] = row | {"done_at": None, "replaced_by": None}
        self.seq += 1
        row["seq"] = self.seq
        return Stored(event.id, seq=self.seq if event.topic else None)

    async def find(self, tenant: str, event_id: UUID) -> Mapping[str, Any] | None:
        self._check()
        row = self.events.get(event_id)
        return row if row and row["tenant"] == tenant else None

    async def dead(
        self, tenant: str, before: UUID | None, route: str | None, limit: int, replayed: bool
    ) -> list[Mapping[str, Any]]:
        self._check()
        found: list[Mapping[str, Any]] = [
            row
            for row in self.events.values()
            if row["tenant"] == tenant
            and row["state"] == "dead"
            and (before is None or row["id"] < before)
            and route in (None, row["route"])
            and (replayed or row["replaced_by"] is None)
        ]
        return sorted(found, key=lambda row: row["id"], reverse=True)[:limit]

    async def cancel(self, tenant: str, event_id: UUID) -> bool:
        row = self.events[event_id]
        if row["state"] not in (None, "waiting", "retry"):
            return False
        row |= {"state": "cancelled", "waiting": False}
        return True

    async def replaced(self, tenant: str, event_id: UUID, by: UUID) -> None:
        self.events[event_id]["replaced_by"] = by

    async def claim(self, tenant: str, event_id: UUID, execution: str, seconds: float) -> Claim | None:
        if await self.find(tenant, event_id) is None:
            return None
        holder, done = self.claims.setdefault((tenant, event_id), (execution, False))
        return Claim(holder, done, granted=holder == execution and not done)

    async def claim_done(self, tenant: str, event_id: UUID, execution: str) -> Claim | None:
        found = self.claims.get((tenant, event_id))
        if found is None:
            return None
        if found[0] == execution:
            found = self.claims[tenant, event_id] = (execution, True)
        return Claim(*found)

    async def add_usage(self, day: date, used: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        self._check()
        for tenant, (events, size) in used.items():
            before = self.usage.get((tenant, day), (0, 0))
            self.usage[tenant, day] = (before[0] + events, before[1] + size)
        return {tenant: self.usage[tenant, day] for tenant in used}


class MemoryBroker:
    """A Pulsar that notes messages; ``up`` and ``answers`` say how it behaves."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes, Mapping[str, str]]] = []
        self.up = True
        self.answers = True
        self.error: NotStoredError | None = None

    def available(self, topic: str) -> bool:
        return self.up

    def submit(self, topic: str, payload: bytes, properties: Mapping[str, str]) -> asyncio.Future[str]:
        self.messages.append((topic, payload, properties))
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if self.error:
            future.set_exception(self.error)
        elif self.answers:
            asyncio.get_running_loop().call_soon(future.set_result, f"1:{len(self.messages)}:0:-1")
        return future


class MemoryOutbox:
    """What the publisher tells the outbox."""

    def __init__(self) -> None:
        self.backlog = Backlog()
        self.done: list[int] = []
        self.lost: list[int] = []

    def stored(self, seq: int) -> None:
        self.done.append(seq)

    def failed(self, seq: int) -> None:
        self.lost.append(seq)


class FixedRoutes:
    """Routes that never change."""

    def __init__(self, directory: Path) -> None:
        path = directory / "routes.yml"
        path.write_text(ROUTES)
        self.current = routes_file.load(path)


class Bench:
    """The application with everything around it made of memory."""

    def __init__(self, directory: Path, limits: Limits | None = None, oidc: Any = None) -> None:
        self.settings = Settings(
            environment="test",
            database=Database(host="/nowhere"),
            n8n=N8n(urls=["http://127.0.0.1:1"]),
            pulsar=Pulsar(url="pulsar://127.0.0.1:1"),
            limits=limits or Limits(receipt_ms=20),
        )
        self.store = MemoryStore()
        self.broker = MemoryBroker()
        self.outbox = MemoryOutbox()
        self.registry = CollectorRegistry()
        self.metrics = PublishMetrics(self.registry)
        self.spans = InMemorySpanExporter()
        self.tracing = Tracing(self.settings, "test", "1", exporter=self.spans)
        self.clock = datetime.now(UTC).timestamp()
        self.accounts = Accounts(
            {
                "n8n": Account("n8n", "acme", EVERYTHING, SECRET),
                "narrow": Account("narrow", "acme", frozenset({"publish:direct"}), "n" * 40),
                "other": Account("other", "rival", EVERYTHING, "o" * 40),
            }
        )
        self.issuer = TokenIssuer(self.settings.tokens, self.accounts, ["k" * 40], lambda: self.clock)
        self.keyring = Keyring.of("m" * 40)
        self.limiter = Limiter(self.settings.limits, 1)
        self.decided: list[str] = []
        self.publisher = Publisher(
            self.settings,
            self.store,
            self.broker,
            self.outbox,
            FixedRoutes(directory),
            self.keyring,
            self.limiter,
            self.metrics,
            lambda route: self.decided.append(route.name),
            tracing=self.tracing,
        )
        self.authenticator = Authenticator(self.issuer, oidc, lambda: self.clock)
        self.app = app.build(
            self.settings,
            Services(self.store, self.publisher, self.authenticator),
            self.accounts,
            self.issuer,
            self.tracing,
            self.metrics,
        )

    def token(self, name: str = "n8n") -> str:
        """Return an access token of an account."""
        account = self.accounts.accounts[name]
        return self.issuer.issue(account, account.scopes)

    def headers(self, name: str = "n8n", **more: str) -> dict[str, str]:
        """Return the headers of a request of an account."""
        return {"authorization": f"Bearer {self.token(name)}", "content-type": "application/json", **more}

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Return a client of the application."""
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://bridge") as client:
            yield client

    def ask(self, method: str, path: str, account: str | None = "n8n", **options: Any) -> httpx.Response:
        """Make one request."""

        async def go() -> httpx.Response:
            headers = {**(self.headers(account) if account else {}), **options.pop("headers", {})}
            async with self.client() as client:
                return await client.request(method, path, headers=headers, **options)

        return asyncio.run(go())

    def publish(self, account: str = "n8n", headers: Mapping[str, str] | None = None, **event: Any) -> httpx.Response:
        """Publish an event."""
        content = {"type": "order.created", "data": {"n": 1}, **event}
        return self.ask("POST", "/pulsar/publish", account, content=json.dumps(content), headers=dict(headers or {}))

    def sample(self, name: str, **labels: str) -> float:
        """Return a metric's value, 0 when there is none."""
        return self.registry.get_sample_value(name, labels) or 0.0


def basic(name: str, secret: str) -> str:
    """Return the header of HTTP Basic authentication."""
    return "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()

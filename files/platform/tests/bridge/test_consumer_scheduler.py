# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduler: fair among tenants, never beyond the limits, and patient with the database."""

from __future__ import annotations

import asyncio
from typing import Any

from n8n_platform.bridge.consumer import scheduler as module
from n8n_platform.bridge.consumer.limits import Limits
from n8n_platform.bridge.consumer.scheduler import Scheduler

from files.platform.tests.bridge.consumer_fakes import FakeN8n, FakeStore, delivery, event


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """A scheduler among fakes. Make it inside an event loop."""

    def __init__(self, most: int = 100, every_s: float = 30.0, **more: Any) -> None:
        self.store, self.n8n, self.clock = FakeStore(), FakeN8n(), Clock()
        self.delivery = delivery(self.n8n, self.store, **more)
        self.scheduler = Scheduler(self.store, self.delivery, every_s, most, self.clock)

    def add(self, count: int, **changes: Any) -> None:
        """Let deliveries be due."""
        for _ in range(count):
            self.store.add(event(route="direct", topic=None, **changes), "retry")

    async def settle(self) -> None:
        """Wait for everything under way."""
        while self.scheduler.tasks:
            await asyncio.gather(*self.scheduler.tasks)

    def states(self, tenant: str) -> list[str]:
        """Return the states of a tenant's deliveries."""
        return [self.store.states[item.id] for item in self.store.events.values() if item.tenant == tenant]


def test_what_is_due_is_delivered() -> None:
    async def run() -> None:
        scene = Scene()
        scene.add(3)
        assert await scene.scheduler.once() == 3
        await scene.settle()
        assert scene.states("acme") == ["done"] * 3
        assert await scene.scheduler.once() == 0
        assert scene.delivery.tools.limits.busy == 0
        assert not scene.scheduler.hungry

    asyncio.run(run())


def test_a_long_queue_of_one_tenant_costs_the_others_nothing() -> None:
    async def run() -> None:
        scene = Scene()
        scene.add(50, tenant="slow")
        scene.add(2, tenant="fast")
        scene.n8n.gate.clear()
        assert await scene.scheduler.once() == 6
        assert scene.states("fast") == ["leased"] * 2
        assert scene.states("slow").count("leased") == 4
        assert scene.scheduler.hungry
        # Room becomes free: the next pass is asked for at once.
        scene.scheduler.wake.clear()
        scene.n8n.gate.set()
        await scene.settle()
        assert scene.scheduler.wake.is_set()

    asyncio.run(run())


def test_no_tenant_takes_more_than_its_share_of_a_pass() -> None:
    async def run() -> None:
        scene = Scene(most=6, limits=Limits(100, 100, 3, 10))
        for tenant in ("a", "b", "c"):
            scene.add(9, tenant=tenant)
        assert await scene.scheduler.once() == 6
        assert [scene.states(tenant).count("retry") for tenant in ("a", "b", "c")] == [7, 7, 7]
        await scene.settle()

    asyncio.run(run())


def test_room_that_found_nothing_is_given_back() -> None:
    async def run() -> None:
        scene = Scene()
        scene.add(1)
        # Another process was faster.
        scene.store.lease = nothing  # type: ignore[method-assign]
        assert await scene.scheduler.once() == 0
        assert scene.delivery.tools.limits.busy == 0
        scene.store.lease = broken  # type: ignore[method-assign]
        try:
            await scene.scheduler.once()
        except OSError:
            assert scene.delivery.tools.limits.busy == 0

    asyncio.run(run())


async def nothing(rooms: Any) -> list[Any]:
    return []


async def broken(rooms: Any) -> list[Any]:
    raise OSError("away")


def test_a_lane_nobody_uses_is_shown_no_longer() -> None:
    async def run() -> None:
        scene = Scene()
        tools = scene.delivery.tools
        tools.limits.forget = lambda: [("gone", "orders")]  # type: ignore[method-assign]
        for tenant in ("gone", "here"):
            tools.metrics.breaker_open.labels(tenant, "orders").set(1)
            tools.metrics.in_flight.labels(tenant, "orders").set(0)
        await scene.scheduler.once()
        for metric in (tools.metrics.breaker_open, tools.metrics.in_flight):
            (family,) = metric.collect()
            assert [sample.labels["tenant"] for sample in family.samples] == ["here"]

    asyncio.run(run())


def test_leases_and_numbers_are_looked_at_now_and_then() -> None:
    async def run() -> None:
        scene = Scene()
        for _ in range(3):
            await scene.scheduler.once()
        assert scene.store.freed == 1
        scene.clock.now += 16
        scene.add(1, tenant="blocked", expires_at=event().created_at)
        await scene.scheduler.once()
        assert scene.store.freed == 2
        assert scene.delivery.tools.metrics.retry_rows._value.get() == 1
        assert scene.scheduler.last_pass == scene.clock.now
        await scene.settle()

    asyncio.run(run())


def test_it_runs_until_it_is_told_to_stop(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "SHORTEST_SECONDS", 0.001)
    monkeypatch.setattr(module, "FAILED_SECONDS", 0.001)

    async def run() -> None:
        scene = Scene()
        scene.store.errors = [OSError("away"), RuntimeError("broken")]
        scene.add(10)
        running = asyncio.create_task(scene.scheduler.run())
        while set(scene.states("acme")) != {"done"}:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        # Nothing is due, so it waits; what is put off wakes it.
        scene.add(1, tenant="late")
        scene.scheduler.wake.set()
        while scene.states("late") != ["done"]:
            await asyncio.sleep(0.001)
        scene.scheduler.stop()
        await running

    asyncio.run(run())


def test_trouble_with_one_delivery_harms_no_other() -> None:
    async def run() -> None:
        scene = Scene()
        scene.add(2)
        scene.n8n.gate.clear()
        await scene.scheduler.once()
        scene.store.errors = [RuntimeError("broken")]
        scene.n8n.gate.set()
        await scene.settle()
        assert sorted(scene.states("acme")) == ["done", "leased"]
        assert scene.delivery.tools.limits.busy == 0

    asyncio.run(run())

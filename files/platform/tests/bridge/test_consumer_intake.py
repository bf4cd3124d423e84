# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages from Pulsar: what is delivered, put off, passed over or moved away, and when each is acknowledged."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest
from n8n_platform.bridge.consumer.intake import Intake
from n8n_platform.bridge.consumer.limits import Limits
from n8n_platform.bridge.signing import Keyring

from files.platform.tests.bridge.consumer_fakes import (
    NOW,
    RING,
    TOPIC,
    FakeBroker,
    FakeN8n,
    FakeSettler,
    FakeStore,
    delivery,
    event,
    message,
)


class Scene:
    """An intake among fakes. Make it inside an event loop."""

    def __init__(self, **more: Any) -> None:
        self.store, self.n8n, self.settler, self.broker = FakeStore(), FakeN8n(), FakeSettler(), FakeBroker()
        self.put_off = 0
        self.delivery = delivery(self.n8n, self.store, **more)
        self.intake = Intake(
            RING, self.store, self.delivery, self.settler, self.broker.submit, self.note, clock=lambda: NOW
        )

    def note(self) -> None:
        self.put_off += 1

    async def settle(self) -> None:
        """Wait for everything under way."""
        while self.intake.tasks:
            await asyncio.gather(*self.intake.tasks)

    def count(self, outcome: str, route: str = "short", tenant: str = "acme") -> float:
        """Return how often deliveries had an outcome."""
        found: float = self.delivery.tools.metrics.deliveries.labels(route, tenant, outcome)._value.get()
        return found


def test_a_message_is_delivered_and_only_then_acknowledged() -> None:
    async def run() -> None:
        scene = Scene()
        item = scene.store.add(event())
        scene.n8n.gate.clear()
        await scene.intake.handle([message(item)])
        await asyncio.sleep(0)
        assert scene.store.states[item.id] == "leased"
        assert scene.settler.good == []
        scene.n8n.gate.set()
        await scene.settle()
        assert scene.store.states[item.id] == "done"
        assert scene.settler.good == ["m1"]
        assert scene.count("done") == 1

    asyncio.run(run())


def test_a_failed_delivery_belongs_to_the_database_from_then_on() -> None:
    async def run() -> None:
        scene = Scene()
        scene.n8n.answer = lambda request: httpx.Response(500)
        item = scene.store.add(event())
        await scene.intake.handle([message(item)])
        await scene.settle()
        assert scene.store.states[item.id] == "retry"
        assert scene.settler.good == ["m1"]
        # The same message again, because its acknowledgement was lost.
        await scene.intake.handle([message(item, 2)])
        assert scene.settler.good == ["m1", "m2"]
        assert len(scene.n8n.requests) == 1
        assert scene.count("duplicate") == 1

    asyncio.run(run())


@pytest.mark.parametrize("state", ["leased", "retry", "done", "dead", "cancelled"])
def test_what_has_a_delivery_is_not_begun_again(state: str) -> None:
    async def run() -> None:
        scene = Scene()
        await scene.intake.handle([message(scene.store.add(event(), state))])
        await scene.settle()
        assert scene.settler.good == ["m1"]
        assert scene.n8n.requests == []
        assert scene.count("cancelled" if state == "cancelled" else "duplicate") == 1

    asyncio.run(run())


def test_one_message_twice_in_a_batch_is_one_call() -> None:
    async def run() -> None:
        scene = Scene()
        item = scene.store.add(event())
        await scene.intake.handle([message(item, 1), message(item, 2)])
        await scene.settle()
        assert sorted(scene.settler.good) == ["m1", "m2"]
        assert len(scene.n8n.requests) == 1
        assert scene.delivery.tools.limits.busy == 0

    asyncio.run(run())


def test_a_tenant_without_room_holds_nobody_up() -> None:
    async def run() -> None:
        scene = Scene()
        scene.n8n.gate.clear()
        slow = [scene.store.add(event()) for _ in range(4)]
        fast = scene.store.add(event(tenant="other"))
        await scene.intake.handle([message(item, number) for number, item in enumerate([*slow, fast])])
        await asyncio.sleep(0)
        assert [scene.store.states[item.id] for item in slow] == ["leased", "leased", "retry", "retry"]
        assert scene.store.states[fast.id] == "leased"
        # What was put off is in the database, so Pulsar need not keep it.
        assert scene.settler.good == ["m2", "m3"]
        assert scene.put_off == 2
        scene.n8n.gate.set()
        await scene.settle()

    asyncio.run(run())


def test_the_trace_goes_on_from_the_message() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def run() -> None:
        scene = Scene()
        first, second = scene.store.add(event()), scene.store.add(event(traceparent=trace))
        await scene.intake.handle([message(first, traceparent=trace), message(second, traceparent="nonsense")])
        await scene.settle()
        assert [request.headers["traceparent"] for request in scene.n8n.requests] == [trace, trace]

    asyncio.run(run())


def test_events_nobody_is_called_for_need_no_room() -> None:
    async def run() -> None:
        scene = Scene()
        items = [scene.store.add(event(route="listen")) for _ in range(9)]
        await scene.intake.handle([message(item, number) for number, item in enumerate(items)])
        assert set(scene.store.states.values()) == {"done"}
        assert len(scene.settler.good) == 9
        assert (scene.put_off, scene.n8n.requests) == (0, [])
        assert scene.count("done", "listen") == 9

    asyncio.run(run())


def test_a_full_process_leaves_the_rest_in_pulsar() -> None:
    async def run() -> None:
        scene = Scene(limits=Limits(2, 2, 3, 10))
        scene.n8n.gate.clear()
        items = [scene.store.add(event(tenant=f"t{number}")) for number in range(5)]
        handling = asyncio.create_task(
            scene.intake.handle([message(item, number) for number, item in enumerate(items)])
        )
        while len(scene.n8n.requests) < 2:
            await asyncio.sleep(0)
        assert len(scene.store.states) == 2
        assert not handling.done()
        scene.n8n.gate.set()
        await handling
        await scene.settle()
        assert sorted(scene.settler.good) == ["m0", "m1", "m2", "m3", "m4"]

    asyncio.run(run())


def test_stopping_leaves_what_was_not_begun() -> None:
    async def run() -> None:
        scene = Scene(limits=Limits(1, 1, 3, 10))
        scene.n8n.gate.clear()
        items = [scene.store.add(event(tenant=f"t{number}")) for number in range(3)]
        handling = asyncio.create_task(scene.intake.handle([message(item) for item in items]))
        while not scene.n8n.requests:
            await asyncio.sleep(0)
        scene.intake.stop()
        await handling
        scene.n8n.gate.set()
        await scene.settle()
        assert len(scene.n8n.requests) == 1
        assert (len(scene.settler.good), scene.settler.bad) == (1, [])

    asyncio.run(run())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ring": Keyring.of("another-master-secret")}, "unknown_key"),
        ({"tenant": "other"}, "wrong_tenant"),
        ({"issued_at": int(NOW) + 900}, "not_yet_valid"),
        ({"event_id": "not-an-id"}, "malformed"),
        ({"event_id": "3f1e0fd4-6d1b-4e8a-9a3f-1f4f0a3c7a11"}, "malformed"),
        ({"event_id": "01890000-0000-7000-8000-000000000000"}, "unknown_event"),
    ],
)
def test_what_must_not_be_believed_is_a_dead_letter(change: dict[str, Any], reason: str) -> None:
    async def run() -> None:
        scene = Scene()
        item = scene.store.add(event())
        bad = message(item, **change)
        await scene.intake.handle([bad])
        await scene.settle()
        ((topic, payload, properties),) = scene.broker.stored
        assert (topic, payload) == ("dealscale.deadletter.workflow.short", bad.payload)
        assert properties["reason"] == f"rejected: {reason}"
        assert (properties["origin_topic"], properties["origin_message_id"]) == (TOPIC, "m1")
        assert scene.settler.good == ["m1"]
        assert scene.n8n.requests == []
        assert item.id not in scene.store.states
        assert scene.count("rejected", "unknown", "unknown") == 1
        assert scene.delivery.tools.metrics.signature_failures.labels(reason)._value.get() == 1

    asyncio.run(run())


def test_a_forged_message_is_a_dead_letter_and_the_good_one_beside_it_is_not() -> None:
    async def run() -> None:
        scene = Scene()
        item = scene.store.add(event())
        good = message(item, 1)
        forged = replace(good, message_id="m2", properties={**good.properties, "signature": "AAAA"})
        await scene.intake.handle([forged, good])
        await scene.settle()
        assert sorted(scene.settler.good) == ["m1", "m2"]
        assert len(scene.broker.stored) == len(scene.n8n.requests) == 1

    asyncio.run(run())


def test_an_expired_message_is_for_the_database_to_decide() -> None:
    async def run() -> None:
        scene = Scene()
        item = scene.store.add(event())
        await scene.intake.handle([message(item, expires_at=int(NOW) - 900)])
        await scene.settle()
        assert scene.broker.stored == []
        assert scene.store.states[item.id] == "done"

    asyncio.run(run())


def test_a_dead_letter_that_is_not_stored_comes_again() -> None:
    async def run() -> None:
        scene = Scene()
        scene.broker.away = True
        await scene.intake.handle([message(event())])
        await scene.settle()
        assert (scene.settler.good, scene.settler.bad) == ([], ["m1"])

    asyncio.run(run())


@pytest.mark.parametrize("failures", [1, 2])
def test_trouble_with_a_batch_lets_it_come_again(failures: int) -> None:
    async def run() -> None:
        scene = Scene()
        item = scene.store.add(event())
        # In the first or in the second query.
        scene.store.errors = [RuntimeError("broken")] if failures == 1 else []
        if failures == 2:
            scene.store.take = broken  # type: ignore[method-assign]
        await scene.intake.handle([message(item)])
        await scene.settle()
        assert (scene.settler.good, scene.settler.bad) == ([], ["m1"])
        assert scene.delivery.tools.limits.busy == 0

    asyncio.run(run())


async def broken(wishes: Any) -> Any:
    raise RuntimeError("broken")


def test_trouble_with_a_delivery_lets_its_message_come_again() -> None:
    async def run() -> None:
        scene = Scene()
        item = scene.store.add(event())
        scene.n8n.gate.clear()
        await scene.intake.handle([message(item)])
        scene.store.errors = [RuntimeError("broken")]
        scene.n8n.gate.set()
        await scene.settle()
        assert (scene.settler.good, scene.settler.bad) == ([], ["m1"])

    asyncio.run(run())

# SPDX-License-Identifier: GPL-3.0-or-later
"""One attempt: what it does, how it ends, and what it leaves behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from n8n_platform.bridge.consumer.caller import Kind, Outcome
from n8n_platform.bridge.consumer.delivery import ending
from n8n_platform.bridge.consumer.limits import Verdict
from n8n_platform.bridge.deliveries import End
from n8n_platform.bridge.routing import Route

from files.platform.tests.bridge.consumer_fakes import NOW, ROUTES, FakeN8n, FakeStore, delivery, event

DEAD_TOPIC = "dealscale.deadletter.workflow.short"
FAILED = Outcome(Kind.RETRY, Verdict.ILL, 500, "n8n answered 500")


def deliver(n8n: FakeN8n, store: FakeStore | None = None, **changes: Any) -> End:
    async def run() -> End:
        kept = store or FakeStore()
        made = delivery(n8n, kept)
        item = kept.add(event(**changes), "leased")
        ended = []
        made.ended = lambda: ended.append(True)
        assert made.tools.limits.enter(item.tenant, item.route, 2)
        await made.deliver(item)
        assert made.tools.limits.busy == 0
        assert made.freed.is_set()
        assert not made.working
        assert ended == [True]
        assert made.tools.metrics.in_flight.labels("acme", item.route)._value.get() == 0
        return kept.ends[-1]

    return asyncio.run(run())


def test_success_ends_it() -> None:
    n8n = FakeN8n()
    end = deliver(n8n)
    assert (end.state, end.status, end.error, end.dead_topic) == ("done", 200, None, None)
    assert str(n8n.requests[0].url) == "http://n8n:5701/webhook/orders"


def test_without_a_webhook_nobody_is_called() -> None:
    n8n = FakeN8n()
    assert deliver(n8n, route="listen").state == "done"
    assert n8n.requests == []


def test_an_expired_event_is_not_delivered() -> None:
    n8n = FakeN8n()
    end = deliver(n8n, expires_at=datetime.fromtimestamp(NOW - 1, UTC))
    assert (end.state, end.error, end.dead_topic, end.free) == ("dead", "expired", DEAD_TOPIC, True)
    assert n8n.requests == []


def test_a_route_that_is_gone_is_waited_for() -> None:
    end = deliver(FakeN8n(), route="old")
    assert (end.state, end.delay_s, end.free) == ("retry", 60, True)
    assert end.error == "route old is not in the file of routes"


def test_a_path_nobody_can_make_is_final() -> None:
    end = deliver(FakeN8n(), workflow=None)
    assert (end.state, end.dead_topic) == ("dead", DEAD_TOPIC)
    assert end.error is not None
    assert "cannot be part of the path" in end.error


def test_a_failure_is_tried_again_and_a_refusal_is_not() -> None:
    end = deliver(FakeN8n(lambda request: httpx.Response(500)))
    assert (end.state, end.status, end.error) == ("retry", 500, "n8n answered 500")
    assert 0 <= end.delay_s <= 1
    end = deliver(FakeN8n(lambda request: httpx.Response(410)))
    assert (end.state, end.status, end.dead_topic) == ("dead", 410, DEAD_TOPIC)


def test_dead_letters_need_a_topic() -> None:
    end = deliver(FakeN8n(lambda request: httpx.Response(410)), route="direct", topic=None)
    assert (end.state, end.dead_topic) == ("dead", None)


def test_a_cancelled_delivery_is_counted_as_such() -> None:
    async def run() -> None:
        store, n8n = FakeStore(), FakeN8n()
        made = delivery(n8n, store)
        item = store.add(event(), "cancelled")
        assert made.tools.limits.enter("acme", "short", 2)
        await made.deliver(item)
        count = made.tools.metrics.deliveries.labels("short", "acme", "cancelled")
        assert count._value.get() == 1

    asyncio.run(run())


def test_room_is_given_back_whatever_happens() -> None:
    async def run() -> None:
        store, n8n = FakeStore(errors=[RuntimeError("broken")]), FakeN8n()
        made = delivery(n8n, store)
        assert made.tools.limits.enter("acme", "short", 2)
        with pytest.raises(RuntimeError, match="broken"):
            await made.deliver(event())
        assert made.tools.limits.busy == 0

    asyncio.run(run())


def test_the_breaker_shows_in_the_metrics() -> None:
    async def run() -> None:
        store, n8n = FakeStore(), FakeN8n(lambda request: httpx.Response(500))
        made = delivery(n8n, store)
        for _ in range(3):
            assert made.tools.limits.enter("acme", "short", 2)
            await made.deliver(event())
        assert made.tools.metrics.breaker_open.labels("acme", "short")._value.get() == 1
        assert not made.tools.limits.enter("acme", "short", 2)

    asyncio.run(run())


SHORT = ROUTES.by_name["short"]


@given(
    attempt=st.integers(1, 30),
    age=st.floats(0, 10**6),
    asked=st.floats(0, 10**5),
    lifetime=st.floats(1, 10**6),
)
def test_nothing_is_tried_for_ever(attempt: int, age: float, asked: float, lifetime: float) -> None:
    made = datetime.fromtimestamp(NOW, UTC)
    item = event(
        attempt=attempt, created_at=made - timedelta(seconds=age), expires_at=made + timedelta(seconds=lifetime)
    )
    outcome = Outcome(Kind.RETRY, Verdict.BUSY, 503, "busy", asked)
    end = ending(item, SHORT, outcome, NOW)
    if attempt >= SHORT.max_attempts or age + asked > SHORT.max_age_s or asked > lifetime:
        assert end.state == "dead"
    if end.state == "retry":
        assert end.delay_s >= asked
        assert age + end.delay_s <= SHORT.max_age_s
        assert end.delay_s <= lifetime
    else:
        assert end.dead_topic == DEAD_TOPIC
        assert end.error
        assert "busy" in end.error


def test_reasons_are_words() -> None:
    old = datetime.fromtimestamp(NOW - 86400, UTC)
    soon = datetime.fromtimestamp(NOW, UTC)
    asked = Outcome(Kind.RETRY, Verdict.BUSY, 503, "busy", 5)
    assert ending(event(attempt=3), SHORT, FAILED, NOW).error == "attempt 3 of 3 failed: n8n answered 500"
    assert ending(event(created_at=old), SHORT, asked, NOW).error == "too old after 86400 s, the last attempt: busy"
    assert ending(event(expires_at=soon), SHORT, asked, NOW).error == "expires before the next attempt, the last: busy"


def test_a_webhook_that_is_not_there_is_waited_for_a_while() -> None:
    missing = Outcome(Kind.RETRY, Verdict.NOTHING, 404, "n8n answered 404", missing=True)
    young = datetime.fromtimestamp(NOW - 500, UTC)
    old = datetime.fromtimestamp(NOW - 601, UTC)
    assert ending(event(created_at=young), SHORT, missing, NOW).state == "retry"
    end = ending(event(created_at=old), SHORT, missing, NOW)
    assert (end.state, end.error) == ("dead", "n8n answered 404")


def test_what_nobody_took_is_no_attempt() -> None:
    free = Outcome(Kind.RETRY, Verdict.NOTHING, error="no process of n8n can be called", free=True)
    end = ending(event(attempt=99), SHORT, free, NOW)
    assert (end.state, end.delay_s, end.free) == ("retry", 0.5, True)


def test_leases_outlive_calls() -> None:
    async def run() -> None:
        tools = delivery(FakeN8n(), FakeStore()).tools
        assert tools.lease(SHORT) == 60
        assert tools.lease(replace(SHORT, timeout_s=300)) == 330
        assert tools.route("nobody").max_attempts == Route("", "").max_attempts

    asyncio.run(run())

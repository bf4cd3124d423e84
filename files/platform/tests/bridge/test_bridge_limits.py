"""What tenants may send: rates of one process, quotas of all together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from n8n_platform.bridge.api.limits import Limiter
from n8n_platform.bridge.api.problems import KINDS, Problem, pointer
from n8n_platform.bridge.bucket import Bucket
from n8n_platform.bridge.settings import Limits, Tenant

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Clock:
    """Time that is set by the test."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.seconds)


def limiter(clock: Clock, processes: int = 1, **tenant: float) -> Limiter:
    return Limiter(Limits(tenant=msgspec.convert(tenant, Tenant)), processes, clock, clock.now)


def refusal(found: Limiter, events: int = 1, size: int = 10) -> Problem | None:
    try:
        found.check("acme", events, size)
    except Problem as problem:
        return problem
    return None


def test_the_rate_is_divided_among_the_processes() -> None:
    clock = Clock()
    found = limiter(clock, processes=2, events_per_second=10, burst=4)
    assert [refusal(found) is None for _ in range(3)] == [True, True, False]
    problem = refusal(found)
    assert problem is not None
    assert problem.headers["retry-after"] == "1"
    clock.seconds += 0.2
    assert refusal(found) is None
    assert refusal(found) is not None


def test_a_batch_may_overdraw_but_is_not_forgotten() -> None:
    clock = Clock()
    found = limiter(clock, events_per_second=10, burst=10)
    assert refusal(found, events=100) is None
    clock.seconds += 9
    assert refusal(found) is not None
    clock.seconds += 1
    assert refusal(found) is None


@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0, 3)), max_size=60), st.floats(0.5, 50), st.integers(1, 30))
def test_no_order_of_requests_beats_the_rate(requests: list[tuple[int, float]], rate: float, burst: int) -> None:
    bucket, now, taken = Bucket(rate, burst, 0.0), 0.0, 0
    for count, pause in requests:
        now += pause
        if bucket.take(count, now) == 0:
            taken += count
        # What is overdrawn by one batch is the most that can be ahead.
        assert taken <= burst + now * rate + 20 + 1e-6


def test_quotas_are_summed_up_over_all_processes() -> None:
    clock = Clock()
    found = limiter(clock, events_per_day=100, bytes_per_day=1000)
    saved: list[tuple[date, dict[str, tuple[int, int]]]] = []

    async def add(day: date, used: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        saved.append((day, dict(used)))
        # Other processes have counted, too.
        return {"acme": (99, 500)}

    found.count("acme", 1, 100)
    found.count("acme", 1, 50)
    asyncio.run(found.save(add))
    assert saved == [(NOON.date(), {"acme": (2, 150)})]
    assert refusal(found) is None
    found.count("acme", 1, 10)
    problem = refusal(found)
    assert problem is not None
    assert "has sent 100" in problem.detail
    assert problem.headers["retry-after"] == str(12 * 3600)
    assert refusal(found, events=0, size=491) is not None
    clock.seconds = 12 * 3600 + 1
    assert refusal(found) is None
    asyncio.run(found.save(add))
    assert saved[1] == (NOON.date(), {"acme": (1, 10)})
    # What another day's total was is no matter today.
    assert refusal(found) is None
    found.count("acme", 1, 10)
    asyncio.run(found.save(add))
    assert saved[2][0] == NOON.date() + timedelta(days=1)


def test_what_cannot_be_saved_is_kept() -> None:
    clock = Clock()
    found = limiter(clock, events_per_day=3)

    async def broken(day: date, used: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        found.count("acme", 1, 1)
        raise ConnectionResetError

    found.count("acme", 1, 1)
    with pytest.raises(ConnectionResetError):
        asyncio.run(found.save(broken))
    assert refusal(found) is None
    assert refusal(found, events=2) is not None


def test_without_limits_everything_goes() -> None:
    found = limiter(Clock())
    assert all(refusal(found, events=10**6, size=10**9) is None for _ in range(10))


@given(st.lists(st.text(max_size=5) | st.integers(0, 9)))
def test_pointers_can_be_read_back(path: list[str | int]) -> None:
    parts = pointer(path).split("/")[1:]
    assert [part.replace("~1", "/").replace("~0", "~") for part in parts] == [str(part) for part in path]


def test_every_kind_of_problem_is_a_refusal() -> None:
    for kind, (status, _) in KINDS.items():
        body = Problem(kind, "Why.").body()
        assert body["status"] == status >= 400
        assert body["type"].endswith(f"#{kind}")

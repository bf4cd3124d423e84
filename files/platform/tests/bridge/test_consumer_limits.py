# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits: of the process, of a tenant, of a tenant on a route; how they adapt, and the breaker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from n8n_platform.bridge.consumer.limits import LONGEST_PAUSES, Breaker, Limits, Verdict


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_each_limit_counts_for_itself() -> None:
    limits = Limits(total=5, per_tenant=3, breaker_failures=3, breaker_s=10)
    assert [limits.enter("acme", "a", 2) for _ in range(3)] == [True, True, False]
    assert [limits.enter("acme", "b", 2) for _ in range(2)] == [True, False]
    assert limits.room("other", "a", 9) == 2
    assert [limits.enter("other", "a", 9) for _ in range(3)] == [True, True, False]
    assert limits.full()
    limits.leave("acme", "a", 2, Verdict.NOTHING)
    assert not limits.full()
    assert limits.room("acme", "a", 2) == 1


ENTRIES = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.sampled_from(list(Verdict))))


@given(ENTRIES, st.integers(1, 6), st.integers(1, 4))
def test_nothing_is_lost_or_exceeded(entries: list[tuple[str, str, Verdict]], total: int, per_tenant: int) -> None:
    limits = Limits(total, per_tenant, 1000, 10)
    inside: list[tuple[str, str, Verdict]] = []
    for tenant, route, verdict in entries:
        if limits.enter(tenant, route, 3):
            inside.append((tenant, route, verdict))
        else:
            for one in inside:
                limits.leave(one[0], one[1], 3, one[2])
            inside.clear()
        assert limits.busy == len(inside) <= total
        assert all(count <= per_tenant for count in limits.tenants.values())
    for one in inside:
        limits.leave(one[0], one[1], 3, one[2])
    assert limits.busy == 0
    assert not limits.tenants
    assert all(lane.busy == 0 and 1 <= lane.limit <= 3 for lane in limits.lanes.values())


def test_a_busy_n8n_gets_half_as_much_and_slowly_more_again() -> None:
    clock = Clock()
    limits = Limits(100, 100, 3, 10, clock)
    for _ in range(8):
        assert limits.enter("acme", "a", 8)
    for _ in range(3):
        limits.leave("acme", "a", 8, Verdict.BUSY)
    # A burst of refusals counts once.
    assert limits.lanes["acme", "a"].limit == 4
    clock.now += 2
    limits.leave("acme", "a", 8, Verdict.BUSY)
    assert limits.lanes["acme", "a"].limit == 2
    for _ in range(4):
        limits.leave("acme", "a", 8, Verdict.WELL)
    assert 3 < limits.lanes["acme", "a"].limit < 4
    for _ in range(100):
        assert limits.enter("acme", "a", 8)
        limits.leave("acme", "a", 8, Verdict.WELL)
    assert limits.lanes["acme", "a"].limit == 8


def test_a_lane_is_never_closed_by_refusals_alone() -> None:
    clock = Clock()
    limits = Limits(100, 100, 3, 10, clock)
    for _ in range(20):
        clock.now += 2
        assert limits.enter("acme", "a", 8)
        limits.leave("acme", "a", 8, Verdict.BUSY)


def test_the_breaker_opens_tries_once_and_closes() -> None:
    clock = Clock()
    limits = Limits(100, 100, 3, 10, clock)
    for _ in range(3):
        assert limits.enter("acme", "a", 8)
    for _ in range(3):
        limits.leave("acme", "a", 8, Verdict.ILL)
    assert not limits.enter("acme", "a", 8)
    assert limits.enter("other", "a", 8)
    assert 8 <= limits.pause("acme", "a") <= 12
    clock.now += 13
    assert limits.enter("acme", "a", 8)
    assert not limits.enter("acme", "a", 8)
    limits.leave("acme", "a", 8, Verdict.WELL)
    assert limits.room("acme", "a", 8) == 8
    assert limits.pause("nobody", "a") == 0


def test_a_breaker_waits_longer_each_time_up_to_a_limit() -> None:
    clock = Clock()
    breaker = Breaker(1, 10, clock)
    pauses = []
    for _ in range(12):
        breaker.failed()
        # Failures of calls that began before it opened change nothing.
        before = breaker.until
        breaker.failed()
        assert breaker.until == before
        pauses.append(breaker.closed_for())
        clock.now = breaker.until
    assert all(8 * min(n, LONGEST_PAUSES) <= pause <= 12 * min(n, LONGEST_PAUSES) for n, pause in enumerate(pauses, 1))
    assert breaker.tripped
    breaker.succeeded()
    assert not breaker.tripped


def test_failures_must_come_in_a_row() -> None:
    breaker = Breaker(3, 10, Clock())
    for _ in range(5):
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
    assert not breaker.tripped


def test_idle_lanes_are_forgotten() -> None:
    clock = Clock()
    limits = Limits(10, 10, 3, 10, clock)
    assert limits.enter("acme", "a", 1)
    assert limits.enter("other", "a", 1)
    limits.leave("other", "a", 1, Verdict.WELL)
    clock.now += 4000
    assert limits.forget() == [("other", "a")]
    assert list(limits.lanes) == [("acme", "a")]


def test_a_route_with_less_concurrency_counts_at_once() -> None:
    limits = Limits(10, 10, 3, 10)
    assert limits.room("acme", "a", 8) == 8
    assert limits.room("acme", "a", 2) == 2


def test_when_nobody_can_be_called_there_is_no_room() -> None:
    limits = Limits(10, 10, 3, 10)
    limits.closed = True
    assert limits.full()
    assert not limits.enter("acme", "a", 8)
    limits.closed = False
    assert limits.enter("acme", "a", 8)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The queries of the consumer: what is asked, and how answers are read. What they do is tested on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg
from hypothesis import given
from hypothesis import strategies as st
from n8n_platform.bridge import deliveries_sql, ids
from n8n_platform.bridge.deliveries import ERROR_CHARACTERS, Deliveries, End, Known, Wish, clean, transient

from files.platform.tests.bridge.consumer_fakes import NOW, event

OWNER = "consumer-1@host_a/77-1"


class FakePool:
    """Answers each query with what is given for it, and remembers how it was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, tuple[Any, ...]]] = []

    async def fetch(self, query: str, *arguments: Any) -> Sequence[Any]:
        self.asked.append((query, arguments))
        found: Sequence[Any] = self.answers[query]
        return found

    async def fetchval(self, query: str, *arguments: Any) -> Any:
        self.asked.append((query, arguments))
        return self.answers[query]


def row(item: Any, **more: Any) -> dict[str, Any]:
    """Return an event as a row."""
    return {**vars(item), **more}


def make(answers: dict[str, Any]) -> tuple[Deliveries, FakePool]:
    pool = FakePool(answers)
    return Deliveries(pool, OWNER), pool


A, B, C = (event() for _ in range(3))


def test_what_is_known_comes_in_the_order_asked() -> None:
    rows = [{"id": B.id, "tenant": "acme", "route": "short", "topic": None, "state": "done"}]
    made, pool = make({deliveries_sql.LOOK: rows})
    assert asyncio.run(made.look([A.id, B.id])) == [None, Known("acme", "short", None, "done")]
    assert pool.asked[0][1] == ([A.id, B.id], [ids.day(A.id)] * 2)


def test_only_leases_are_returned_and_each_once() -> None:
    rows = [row(A, state="leased")]
    made, pool = make({deliveries_sql.TAKE: rows})
    wishes = [
        Wish(A.id, "m1", "leased", 60),
        Wish(B.id, "m2", "retry"),
        Wish(A.id, "m1", "leased", 60),
        Wish(C.id, "m3", "done"),
    ]
    assert asyncio.run(made.take(wishes)) == [A, None, None, None]
    assert pool.asked[0][1] == (
        [A.id, B.id, C.id],
        [ids.day(A.id)] * 3,
        ["m1", "m2", "m3"],
        [60, None, None],
        ["leased", "retry", "done"],
        OWNER,
    )


def test_ends_are_written_in_one_order_and_answered_in_the_other() -> None:
    first, second = sorted((A, B), key=lambda item: item.id)
    made, pool = make({deliveries_sql.END: [{"event_id": second.id}]})
    ends = [End(second, "done", 200), End(first, "retry", 503, "cut\0off\n", 4.5, free=True)]
    assert asyncio.run(made.finish(ends)) == [True, False]
    assert pool.asked[0][1] == (
        [first.id, second.id],
        [1, 1],
        ["retry", "done"],
        [503, 200],
        ["cut off", None],
        [4.5, 0.0],
        [None, None],
        [1, 0],
    )


def test_what_is_leased_is_read_and_what_is_gone_is_dead() -> None:
    leased = [
        {
            "event_id": item.id,
            "tenant": item.tenant,
            "route": item.route,
            "attempt": 4,
            "generation": 9,
            "message_id": None,
        }
        for item in (A, B)
    ]
    made, pool = make({deliveries_sql.LEASE: leased, deliveries_sql.READ: [row(A)], deliveries_sql.LOST: []})
    (found,) = asyncio.run(made.lease([("acme", "short", 5, 60.0), ("b", "r", 1, 9.0)]))
    assert (found.id, found.attempt, found.generation, found.body) == (A.id, 4, 9, A.body)
    assert pool.asked[0][1] == (["acme", "b"], ["short", "r"], [5, 1], [60.0, 9.0], OWNER)
    assert pool.asked[2] == (deliveries_sql.LOST, ([B.id], OWNER))


def test_when_nothing_is_due_nothing_is_read() -> None:
    made, pool = make({deliveries_sql.LEASE: [], deliveries_sql.DUE: [{"tenant": "a", "route": "r"}]})
    assert asyncio.run(made.due()) == [("a", "r")]
    assert asyncio.run(made.lease([("a", "r", 1, 1.0)])) == []
    assert len(pool.asked) == 2


def test_leases_are_given_back() -> None:
    answers = {deliveries_sql.EXPIRED: 1, deliveries_sql.FORMER: 2, deliveries_sql.OWN: 3}
    made, pool = make({**answers, deliveries_sql.COUNTS: [{"retry": 4, "dead": 5}]})
    assert asyncio.run(made.free_expired()) == 1
    assert asyncio.run(made.free_former()) == 2
    assert asyncio.run(made.free_own()) == 3
    assert asyncio.run(made.counts()) == (4, 5)
    # The name is a pattern of LIKE.
    assert pool.asked[1][1] == ("consumer-1@host\\_a/%", OWNER)


def test_leases_nobody_works_on_are_given_back_after_a_second_look() -> None:
    loose = [{"event_id": item.id, "generation": 1} for item in (A, B)]
    made, pool = make({deliveries_sql.LOOSE: loose, deliveries_sql.FREE: 1})
    assert asyncio.run(made.free_loose({C.id})) == 0
    assert pool.asked[0][1] == (OWNER, [C.id])
    # One of them was leased anew meanwhile.
    loose[1]["generation"] = 2
    assert asyncio.run(made.free_loose(set())) == 1
    assert pool.asked[2] == (deliveries_sql.FREE, (OWNER, [A.id], [1]))
    loose.clear()
    assert asyncio.run(made.free_loose(set())) == 0


@given(st.none() | st.text(max_size=2000))
def test_any_error_can_be_stored(text: str | None) -> None:
    found = clean(text)
    if text is None:
        assert found is None
        return
    assert found is not None
    assert len(found) <= ERROR_CHARACTERS
    assert "\0" not in found
    assert "\n" not in found
    found.encode()


def test_errors_of_the_database_are_told_from_errors_of_the_question() -> None:
    for error in (OSError(), TimeoutError(), asyncpg.DeadlockDetectedError(), asyncpg.AdminShutdownError()):
        assert transient(error)
    for other in (ValueError(), asyncpg.UndefinedTableError(), asyncpg.NotNullViolationError()):
        assert not transient(other)


def test_days_follow_from_ids() -> None:
    assert isinstance(A.id, UUID)
    assert ids.day(A.id).isoformat() == "2027-01-15"
    assert NOW == 1_800_000_000

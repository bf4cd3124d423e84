# SPDX-License-Identifier: GPL-3.0-or-later
"""Batches of work on the database: together, in order, never given up, and no bad item harms another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from n8n_platform.bridge.consumer.batch import BACKOFF, Batcher, persist


class AwayError(Exception):
    """The database does not answer."""


def away(error: BaseException) -> bool:
    return isinstance(error, AwayError)


class Work:
    """Doubles numbers; a 13 is an error, and the database is away for the first ``failures`` times."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.batches: list[list[int]] = []
        self.pauses: list[float] = []

    async def __call__(self, items: Sequence[int]) -> list[int]:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise AwayError
        self.batches.append(list(items))
        if 13 in items:
            raise ValueError("13")
        return [item * 2 for item in items]

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


def test_what_comes_meanwhile_goes_together() -> None:
    async def run() -> None:
        work = Work()
        batcher = Batcher(work, 3, away, work.pause)
        answers = await asyncio.gather(*(batcher.submit(number) for number in range(7)))
        assert answers == [0, 2, 4, 6, 8, 10, 12]
        assert work.batches == [[0, 1, 2], [3, 4, 5], [6]]
        assert await batcher.submit(9) == 18

    asyncio.run(run())


def test_an_absent_database_is_waited_for() -> None:
    async def run() -> None:
        work = Work(failures=9)
        batcher = Batcher(work, 3, away, work.pause)
        assert await batcher.submit(1) == 2
        assert work.pauses[:3] == [0.1, 0.2, 0.4]
        assert work.pauses[-1] == BACKOFF[1]

    asyncio.run(run())


def test_one_bad_item_harms_only_itself() -> None:
    async def run() -> None:
        work = Work()
        batcher = Batcher(work, 5, away, work.pause)
        answers = await asyncio.gather(*(batcher.submit(item) for item in (1, 13, 2)), return_exceptions=True)
        assert [answers[0], answers[2]] == [2, 4]
        assert isinstance(answers[1], ValueError)

    asyncio.run(run())


def test_who_gave_up_waiting_is_no_trouble() -> None:
    async def run() -> None:
        work = Work()
        batcher = Batcher(work, 5, away, work.pause)
        for item in (1, 13):
            task = asyncio.create_task(batcher.submit(item))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await batcher.submit(2) == 4

    asyncio.run(run())


def test_closing_cancels_who_waits() -> None:
    async def run() -> None:
        never = asyncio.Event()

        async def work(items: Sequence[int]) -> list[int]:
            await never.wait()
            return []

        batcher = Batcher(work, 1, away)
        tasks = [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await batcher.close()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(answer, asyncio.CancelledError) for answer in answers)
        await batcher.close()

    asyncio.run(run())


def test_other_errors_are_not_persisted_with() -> None:
    async def work() -> int:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        asyncio.run(persist(work, away))

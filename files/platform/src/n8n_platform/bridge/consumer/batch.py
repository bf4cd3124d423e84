# SPDX-License-Identifier: GPL-3.0-or-later
"""Work on the database that must not be given up, and many small pieces of it in one statement."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

LOG = logging.getLogger(__name__)
Item = TypeVar("Item")
Answer = TypeVar("Answer")
Pause = Callable[[float], Awaitable[None]]
# Seconds between attempts while the database is away.
BACKOFF = (0.1, 5.0)


async def persist(
    work: Callable[[], Awaitable[Answer]], transient: Callable[[BaseException], bool], pause: Pause = asyncio.sleep
) -> Answer:
    """Do some work, again and again for as long as ``transient`` says of its error that it passes.

    Nothing may be concluded from a database that does not answer, so there is no end to it but being cancelled.
    """
    wait = BACKOFF[0]
    while True:
        try:
            return await work()
        except Exception as error:
            if not transient(error):
                raise
            LOG.warning(
                "the database does not answer", extra={"error": f"{type(error).__name__}: {error}", "again_in_s": wait}
            )
        await pause(wait)
        wait = min(wait * 2, BACKOFF[1])


class Batcher(Generic[Item, Answer]):
    """Runs ``work`` on all items that are there, at most ``most`` at a time, and gives each its answer.

    What comes while a statement runs goes together with the next one. When an error that does not pass hits several
    items, each is tried alone, so that one bad item harms only itself.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        most: int,
        transient: Callable[[BaseException], bool],
        pause: Pause = asyncio.sleep,
    ) -> None:
        self.work, self.most, self.transient, self.pause = work, most, transient, pause
        self.waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self.task: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Answer:
        """Return the answer to an item; raise what the work raised for it."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting.append((item, future))
        if self.task is None:
            self.task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        batch: list[tuple[Item, asyncio.Future[Answer]]] = []
        try:
            while self.waiting:
                batch, self.waiting = self.waiting[: self.most], self.waiting[self.most :]
                await self._do(batch)
        finally:
            self.task = None
            for _, future in batch + self.waiting:
                future.cancel()
            self.waiting = []

    async def _do(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        items = [item for item, _ in batch]
        try:
            answers = await persist(lambda: self.work(items), self.transient, self.pause)
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    await self._do([one])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    async def close(self) -> None:
        """End; who still waits is cancelled."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)

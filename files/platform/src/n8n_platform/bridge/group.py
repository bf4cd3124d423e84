# SPDX-License-Identifier: GPL-3.0-or-later
"""Group commit: what arrives while a commit is under way goes into the next one together.

At light load each request commits for itself at once; the busier it gets, the more share the cost of a commit.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from n8n_platform.bridge.store import NewEvent, Stored

Accept = Callable[[Sequence[NewEvent]], Awaitable[list[Stored]]]
Waiting = tuple[list[NewEvent], "asyncio.Future[list[Stored]]"]


class GroupCommit:
    """Collects events and stores them together. ``again`` are errors after which a group is tried once more."""

    def __init__(
        self,
        accept: Accept,
        largest: int = 500,
        parallel: int = 2,
        unavailable: tuple[type[BaseException], ...] = (),
        again: tuple[type[BaseException], ...] = (),
        observe: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._accept = accept
        self._largest = largest
        self._parallel = parallel
        self._unavailable = unavailable
        self._again = again
        self._observe = observe
        self._waiting: deque[Waiting] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def add(self, events: list[NewEvent]) -> list[Stored]:
        """Store the events of a request; return when they are committed. Raises what the database raises.

        A request that goes away does not stop its commit: others may be part of it.
        """
        future: asyncio.Future[list[Stored]] = asyncio.get_running_loop().create_future()
        self._waiting.append((events, future))
        if len(self._running) < self._parallel:
            task = asyncio.get_running_loop().create_task(self._work())
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return await future

    async def _work(self) -> None:
        while self._waiting:
            group, count = [self._waiting.popleft()], 0
            count = len(group[0][0])
            while self._waiting and count + len(self._waiting[0][0]) <= self._largest:
                group.append(self._waiting.popleft())
                count += len(group[-1][0])
            self._observe(count)
            await self._store(group)

    async def _store(self, group: list[Waiting]) -> None:
        try:
            stored = await self._attempt([event for events, _ in group for event in events])
        except self._unavailable as error:
            self._fail(group, error)
        except Exception as error:
            if len(group) == 1:
                self._fail(group, error)
                return
            # One of them is to blame; the others must not suffer.
            for one in group:
                await self._store([one])
        else:
            start = 0
            for events, future in group:
                if not future.done():
                    future.set_result(stored[start : start + len(events)])
                start += len(events)

    async def _attempt(self, events: list[NewEvent]) -> list[Stored]:
        try:
            return await self._accept(events)
        except self._again:
            return await self._accept(events)

    @staticmethod
    def _fail(group: list[Waiting], error: BaseException) -> None:
        for _, future in group:
            if not future.done():
                future.set_exception(error)

    async def drain(self) -> None:
        """Return when nothing is under way any more."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

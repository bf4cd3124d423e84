# SPDX-License-Identifier: GPL-3.0-or-later
"""Which processes of n8n can be called at the moment.

While a process of n8n starts it answers 200 to everything and forgets it, so that an answer alone proves nothing: only
a process whose readiness said 200 is called. When there is none, nothing is sent at all: events stay where they are and
no attempt of theirs is used up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import httpx

LOG = logging.getLogger(__name__)
READINESS = "/healthz/readiness"
EVERY_SECONDS = 1.0
TIMEOUT_SECONDS = 3.0
# Something between us and n8n may not know the path of its readiness; then calls themselves have to tell.
UNKNOWN = 404


class Addresses:
    """The bases of n8n's webhooks; ``changed`` is called whenever the first is ready, or none is any more."""

    def __init__(self, bases: Sequence[str], http: httpx.AsyncClient, changed: Callable[[bool], None]) -> None:
        self.bases = [base.rstrip("/") for base in bases]
        self.http, self.changed = http, changed
        self.ready: list[str] = []
        self._turn = 0

    def order(self) -> list[str]:
        """Return the bases that can be called, each time beginning with another one."""
        self._turn += 1
        start = self._turn % max(1, len(self.ready))
        return self.ready[start:] + self.ready[:start]

    def down(self, base: str) -> None:
        """Call a base no more until its readiness says it can be called."""
        if base in self.ready:
            LOG.warning("n8n cannot be called", extra={"address": base})
            self._set([item for item in self.ready if item != base])

    def _set(self, ready: list[str]) -> None:
        before, self.ready = bool(self.ready), ready
        if before != bool(ready):
            self.changed(bool(ready))

    async def look(self) -> None:
        """Ask all for their readiness."""
        answers = await asyncio.gather(*(self._is_ready(base) for base in self.bases))
        ready = [base for base, good in zip(self.bases, answers, strict=True) if good]
        if ready != self.ready:
            LOG.info("n8n can be called at", extra={"addresses": ready})
        self._set(ready)

    async def _is_ready(self, base: str) -> bool:
        try:
            answer = await self.http.get(base + READINESS, timeout=TIMEOUT_SECONDS)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError):
            return False
        return answer.is_success or answer.status_code == UNKNOWN

    async def run(self) -> None:
        """Look every second until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_SECONDS)

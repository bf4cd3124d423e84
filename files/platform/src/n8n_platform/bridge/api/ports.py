# SPDX-License-Identifier: GPL-3.0-or-later
"""What the publish path needs of others; tests put something simpler in their place."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from n8n_platform.bridge.outbox import Backlog
from n8n_platform.bridge.routing import Routes
from n8n_platform.bridge.store import NewEvent, Stored


class Committer(Protocol):
    """What is needed of :class:`group.GroupCommit`."""

    async def add(self, events: list[NewEvent]) -> list[Stored]:
        """Store events."""


class Sender(Protocol):
    """What is needed of :class:`broker.Broker`."""

    def available(self, topic: str) -> bool:
        """Return whether a message would be sent now."""

    def submit(self, topic: str, payload: bytes, properties: Mapping[str, str]) -> asyncio.Future[str]:
        """Send a message."""


class Ledger(Protocol):
    """What is needed of :class:`outbox.Outbox`."""

    backlog: Backlog

    def stored(self, seq: int) -> None:
        """Note that Pulsar has a message."""

    def failed(self, seq: int) -> None:
        """Note that a message was not confirmed."""


class RouteSource(Protocol):
    """What is needed of :class:`routes_file.RouteFile`."""

    @property
    def current(self) -> Routes:
        """The routes in force."""

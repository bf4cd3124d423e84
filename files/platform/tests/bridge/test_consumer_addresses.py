# SPDX-License-Identifier: GPL-3.0-or-later
"""Which processes of n8n are called: those whose readiness says so, in turn."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from n8n_platform.bridge.consumer import addresses as module
from n8n_platform.bridge.consumer.addresses import Addresses

from files.platform.tests.bridge.consumer_fakes import FakeN8n


def make(n8n: FakeN8n, told: list[bool]) -> Addresses:
    http = httpx.AsyncClient(transport=httpx.MockTransport(n8n.handle))
    return Addresses(["http://a/", "http://b", "http://c"], http, told.append)


def test_only_those_that_are_ready_are_called_in_turn() -> None:
    async def run() -> None:
        n8n, told = FakeN8n(), list[bool]()
        found = make(n8n, told)
        assert found.order() == []
        n8n.readiness = lambda request: {"a": 200, "b": 503, "c": 404}[request.url.host]
        await found.look()
        assert [found.order() for _ in range(2)] == [["http://a", "http://c"], ["http://c", "http://a"]]
        assert told == [True]
        found.down("http://a")
        found.down("http://a")
        assert found.order() == ["http://c"]
        found.down("http://c")
        assert found.order() == []
        await found.look()
        assert told == [True, False, True]

    asyncio.run(run())


def test_no_trouble_of_the_network_is_ready() -> None:
    def refuse(request: httpx.Request) -> int:
        raise {"a": httpx.ConnectError("x"), "b": httpx.InvalidURL("x"), "c": OSError("x")}[request.url.host]

    async def run() -> None:
        n8n, told = FakeN8n(), list[bool]()
        n8n.readiness = refuse
        found = make(n8n, told)
        await found.look()
        assert (found.ready, told) == ([], [])

    asyncio.run(run())


def test_it_looks_again_and_again(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "EVERY_SECONDS", 0.001)

    async def run() -> None:
        asked = 0

        def readiness(request: httpx.Request) -> int:
            nonlocal asked
            asked += 1
            return 200 if asked > 6 else 503

        n8n, told = FakeN8n(), list[bool]()
        n8n.readiness = readiness
        running = asyncio.create_task(make(n8n, told).run())
        async with asyncio.timeout(60):
            while not told:
                await asyncio.sleep(0.001)
        running.cancel()
        assert told == [True]

    asyncio.run(run())

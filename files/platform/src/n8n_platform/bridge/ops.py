# SPDX-License-Identifier: GPL-3.0-or-later
"""The port of each process for whoever watches it: /health/live, /health/ready and /metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

# A check returns what is wrong, or None.
Check = Callable[[], Awaitable[str | None]]
CHECK_SECONDS = 2.0
REQUEST_SECONDS = 5.0
REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


def notify(state: str) -> None:
    """Tell systemd something, such as READY=1; without systemd nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address)
        channel.send(state.encode())


class Health:
    """Whether the process can do its work, as the sum of named checks."""

    def __init__(self) -> None:
        self.checks: dict[str, Check] = {}
        self.stopping = False

    def add(self, name: str, check: Check) -> None:
        """Add something the process cannot work without."""
        self.checks[name] = check

    async def problems(self) -> dict[str, str]:
        """Return what is wrong, by name; a check that takes longer than two seconds has failed."""
        found = {"process": "is stopping"} if self.stopping else {}
        for name, check in self.checks.items():
            try:
                problem = await asyncio.wait_for(check(), CHECK_SECONDS)
            except TimeoutError:
                problem = "does not answer"
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            if problem:
                found[name] = problem
        return found


class OpsServer:
    """A small HTTP server: GET and HEAD of three paths, one request for each connection."""

    def __init__(self, health: Health, registry: CollectorRegistry) -> None:
        self.health = health
        self.registry = registry
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port, which the system picks when 0 is given."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=8192)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def answer(self, method: str, path: str) -> tuple[int, str, bytes]:
        """Return status, content type and body."""
        if method not in ("GET", "HEAD"):
            return 405, "text/plain", b"only GET\n"
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(self.registry)
        if path == "/health/live":
            return 200, "application/json", b'{"status": "live"}\n'
        if path == "/health/ready":
            problems = await self.health.problems()
            body = {"status": "not ready" if problems else "ready", "problems": problems}
            return (503 if problems else 200), "application/json", json.dumps(body).encode() + b"\n"
        return 404, "text/plain", b"/health/live, /health/ready or /metrics\n"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            async with asyncio.timeout(REQUEST_SECONDS):
                method, target, _ = (await reader.readline()).decode("latin-1").split(" ", 2)
                while (await reader.readline()).strip():
                    pass
                status, kind, body = await self.answer(method, target.partition("?")[0])
                head = (
                    f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: {kind}\r\n"
                    f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
                )
                writer.write(head.encode("latin-1") + (b"" if method == "HEAD" else body))
                await writer.drain()
        writer.close()

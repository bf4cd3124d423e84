# SPDX-License-Identifier: GPL-3.0-or-later
"""Publish through the bridge, or straight to Pulsar, and count what comes of it; one JSON object on standard output.

    PYTHONPATH=<libraries of the bridge> python3 -m inside.bridge '{"phase": "single", ...}'

Closed loops (``direct``, ``blocking``, ``batch``, ``single``) measure rates; open loops (``paced-direct``,
``paced-single``) send at a fixed rate, and a latency counts from the moment a request was due.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IN_FLIGHT = 5000
PACED_CONNECTIONS = 64


@dataclass
class Job:
    """What to do; times in seconds. ``apis`` are (host, port) of the publishers."""

    phase: str
    apis: list[tuple[str, int]]
    client: str
    secret: str
    seconds: float = 10.0
    connections: int = 32
    batch: int = 100
    rate: float = 10.0
    payload_bytes: int = 1000
    type: str = "bench-listen.x"
    pulsar_url: str = ""
    token_file: str = ""
    topic: str = ""
    ids: bool = False
    data: str = field(init=False)

    def __post_init__(self) -> None:
        self.data = "x" * self.payload_bytes


def spread(seconds: list[float]) -> dict[str, float]:
    """Return percentiles in ms."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    found = {f"p{p}": ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))] * 1000 for p in (50, 95, 99)}
    return {name: round(value, 2) for name, value in found.items()}


class Connection:
    """One connection that is kept."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, path: str, headers: str, body: bytes) -> tuple[int, bytes]:
        """Send a POST request and return status and body; 0 when there was no answer."""
        if self.streams is None:
            try:
                self.streams = await asyncio.open_connection(*self.address)
            except OSError:
                return 0, b""
        reader, writer = self.streams
        head = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        try:
            writer.write(head.encode() + body)
            status = int((await reader.readuntil(b"\r\n")).split()[1])
            length = 0
            while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
                name, _, value = line.decode("latin-1").partition(":")
                if name.lower() == "content-length":
                    length = int(value)
            return status, await reader.readexactly(length)
        except (OSError, EOFError, asyncio.IncompleteReadError):
            self.streams = None
            writer.close()
            return 0, b""


class Publisher:
    """Publishes through the bridge."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.answers: Counter[int] = Counter()
        self.latencies: list[float] = []
        self.ids: list[str] = []
        self.headers = ""
        self.numbers = itertools.count()

    async def login(self) -> None:
        """Get an access token."""
        basic = base64.b64encode(f"{self.job.client}:{self.job.secret}".encode()).decode()
        headers = f"authorization: Basic {basic}\r\ncontent-type: application/x-www-form-urlencoded\r\n"
        status, body = 0, b""
        for api in self.job.apis:
            if not status:
                status, body = await Connection(api).request(
                    "/pulsar/oauth/token", headers, b"grant_type=client_credentials"
                )
        if status != 200:
            raise SystemExit(f"no token: {status} {body[:200]!r}")
        token = json.loads(body)["access_token"]
        self.headers = f"authorization: Bearer {token}\r\ncontent-type: application/json\r\n"

    def event(self) -> dict[str, Any]:
        """Return the next event."""
        return {"type": self.job.type, "data": {"number": next(self.numbers), "fill": self.job.data}}

    async def one(self, connection: Connection, began: float) -> None:
        """Publish an event and note how that went, ``began`` at a time of the loop's clock."""
        status, body = await connection.request("/pulsar/publish", self.headers, json.dumps(self.event()).encode())
        self.latencies.append(time.perf_counter() - began)
        self.answers[status] += 1
        if self.job.ids and status == 202:
            self.ids.append(json.loads(body)["id"])

    async def many(self, connection: Connection) -> None:
        """Publish a batch of events and count those that were accepted."""
        began = time.perf_counter()
        body = json.dumps({"events": [self.event() for _ in range(self.job.batch)]}).encode()
        status, answer = await connection.request("/pulsar/publish/batch", self.headers, body)
        self.latencies.append(time.perf_counter() - began)
        accepted = answer.count(b'"id":"') if status in (200, 202, 207) else 0
        self.answers[202 if accepted == self.job.batch else status] += accepted or 1

    async def loop(self) -> float:
        """Keep all connections busy; return the seconds that took."""
        begin = time.perf_counter()

        async def work(connection: Connection) -> None:
            while time.perf_counter() - begin < self.job.seconds:
                if self.job.phase == "batch":
                    await self.many(connection)
                else:
                    await self.one(connection, time.perf_counter())

        apis = itertools.cycle(self.job.apis)
        await asyncio.gather(*(work(Connection(next(apis))) for _ in range(self.job.connections)))
        return time.perf_counter() - begin

    async def paced(self) -> float:
        """Publish at a fixed rate; return the seconds that took."""
        free: asyncio.Queue[Connection] = asyncio.Queue()
        apis = itertools.cycle(self.job.apis)
        for _ in range(PACED_CONNECTIONS):
            free.put_nowait(Connection(next(apis)))

        async def work(due: float) -> None:
            connection = await free.get()
            await self.one(connection, due)
            free.put_nowait(connection)

        begin = time.perf_counter()
        tasks = []
        for number in range(int(self.job.rate * self.job.seconds)):
            due = begin + number / self.job.rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(work(due)))
        await asyncio.gather(*tasks)
        return time.perf_counter() - begin


def direct(job: Job) -> dict[str, Any]:
    """Store messages in Pulsar with its own client: batched, blocking, or batched at a fixed rate."""
    import pulsar  # noqa: PLC0415

    client = pulsar.Client(
        job.pulsar_url,
        authentication=pulsar.AuthenticationToken(Path(job.token_file).read_text(encoding="ascii").strip()),
        logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error),
    )
    batched = job.phase != "blocking"
    producer = client.create_producer(
        job.topic, batching_enabled=batched, batching_max_publish_delay_ms=2, max_pending_messages=IN_FLIGHT * 2
    )
    payload = json.dumps({"fill": job.data}).encode()
    latencies: list[float] = []
    results: Counter[str] = Counter()
    sent = 0

    def stored(began: float, result: Any) -> None:
        latencies.append(time.perf_counter() - began)
        results[result.name] += 1

    def send(began: float) -> None:
        producer.send_async(payload, lambda result, _: stored(began, result))

    begin = time.perf_counter()
    while time.perf_counter() - begin < job.seconds:
        if job.phase == "blocking":
            began = time.perf_counter()
            producer.send(payload)
            latencies.append(time.perf_counter() - began)
            results["Ok"] += 1
            continue
        due = begin + sent / job.rate if job.phase == "paced-direct" else time.perf_counter()
        time.sleep(max(0.0, due - time.perf_counter()))
        while sent - len(latencies) >= IN_FLIGHT:
            time.sleep(0.0005)
        send(due)
        sent += 1
    producer.flush()
    elapsed = time.perf_counter() - begin
    client.close()
    return {"per_s": round(results["Ok"] / elapsed, 1), "ms": spread(latencies), "answers": dict(results)}


async def publish(job: Job) -> dict[str, Any]:
    """Publish through the bridge."""
    publisher = Publisher(job)
    await publisher.login()
    elapsed = await (publisher.paced() if job.phase == "paced-single" else publisher.loop())
    found: dict[str, Any] = {
        "per_s": round(publisher.answers[202] / elapsed, 1),
        "ms": spread(publisher.latencies),
        "answers": {str(status): count for status, count in publisher.answers.items()},
    }
    if job.ids:
        found["ids"] = publisher.ids
    return found


def main(text: str) -> None:
    """Do a job."""
    values = json.loads(text)
    job = Job(**{**values, "apis": [(host, port) for host, port in values["apis"]]})
    print(json.dumps(direct(job) if job.phase in ("direct", "blocking", "paced-direct") else asyncio.run(publish(job))))


if __name__ == "__main__":
    main(sys.argv[1])

# SPDX-License-Identifier: GPL-3.0-or-later
"""Send webhooks and count what comes of them; one JSON object on standard output.

    python3 -m inside.load '{"url": ..., "hold": 60, ...}'

Two ways to send, neither waits for an answer before the next request:

- ``rate``: so many requests a second, evenly spaced (open loop). A latency counts from the moment the request was due.
- ``hold``: as many as it takes to keep that number of executions unfinished, so that what is counted is what the
  platform can sustain: arrivals follow completions, and neither the queue nor the driver's own work grows.

Completions are counted where they are stored, in PostgreSQL; the window begins after the warm-up.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import string
import sys
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from . import probe

TICK_S = 0.05
POLL_S = 0.25
# n8n closes idle connections after 5 s; an older one is not used again.
IDLE_S = 3.0
CONNECTIONS = 200
TIMEOUT_S = 30.0


@dataclass
class Job:
    """What to do; times in seconds."""

    url: str
    # IP address to connect to; the host name of the URL is what is asked for and checked.
    address: str
    # Command that reads SQL from standard input and prints bare rows.
    psql: list[str]
    workflow: str
    ca: str = ""
    hold: int = 0
    rate: float = 0.0
    seconds: float = 20.0
    warm_up: float = 5.0
    drain: float = 40.0
    payload_bytes: int = 1024
    memory_samples: int = 0


class Database:
    """One psql process that answers a query a line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def open(cls, command: list[str]) -> Database:
        """Start psql."""
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe))

    async def row(self, query: str) -> list[str]:
        """Return the one row of a query."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("psql has no pipes")
        stdin.write(f"{query};\n".encode())
        await stdin.drain()
        line = await stdout.readline()
        if not line:
            raise RuntimeError(f"psql ended instead of answering: {query}")
        return line.decode().strip().split("|")

    async def close(self) -> None:
        """End psql."""
        if self._process.stdin:
            self._process.stdin.close()
        await self._process.wait()


@dataclass
class Pool:
    """Kept-alive connections to one server."""

    job: Job
    idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    def __post_init__(self) -> None:
        target = urlsplit(self.job.url)
        self.tls = ssl.create_default_context(cafile=self.job.ca) if target.scheme == "https" else None
        self.host = target.hostname or ""
        self.port = target.port or (443 if self.tls else 80)
        self.head = (
            f"POST {target.path} HTTP/1.1\r\nHost: {target.netloc}\r\nContent-Type: application/json\r\n"
            "Content-Length: {length}\r\n\r\n"
        )

    async def connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return the connection used last, if it is still fresh, or a new one."""
        while self.idle:
            used, reader, writer = self.idle.pop()
            if time.monotonic() - used < IDLE_S and not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(
            self.job.address, self.port, ssl=self.tls, server_hostname=self.host if self.tls else None
        )

    async def post(self, body: bytes) -> int:
        """Send a body and return the status code."""
        reader, writer = await self.connection()
        try:
            writer.write(self.head.replace("{length}", str(len(body))).encode() + body)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
            if "content-length" in headers:
                await reader.readexactly(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                while size := int((await reader.readline()).split(b";")[0], 16):
                    await reader.readexactly(size + 2)
                await reader.readline()
        except BaseException:
            writer.close()
            raise
        if headers.get("connection") == "close":
            writer.close()
        else:
            self.idle.append((time.monotonic(), reader, writer))
        return int(head[0].split()[1])

    def close(self) -> None:
        """Close what is idle."""
        for _, _, writer in self.idle:
            writer.close()


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p95, p99 and the largest of values, rounded."""
    if not values:
        return {}
    ordered = sorted(values)
    picked = {f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 95, 99)}
    return {name: round(value, 1) for name, value in {**picked, "max": ordered[-1]}.items()}


class Driver:
    """Sends requests on time and notes what came back."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.pool = Pool(job)
        self.sent = 0
        self.acknowledged = 0
        self.finished = 0
        self.errors: dict[str, int] = {}
        # (due, milliseconds until the answer) of acknowledged requests
        self.latencies: list[tuple[float, float]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        # Text that does not compress much, as real payloads.
        letters = random.Random(1).choices(string.ascii_letters + string.digits, k=65536)
        self.text = "".join(letters)

    def body(self) -> bytes:
        """Return the next payload."""
        start = self.sent * 97 % (len(self.text) - self.job.payload_bytes)
        frame = json.dumps({"id": self.sent, "data": ""})
        return json.dumps(
            {"id": self.sent, "data": self.text[start : start + self.job.payload_bytes - len(frame)]}
        ).encode()

    async def one(self, body: bytes, due: float) -> None:
        """Send one request and note its outcome."""
        try:
            status = await asyncio.wait_for(self.pool.post(body), TIMEOUT_S)
        except (OSError, EOFError, TimeoutError) as error:
            self.errors[type(error).__name__] = self.errors.get(type(error).__name__, 0) + 1
            return
        if status == 200:
            self.acknowledged += 1
            self.latencies.append((due, (time.monotonic() - due) * 1000))
        else:
            self.errors[f"status {status}"] = self.errors.get(f"status {status}", 0) + 1

    def send(self, due: float) -> None:
        """Start one request that was due at a time."""
        task = asyncio.create_task(self.one(self.body(), due))
        self.sent += 1
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def send_until(self, end: float) -> None:
        """Send as the job says until a time of the monotonic clock."""
        begin, base = time.monotonic(), self.sent
        while (now := time.monotonic()) < end:
            if self.job.rate:
                while (due := begin + (self.sent - base) / self.job.rate) <= now:
                    self.send(due)
            else:
                unfinished = self.sent - sum(self.errors.values()) - self.finished
                for _ in range(min(self.job.hold - unfinished, CONNECTIONS - len(self.tasks))):
                    self.send(now)
            await asyncio.sleep(TICK_S if self.job.hold else min(TICK_S, 1 / self.job.rate / 2))


async def watch(driver: Driver, database: Database, first: str, lock: asyncio.Lock) -> None:
    """Keep the number of finished executions up to date."""
    query = f'SELECT count(*) FROM execution_entity WHERE id > {first} AND "stoppedAt" IS NOT NULL'
    while True:
        async with lock:
            driver.finished = int((await database.row(query))[0])
        await asyncio.sleep(POLL_S)


async def memory(job: Job) -> list[dict[str, float]]:
    """Return samples of the units' memory, spread over the window."""
    samples = []
    for _ in range(job.memory_samples):
        await asyncio.sleep(job.seconds / (job.memory_samples + 1))
        samples.append({unit: round(mib, 1) for unit, mib in (await asyncio.to_thread(probe.pss_mib)).items()})
    return samples


async def measure(job: Job) -> dict[str, Any]:
    """Do a job and return what was counted."""
    database = await Database.open(job.psql)
    first = (await database.row("SELECT coalesce(max(id), 0) FROM execution_entity"))[0]
    driver, lock = Driver(job), asyncio.Lock()
    watching = asyncio.create_task(watch(driver, database, first, lock))
    await driver.send_until(time.monotonic() + job.warm_up)
    opened, wall = time.monotonic(), time.time()
    cpu, busy, stolen = probe.cpu_seconds(), probe.busy_seconds(), probe.stolen_seconds()
    sampling = asyncio.create_task(memory(job))
    await driver.send_until(opened + job.seconds)
    window = time.monotonic() - opened
    cpu_after, busy_after, stolen_after = probe.cpu_seconds(), probe.busy_seconds(), probe.stolen_seconds()
    closed = time.monotonic()
    samples = await sampling
    while driver.tasks and time.monotonic() < closed + TIMEOUT_S:
        await asyncio.sleep(POLL_S)
    while driver.finished < driver.acknowledged and time.monotonic() < closed + job.drain:
        await asyncio.sleep(POLL_S)
    drained = time.monotonic() - closed
    async with lock:
        watching.cancel()
        rows = f"execution_entity WHERE id > {first} AND \"workflowId\" = '{job.workflow}'"
        inside = f'"stoppedAt" BETWEEN to_timestamp({wall:.3f}) AND to_timestamp({wall + window:.3f})'
        took = 'extract(epoch FROM "stoppedAt" - "createdAt") * 1000'
        shares = ", ".join(
            f"percentile_disc({share}) WITHIN GROUP (ORDER BY {took}) FILTER (WHERE {inside})"
            for share in (0.5, 0.95, 0.99)
        )
        success = "status = 'success'"
        counted = await database.row(
            f"SELECT count(*) FILTER (WHERE {inside} AND {success}), count(*) FILTER (WHERE {success}), count(*),"
            f" {shares} FROM {rows}"
        )
        await database.close()
    driver.pool.close()
    used = {unit: round(after - cpu.get(unit, 0.0), 2) for unit, after in cpu_after.items()}
    return {
        "sent": driver.sent,
        "acknowledged": driver.acknowledged,
        "errors": driver.errors,
        "window_s": round(window, 2),
        "completed_in_window": int(counted[0]),
        "succeeded": int(counted[1]),
        "stored": int(counted[2]),
        "completions_per_s": round(int(counted[0]) / window, 2),
        "acknowledgement_ms": percentiles([ms for due, ms in driver.latencies if opened <= due <= opened + window]),
        "until_done_ms": {
            name: round(float(value), 1)
            for name, value in zip(("p50", "p95", "p99"), counted[3:], strict=True)
            if value
        },
        "drain_s": round(drained, 1),
        "cpu_s": {unit: seconds for unit, seconds in sorted(used.items()) if seconds > 0},
        "cpu_other_s": round(max(0.0, busy_after - busy - sum(used.values())), 2),
        "cpu_stolen_s": round(stolen_after - stolen, 2),
        "memory_mib": samples,
        "at": round(wall, 1),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(Job(**json.loads(sys.argv[1]))))))

# SPDX-License-Identifier: GPL-3.0-or-later
"""n8n's job queue (Bull 4) in Redis, read only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from n8n_platform.settings import Queue as QueueSettings
from n8n_platform.settings import Settings

BATCH = 5000


class QueueError(Exception):
    """Redis does not answer, or not as n8n's queue; nothing may be concluded from it."""


@dataclass(frozen=True)
class Counts:
    """Jobs that wait, jobs that are worked on by a living worker, and jobs whose worker has gone silent."""

    waiting: int
    active: int
    silent: int


class Queue:
    """What the platform needs to know of the queue.

    ``client`` speaks like ``redis.Redis`` with decoded answers; ``errors`` are what it raises. All methods raise
    :class:`QueueError` instead.
    """

    def __init__(self, client: Any, settings: QueueSettings, errors: tuple[type[Exception], ...] = (OSError,)) -> None:
        self.client = client
        self.settings = settings
        self.errors = errors

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except self.errors as error:
            raise QueueError(f"Redis does not answer: {error}") from error

    def uptime(self) -> int:
        """Return how long Redis has been running, in seconds."""
        with self._answers():
            return int(self.client.info("server")["uptime_in_seconds"])

    def has_members(self) -> bool:
        """Tell whether n8n processes report here. If not, this is not their Redis, or not their prefix."""
        with self._answers():
            return bool(self.client.exists(f"{self.settings.prefix}:{{instance:}}members"))

    def _lists(self, *states: str) -> list[tuple[str, list[str]]]:
        """Return (queue, job ids) for each queue, read in one transaction: a job that moves is never missed."""
        found = []
        for name in self.settings.names:
            key = f"{self.settings.prefix}:{name}"
            pipeline = self.client.pipeline(transaction=True)
            for state in states:
                if state == "delayed":
                    pipeline.zrange(f"{key}:delayed", 0, -1)
                else:
                    pipeline.lrange(f"{key}:{state}", 0, -1)
            found.append((key, [str(job) for jobs in pipeline.execute() for job in jobs]))
        return found

    def live_executions(self) -> set[int]:
        """Return the ids of all executions that have a job which will still be, or is being, worked on."""
        ids: set[int] = set()
        with self._answers():
            for key, jobs in self._lists("wait", "active", "paused", "delayed"):
                for start in range(0, len(jobs), BATCH):
                    pipeline = self.client.pipeline(transaction=False)
                    for job in jobs[start : start + BATCH]:
                        pipeline.hget(f"{key}:{job}", "data")
                    ids |= set(execution_ids(pipeline.execute()))
        return ids

    def counts(self) -> Counts:
        """Return how many jobs wait and run."""
        active = silent = 0
        with self._answers():
            waiting = sum(len(jobs) for _, jobs in self._lists("wait"))
            for key, jobs in self._lists("active"):
                pipeline = self.client.pipeline(transaction=False)
                for job in jobs:
                    pipeline.exists(f"{key}:{job}:lock")
                locked = sum(1 for exists in pipeline.execute() if exists)
                active, silent = active + locked, silent + len(jobs) - locked
        return Counts(waiting, active, silent)


def execution_ids(data: Iterable[str | None]) -> Iterable[int]:
    """Yield the execution ids in the data of jobs; a job that ended while we looked has none."""
    for text in data:
        try:
            yield int(json.loads(text or "{}")["executionId"])
        except (ValueError, LookupError, TypeError):
            continue


def connect(settings: Settings) -> Queue:
    """Return the queue. Redis is only asked with the first call."""
    import redis  # noqa: PLC0415  (a slow import that most commands do not need)

    queue = settings.queue
    tls = {"ssl": True, "ssl_ca_certs": queue.ca_file, "ssl_check_hostname": False} if queue.ca_file else {}
    client = redis.Redis(
        host=queue.host,
        port=queue.port,
        username=queue.user,
        password=settings.secret("redis_n8n_password"),
        decode_responses=True,
        socket_timeout=15,
        socket_connect_timeout=5,
        **tls,
    )
    return Queue(client, queue, (redis.RedisError, OSError))

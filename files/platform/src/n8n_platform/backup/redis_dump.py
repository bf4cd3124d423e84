# SPDX-License-Identifier: GPL-3.0-or-later
"""A fresh RDB file of a Redis instance: BGSAVE, then waiting until Redis says that it is written."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from n8n_platform.backup.config import Config, Redis
from n8n_platform.backup.errors import BackupError, UnusableError

POLL_SECONDS = 0.2
MAGIC = b"REDIS"


class Dumper:
    """One instance. ``client`` speaks like ``redis.Redis``; ``errors`` are what it raises."""

    def __init__(
        self,
        client: Any,
        settings: Redis,
        errors: tuple[type[Exception], ...] = (OSError,),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.client = client
        self.settings = settings
        self.errors = errors
        self.clock = clock
        self.sleep = sleep

    def save(self) -> str:
        """Have the file written; return Redis' version. Raises :class:`BackupError`."""
        try:
            version = str(self.client.info("server")["redis_version"])
            deadline = self.clock() + self.settings.timeout_seconds
            # One that is under way began before us and may lack the last seconds.
            self._wait(lambda state: True, deadline)
            before = self._state()
            self.client.execute_command("BGSAVE", "SCHEDULE")
            state = self._wait(lambda state: ended(state, before), deadline)
        except self.errors as error:
            raise BackupError(
                f"Redis ({self.settings.name}, {self.settings.host}:{self.settings.port}) did not save: {error}. "
                f"Look at: systemctl status redis-{self.settings.name}"
            ) from error
        if state["rdb_last_bgsave_status"] != "ok":
            raise BackupError(
                f"Redis ({self.settings.name}) could not write {self.settings.rdb}: is its disk full, has the host too "
                f"little memory for a fork? Look at: journalctl -u redis-{self.settings.name} -n 50"
            )
        return version

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.client.info("persistence")
        return state

    def _wait(self, done: Callable[[dict[str, Any]], bool], deadline: float) -> dict[str, Any]:
        while True:
            state = self._state()
            if not int(state["rdb_bgsave_in_progress"]) and done(state):
                return state
            if self.clock() > deadline:
                raise BackupError(
                    f"Redis ({self.settings.name}) did not finish writing {self.settings.rdb} within "
                    f"{self.settings.timeout_seconds} s. Look at: redis-cli info persistence"
                )
            self.sleep(POLL_SECONDS)


def ended(state: dict[str, Any], before: dict[str, Any]) -> bool:
    """Tell whether a save has begun and ended since ``before``.

    Redis 7 counts them. Before, only the second of the last good one is known, and that the last one failed.
    """
    if "rdb_saves" in state:
        return int(state["rdb_saves"]) > int(before["rdb_saves"])
    if state["rdb_last_bgsave_status"] != "ok":
        return True
    return int(state["rdb_last_save_time"]) > int(before["rdb_last_save_time"])


def connect(config: Config, settings: Redis) -> Dumper:
    """Return the instance. It is only asked with the first call."""
    try:
        import redis  # noqa: PLC0415  (a slow import that some commands do not need)
    except ImportError as error:
        raise UnusableError(f"the Python library for Redis is missing ({error}). Install python3-redis.") from error
    tls = {"ssl": True, "ssl_ca_certs": settings.ca_file, "ssl_check_hostname": False} if settings.ca_file else {}
    client = redis.Redis(
        host=settings.host,
        port=settings.port,
        username=settings.user,
        password=config.secret(settings.secret),
        decode_responses=True,
        socket_timeout=15,
        socket_connect_timeout=5,
        **tls,
    )
    return Dumper(client, settings, (redis.RedisError, OSError))

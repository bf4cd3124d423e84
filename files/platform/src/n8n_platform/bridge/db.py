# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection pool to PostgreSQL that every process of the bridge has."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Any

import asyncpg

from n8n_platform.bridge.settings import Settings

LOG = logging.getLogger(__name__)
# What is raised when PostgreSQL is away, restarts, or does not answer in time. Whether a statement under way counted is
# not known then.
UNAVAILABLE: tuple[type[BaseException], ...] = (
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.CannotConnectNowError,
    asyncpg.InvalidPasswordError,
    OSError,
    TimeoutError,
)
# Not the statement's fault either: the same one may succeed when it is tried again.
AGAIN: tuple[type[BaseException], ...] = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
CONNECT_SECONDS = 5.0
RETRY_SECONDS = 2.0
# Who changes the tables holds this advisory lock: hosts are set up at the same time. Nothing else here has it.
SCHEMA_LOCK = 0x6E386E5F6272


def options(settings: Settings, application: str) -> dict[str, Any]:
    """Return the arguments of a connection. The password is read again for each, so that it may be changed any time."""
    database = settings.database
    tls: ssl.SSLContext | bool = False
    if database.ca_file:
        # The certificate names the host's addresses; being signed by the internal authority is what counts.
        tls = ssl.create_default_context(cafile=str(database.ca_file))
        tls.check_hostname = False
    return {
        "host": database.host,
        "port": database.port,
        "user": database.user,
        "database": database.name,
        "password": lambda: settings.secret(database.password),
        "ssl": tls,
        "timeout": CONNECT_SECONDS,
        "command_timeout": database.statement_timeout_seconds,
        "server_settings": {"application_name": application, "timezone": "UTC"},
    }


async def keep(connection: Any) -> None:
    """Leave a connection as it is when it goes back to the pool.

    Nothing here changes a session, and the pool itself rolls open transactions back; its own way of cleaning up would
    cost a round trip for each statement.
    """


async def open_pool(settings: Settings, application: str, retry: float = RETRY_SECONDS) -> Any:
    """Return a pool of asyncpg; waits, and says so in the log, for as long as PostgreSQL does not answer."""
    database = settings.database
    while True:
        try:
            return await asyncpg.create_pool(
                min_size=min(database.pool_min, database.pool_max),
                max_size=database.pool_max,
                reset=keep,
                **options(settings, application),
            )
        except UNAVAILABLE as error:
            LOG.warning("PostgreSQL does not answer", extra={"error": f"{type(error).__name__}: {error}"})
            await asyncio.sleep(retry)

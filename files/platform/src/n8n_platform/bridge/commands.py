# SPDX-License-Identifier: GPL-3.0-or-later
"""What the units of the bridge run. Each returns an exit code; what cannot work raises SettingsError."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import asyncpg

from n8n_platform.bridge import db, telemetry
from n8n_platform.bridge import maintain as upkeep
from n8n_platform.bridge import migrate as schema
from n8n_platform.bridge.api import accounts
from n8n_platform.bridge.settings import Settings, SettingsError


def api(settings: Settings, instance: int) -> int:
    """Take events over HTTP until told to stop."""
    from n8n_platform.bridge.api import server  # noqa: PLC0415  (the tasks below do without it)

    return server.run(settings, instance)


async def _partitions(settings: Settings) -> None:
    connection = await asyncpg.connect(**db.options(settings, "n8n-bridge-migrate"))
    try:
        await upkeep.make_partitions(connection, datetime.now(UTC).date(), settings.retention.ahead_days)
    finally:
        await connection.close()


def migrate(settings: Settings) -> int:
    """Bring the tables to the newest revision, with the partitions of the next days."""
    telemetry.configure_logging("n8n-bridge-migrate", "1", settings.log_level)
    try:
        schema.run(settings)
        asyncio.run(_partitions(settings))
    except (schema.MigrationError, asyncpg.PostgresError, *db.UNAVAILABLE) as error:
        raise SettingsError(str(error)) from error
    return 0


async def _maintain(settings: Settings) -> upkeep.Upkeep:
    connection = await asyncpg.connect(**db.options(settings, "n8n-bridge-maintain"))
    try:
        return await upkeep.run(connection, settings.retention, datetime.now(UTC).date())
    finally:
        await connection.close()


def maintain(settings: Settings) -> int:
    """Make the partitions of the next days and drop old ones; 1 when a day had to be kept for what is undelivered."""
    telemetry.configure_logging("n8n-bridge-maintain", "1", settings.log_level)
    try:
        done = asyncio.run(_maintain(settings))
    except (asyncpg.PostgresError, *db.UNAVAILABLE) as error:
        raise SettingsError(f"the upkeep failed: {type(error).__name__}: {error}") from error
    return 1 if done.kept else 0


def check_accounts(path: Path) -> None:
    """Raise SettingsError when a file of accounts cannot be used; secrets are not looked at."""
    accounts.read(path)

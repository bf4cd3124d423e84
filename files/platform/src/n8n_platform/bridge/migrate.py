# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring the schema of the bridge to the newest revision, with the partitions of the next days."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from n8n_platform.bridge.settings import Settings, SettingsError

LOG = logging.getLogger(__name__)
SCRIPTS = Path(__file__).parent / "migrations"


class MigrationError(Exception):
    """The schema cannot be brought to the newest revision; nothing was changed."""


def configuration() -> Any:
    """Return Alembic's configuration; there is no file to edit."""
    from alembic.config import Config  # noqa: PLC0415  (only this command needs it)

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    return config


def engine(settings: Settings) -> Any:
    """Return a way to PostgreSQL; it is psycopg's, because Alembic does not speak asyncpg."""
    from sqlalchemy import URL, create_engine, pool  # noqa: PLC0415

    database = settings.database
    query = {"host": database.host, "port": str(database.port), "application_name": "n8n-bridge-migrate"}
    if database.ca_file:
        query |= {"sslmode": "verify-ca", "sslrootcert": str(database.ca_file)}
    address = URL.create(
        "postgresql+psycopg",
        username=database.user,
        password=settings.secret(database.password),
        database=database.name,
        query=query,
    )
    return create_engine(address, poolclass=pool.NullPool, connect_args={"connect_timeout": 5})


def run(settings: Settings, made: Any = None) -> list[str]:
    """Apply what is missing, in one transaction; return the revisions that were applied, oldest first."""
    from alembic import command  # noqa: PLC0415
    from alembic.runtime.migration import MigrationContext  # noqa: PLC0415
    from alembic.script import ScriptDirectory  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    config = configuration()
    scripts = ScriptDirectory.from_config(config)

    def heads(connection: Any) -> str | None:
        found: str | None = MigrationContext.configure(
            connection, opts={"version_table_schema": "bridge"}
        ).get_current_revision()
        return found

    try:
        with (made or engine(settings)).connect() as connection:
            before = heads(connection)
            connection.rollback()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
            after = heads(connection)
    except SettingsError:
        raise
    except (SQLAlchemyError, OSError) as error:
        raise MigrationError(f"the schema of the bridge cannot be migrated: {error}") from error
    applied = [item.revision for item in scripts.iterate_revisions(after, before)][::-1] if after != before else []
    LOG.info("migrated", extra={"revision": after, "applied": applied})
    return applied

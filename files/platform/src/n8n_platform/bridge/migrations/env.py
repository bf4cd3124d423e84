# SPDX-License-Identifier: GPL-3.0-or-later
"""What Alembic runs for each command: one transaction, and only one process at a time."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

from n8n_platform.bridge.db import SCHEMA_LOCK

SCHEMA = "bridge"


def run(connection: Connection) -> None:
    """Apply what is missing; who comes second waits, and then finds nothing to do."""
    context.configure(connection=connection, version_table_schema=SCHEMA, transaction_per_migration=False)
    with context.begin_transaction():
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SCHEMA_LOCK})
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
        context.run_migrations()


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", version_table_schema=SCHEMA)
    with context.begin_transaction():
        context.run_migrations()
else:
    run(context.config.attributes["connection"])

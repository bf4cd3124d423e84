# SPDX-License-Identifier: GPL-3.0-or-later
"""The platform's own objects in n8n's database: a schema, partitions, two triggers and an index."""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime, timedelta
from importlib import resources
from typing import Any

DAYS_AHEAD = 3
TRIGGERS = {
    "n8n_platform_keep_payload": (
        "execution_data",
        "AFTER INSERT ON execution_data FOR EACH ROW EXECUTE FUNCTION n8n_platform.keep_payload()",
    ),
    "n8n_platform_archive": (
        "execution_entity",
        "AFTER DELETE ON execution_entity REFERENCING OLD TABLE AS gone FOR EACH STATEMENT"
        " EXECUTE FUNCTION n8n_platform.archive_executions()",
    ),
}
# n8n has no index for the handful of executions under way among millions of finished ones.
INDEX = "n8n_platform_unsettled"


def partitions(today: date, monthly: bool) -> dict[str, tuple[date, date]]:
    """Return the partitions that must exist, from today on: ``suffix -> (first day, day after the last)``."""
    wanted = {}
    if monthly:
        first = today.replace(day=1)
        for _ in range(2):
            after = (first + timedelta(days=32)).replace(day=1)
            wanted[first.strftime("%Y%m")] = (first, after)
            first = after
        return wanted
    for offset in range(DAYS_AHEAD):
        day = today + timedelta(days=offset)
        wanted[day.strftime("%Y%m%d")] = (day, day + timedelta(days=1))
    return wanted


def outdated(suffix: str, today: date, keep_days: int) -> bool:
    """Tell whether all rows of a partition are older than ``keep_days``."""
    try:
        first = datetime.strptime(suffix, "%Y%m%d" if len(suffix) == 8 else "%Y%m").replace(tzinfo=UTC).date()  # noqa: PLR2004
    except ValueError:
        return False
    after = first + timedelta(days=1) if len(suffix) == 8 else (first + timedelta(days=32)).replace(day=1)  # noqa: PLR2004
    return after + timedelta(days=keep_days) <= today


class StoreError(Exception):
    """PostgreSQL does not answer or refuses; the text says what."""


class Schema:
    """The database. ``connection`` is a psycopg connection that commits each statement and returns dictionaries.

    ``errors`` are what it raises.
    """

    def __init__(self, connection: Any, errors: tuple[type[Exception], ...] = ()) -> None:
        self.connection = connection
        self.errors = errors

    def execute(self, statement: str, values: Any = None) -> Any:
        """Run a statement; raise :class:`StoreError` for the errors the connection raises."""
        try:
            return self.connection.execute(statement, values)
        except self.errors as error:
            raise StoreError(f"PostgreSQL: {str(error).strip()}") from error

    def rows(self, query: str, **values: Any) -> list[dict[str, Any]]:
        """Run a query and return its rows."""
        cursor = self.execute(query, values or None)
        return list(cursor.fetchall()) if cursor.description else []

    def value(self, query: str, **values: Any) -> Any:
        """Return the only column of the only row, or None."""
        rows = self.rows(query, **values)
        return next(iter(rows[0].values())) if rows else None

    def n8n_is_there(self) -> bool:
        """Tell whether n8n's migrations have created the tables of executions."""
        return bool(self.value("SELECT num_nulls(to_regclass('execution_entity'), to_regclass('execution_data')) = 0"))

    def ensure(self, payload_copy: bool) -> list[str]:
        """Create what is missing, also after a migration of n8n threw it away; return what was changed.

        Adds two triggers and one index to n8n's tables. Waits for locks 2 s at most, so that n8n is never held up.
        """
        changed = []
        schema = resources.files("n8n_platform").joinpath("schema.sql").read_text(encoding="utf-8")
        version = hashlib.sha256(schema.encode()).hexdigest()[:16]
        self.rows("SET lock_timeout = '2s'")
        if self.value("SELECT obj_description(to_regnamespace('n8n_platform'))") != version:
            with self.connection.transaction():
                # Two guards at once would create the same objects.
                self.rows("SELECT pg_advisory_xact_lock(hashtext('n8n_platform'))")
                self.execute(schema)
                self.execute(f"COMMENT ON SCHEMA n8n_platform IS '{version}'")
            changed.append("schema")
        active = self.triggers()
        for name, (table, definition) in TRIGGERS.items():
            wanted = payload_copy or name != "n8n_platform_keep_payload"
            if wanted and name not in active:
                self.execute(f"CREATE OR REPLACE TRIGGER {name} {definition}")
                changed.append(name)
            elif not wanted and name in active:
                self.execute(f"DROP TRIGGER {name} ON {table}")
                changed.append(name)
        if not self.value("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%(name)s)", name=INDEX):
            # Without a lock on n8n's table; an index left half-made by an interruption is replaced.
            self.execute(f"DROP INDEX IF EXISTS {INDEX}")
            self.execute("SET lock_timeout = 0; SET statement_timeout = 0")
            self.execute(
                f"CREATE INDEX CONCURRENTLY {INDEX} ON execution_entity (status, id)"
                " WHERE status IN ('new', 'running', 'crashed')"
            )
            self.execute("SET lock_timeout = '2s'; SET statement_timeout = '60s'")
            changed.append(INDEX)
        return changed

    def triggers(self) -> set[str]:
        """Return the names of our triggers that are there and enabled."""
        found = self.rows(
            "SELECT tgname FROM pg_trigger WHERE tgname = ANY (%(names)s) AND tgenabled IN ('O', 'A')"
            " AND tgrelid IN (to_regclass('execution_data'), to_regclass('execution_entity'))",
            names=list(TRIGGERS),
        )
        return {row["tgname"] for row in found}

    def partition(self, payload_days: int, archive_days: int) -> list[str]:
        """Create the partitions of the coming days and drop those that are too old; return what was changed."""
        today = self.value("SELECT current_date")
        changed = []
        for table, monthly, keep in (
            ("execution_payload", False, payload_days),
            ("execution_archive", True, archive_days),
        ):
            found = self.rows(
                "SELECT substr(c.relname, length(%(table)s) + 2) AS suffix FROM pg_inherits"
                " JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = to_regclass('n8n_platform.' || %(table)s)",
                table=table,
            )
            suffixes = {row["suffix"] for row in found}
            for suffix, (first, after) in partitions(today, monthly).items():
                if suffix not in suffixes:
                    self.execute(
                        f"CREATE TABLE n8n_platform.{table}_{suffix} PARTITION OF n8n_platform.{table}"
                        f" FOR VALUES FROM ('{first}') TO ('{after}')"
                        # Dropped in a few days: vacuuming it only to freeze rows would be wasted.
                        + ("" if monthly else " WITH (autovacuum_vacuum_insert_threshold = -1)")
                    )
                    changed.append(f"{table}_{suffix}")
            for suffix in sorted(suffixes):
                if outdated(suffix, today, keep):
                    self.execute(f"DROP TABLE n8n_platform.{table}_{suffix}")
                    changed.append(f"{table}_{suffix}")
        return changed

    def prune(self, payload_days: int, closed_days: int) -> None:
        """Forget closed entries, and payloads that came in while no partition was there for them."""
        self.rows(
            "DELETE FROM n8n_platform.lost_execution"
            " WHERE state = 'closed' AND closed_at < now() - make_interval(days => %(days)s)",
            days=closed_days,
        )
        self.rows(
            "DELETE FROM n8n_platform.execution_payload_default"
            " WHERE kept_at < now() - make_interval(days => %(days)s)",
            days=payload_days,
        )

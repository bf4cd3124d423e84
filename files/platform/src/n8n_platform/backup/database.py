# SPDX-License-Identifier: GPL-3.0-or-later
"""n8n's database: one snapshot that the dump, the row counts and the content hashes share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from n8n_platform.backup.config import Config, Database
from n8n_platform.backup.errors import BackupError, UnusableError
from n8n_platform.backup.identity import acting_as
from n8n_platform.backup.pipeline import Command
from n8n_platform.schema import Schema, StoreError

# Seconds to wait for a migration of n8n that holds a table.
LOCK_SECONDS = 60
# Rows become text for hashing: nothing of that may depend on the server's settings.
SESSION = (
    "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c timezone=UTC -c DateStyle=ISO"
    f" -c IntervalStyle=postgres -c bytea_output=hex -c extra_float_digits=1 -c lock_timeout={LOCK_SECONDS}s"
)
TABLES = """
    SELECT CASE WHEN n.nspname = 'public' THEN c.relname::text ELSE n.nspname || '.' || c.relname END AS name,
           format('%I.%I', n.nspname, c.relname) AS quoted
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    ORDER BY 1
"""
# The hash of the sorted hashes of the rows.
CONTENT = """
    SELECT encode(sha256(coalesce(string_agg(h, ''::bytea ORDER BY h), ''::bytea)), 'hex')
    FROM (SELECT sha256(convert_to(ROW(t.*)::text, 'UTF8')) AS h FROM {table} t) AS hashes
"""


class Snapshot(Schema):
    """A session that sees one moment of the database; errors are :class:`BackupError`."""

    warnings: list[str]
    id: str

    def begin(self) -> None:
        """Take the snapshot; it lasts as long as the session."""
        self.warnings = []
        # PostgreSQL 17 ends long transactions where it is told to; older ones do not know the word.
        self.rows(
            "SELECT set_config('transaction_timeout', '0', false)"
            " WHERE current_setting('server_version_num')::int >= 170000"
        )
        self.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        self.id = str(self.value("SELECT pg_export_snapshot()"))

    def execute(self, statement: str, values: Any = None) -> Any:
        """Run a statement."""
        try:
            return super().execute(statement, values)
        except StoreError as error:
            raise BackupError(f"{error}. See what it says: journalctl -u 'postgresql*' -n 50") from error

    def tables(self) -> dict[str, str]:
        """Return all tables: ``name -> name as SQL needs it``; only those outside ``public`` carry their schema."""
        return {row["name"]: row["quoted"] for row in self.rows(TABLES)}

    def count(self, names: Sequence[str]) -> dict[str, int]:
        """Return the number of rows of tables; ``all`` means every one."""
        return {
            name: int(self.value(f"SELECT count(*) FROM {quoted}"))  # noqa: S608  (quoted by the server)
            for name, quoted in self._chosen(names)
        }

    def content(self, names: Sequence[str]) -> dict[str, str]:
        """Return a hash of the rows of tables; their order on disk, and any collation, make no difference."""
        return {name: str(self.value(CONTENT.format(table=quoted))) for name, quoted in self._chosen(names)}

    def _chosen(self, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        tables = self.tables()
        for name in tables if "all" in names else names:
            if name in tables:
                yield name, tables[name]
            else:
                self.warnings.append(f"the database has no table {name}, it is not counted or hashed")

    def facts(self, settings: Database) -> dict[str, Any]:
        """Return what the manifest says about the database."""
        place = self.rows(
            "SELECT pg_current_wal_lsn()::text AS lsn, pg_walfile_name(pg_current_wal_lsn()) AS wal_segment,"
            " (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline,"
            " pg_database_size(current_database()) AS size_bytes, current_setting('server_version') AS version"
        )[0]
        return {
            "name": settings.name,
            "version": str(place["version"]).split()[0],
            "last_migration": self.last_migration(),
            "lsn": place["lsn"],
            "timeline": int(place["timeline"]),
            "wal_segment": place["wal_segment"],
            "size_bytes": int(place["size_bytes"]),
            "tables": self.count(settings.count_tables),
            "content": self.content(settings.hash_tables),
        }

    def last_migration(self) -> dict[str, Any] | None:
        """Return the newest of n8n's migrations, None when there are none yet."""
        if not self.value("SELECT to_regclass('migrations') IS NOT NULL"):
            return None
        rows = self.rows("SELECT name, timestamp FROM migrations ORDER BY id DESC LIMIT 1")
        return {"name": rows[0]["name"], "timestamp": int(rows[0]["timestamp"])} if rows else None

    def community_nodes(self) -> list[dict[str, Any]]:
        """Return the packages of community nodes that n8n has installed."""
        if not self.value("SELECT to_regclass('installed_packages') IS NOT NULL"):
            return []
        return self.rows(
            'SELECT "packageName" AS package, "installedVersion" AS version FROM installed_packages ORDER BY 1'
        )

    def size(self) -> int:
        """Return the bytes of the database on disk."""
        return int(self.value("SELECT pg_database_size(current_database())"))


def dump_file(settings: Database, other: str = "") -> str:
    """Return the name of the dump in a set; ``other`` is another database than n8n's."""
    return f"database{'-' if other else ''}{other}" + (".dump.zst" if settings.compression == "zstd" else ".sql.gz")


def dump_commands(config: Config, settings: Database, snapshot: str, other: str = "") -> list[Command]:
    """Return the programs that dump what the snapshot sees. Compression has a process, and so a core, of its own.

    A snapshot belongs to one database: the dump of an ``other`` one takes its own.
    """
    zstd = settings.compression == "zstd"
    dump = Command(
        [
            settings.bin_dir / "pg_dump",
            "--format=custom" if zstd else "--format=plain",
            "--compress=none",
            *([] if other else [f"--snapshot={snapshot}"]),
            f"--lock-wait-timeout={LOCK_SECONDS}s",
            "--no-password",
            f"--host={settings.host}",
            f"--port={settings.port}",
            *([f"--username={config.user}"] if config.user else []),
            other or settings.name,
        ],
        user=config.user,
    )
    return [dump, Command(["zstd" if zstd else "gzip", f"-{settings.level}", "--quiet", "--stdout"])]


@contextmanager
def session(config: Config, settings: Database) -> Iterator[Snapshot]:
    """Connect as the database's own user of this host (peer authentication) and take a snapshot."""
    try:
        import psycopg  # noqa: PLC0415  (a slow import that some commands do not need)
        from psycopg.rows import dict_row  # noqa: PLC0415
    except ImportError as error:
        raise UnusableError(
            f"the Python library for PostgreSQL is missing ({error}). Install python3-psycopg."
        ) from error
    try:
        with acting_as(config.user):
            connection = psycopg.connect(
                host=settings.host,
                port=settings.port,
                dbname=settings.name,
                user=config.user or None,
                application_name="n8n-platform-backup",
                connect_timeout=10,
                options=SESSION,
                autocommit=True,
                row_factory=dict_row,
            )
    except psycopg.Error as error:
        raise BackupError(
            f"PostgreSQL does not let us in ({settings.host}, port {settings.port}, database {settings.name}): "
            f"{str(error).strip()}. Is it running? systemctl status 'postgresql*'"
        ) from error
    with closing(connection):
        snapshot = Snapshot(connection, (psycopg.Error,))
        snapshot.begin()
        yield snapshot

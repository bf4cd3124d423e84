# SPDX-License-Identifier: GPL-3.0-or-later
"""The host as restores and drills see it: its settings, PostgreSQL, pgBackRest, systemd."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from n8n_platform.backup import pipeline, watch
from n8n_platform.backup.errors import BackupError, UnusableError
from n8n_platform.backup.pipeline import Command
from n8n_platform.restore.points import known_migrations

DEFAULT_PATH = Path("/etc/n8n-platform/backup/restore.json")
SAFETY = ".before-restore-"
FAILED = ".failed-restore-"
SAFETY_DATABASE = "_before_restore_"
STAMP = "%Y%m%dT%H%M%SZ"
# The first lines a server says when it cannot recover; the rest of its log is noise to a person at night.
FATAL = re.compile(r"(?:FATAL|PANIC|P00 +ERROR): +(.*)")
NOT_REACHED = "recovery ended before configured recovery target was reached"
POLL_SECONDS = 0.5
# What pgBackRest returns while another one of its processes is at work on the same stanza, and how long that may take.
LOCK_HELD = f"(exit code {watch.LOCK_HELD})"
LOCK_SECONDS = 1800
# Counts rows in one statement. Names are those of a manifest: only tables outside public carry their schema.
COUNT = """
    SELECT json_object_agg(name, CASE WHEN relation IS NULL THEN -1 ELSE
             (xpath('/row/n/text()', query_to_xml(format('SELECT count(*) AS n FROM %s', relation), false, true, ''))
             )[1]::text::bigint END)
    FROM (SELECT name, to_regclass(CASE
                 WHEN strpos(name, '.') = 0 THEN format('public.%I', name)
                 ELSE format('%I.%I', split_part(name, '.', 1), split_part(name, '.', 2)) END) AS relation
          FROM json_array_elements_text('{listed}') AS name) AS wanted
"""


class Runner(Protocol):
    """How programs are run: :func:`pipeline.output`, or its stand-in in tests."""

    def __call__(self, command: Command, *, timeout: float | None = None) -> str:
        """Run a program and return what it printed; raise :class:`BackupError` when it fails."""


@dataclass(frozen=True)
class Postgres:
    """n8n's database server on this host."""

    data_dir: Path
    config_file: Path
    unit: str
    bin_dir: Path = Path("/usr/lib/postgresql/17/bin")
    socket_dir: Path = Path("/var/run/postgresql")
    port: int = 5432
    database: str = "n8n"
    user: str = "n8n"

    @property
    def major(self) -> str:
        """Return the major version of the installed programs."""
        return self.bin_dir.parent.name


@dataclass(frozen=True)
class N8n:
    """n8n on this host. ``credentials`` are the names of the secrets a command of n8n needs."""

    user: str
    env_file: Path
    node: Path
    release: Path
    data_dir: Path
    credentials: tuple[str, ...] = (
        "n8n_encryption_key",
        "n8n_jwt_secret",
        "postgres_n8n_password",
        "redis_n8n_password",
    )


@dataclass(frozen=True)
class Drill:
    """Where drills happen. Sizes are MiB, times are seconds."""

    directory: Path = Path("/var/lib/n8n-platform/drill")
    postgres_port: int = 5433
    n8n_port: int = 5690
    memory_mb: int = 768
    n8n_memory_mb: int = 1024
    canary: Path = Path("/opt/n8n-platform/platform/verify.json")
    timeout_seconds: int = 14400


@dataclass(frozen=True)
class Layout:
    """The settings the role restore writes; a part is None where this host does not have it."""

    postgres: Postgres | None
    n8n: N8n | None
    redis_prefix: str
    drill: Drill = field(default_factory=Drill)


def load(path: Path = DEFAULT_PATH) -> Layout:
    """Read the settings; raise :class:`UnusableError` when they are missing or wrong."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Layout(
            postgres=_part(Postgres, values.get("postgres")),
            n8n=_part(N8n, values.get("n8n")),
            redis_prefix=str(values["redis_prefix"]),
            drill=_part(Drill, values.get("drill", {})),
        )
    except OSError as error:
        raise UnusableError(
            f"cannot read {path}: {error.strerror}. The role restore writes it; run as root."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UnusableError(f"{path} is not usable ({error}). Run the role restore again.") from error


PATHS = ("data_dir", "config_file", "bin_dir", "socket_dir", "env_file", "node", "release", "directory", "canary")


def _part(kind: Any, values: dict[str, Any] | None) -> Any:
    if values is None:
        return None
    return kind(
        **{
            name: Path(value) if name in PATHS else tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )


def until(condition: Callable[[], bool], seconds: float, clock: Callable[[], float] = time.monotonic) -> bool:
    """Wait until a condition holds; tell whether it did before the time was over."""
    end = clock() + seconds
    while not condition():
        if clock() >= end:
            return False
        time.sleep(POLL_SECONDS)
    return True


class Server:
    """A PostgreSQL server reached by its socket; ``account`` is who we are there ("" for root itself)."""

    def __init__(self, run: Runner, socket_dir: Path, port: int, account: str = "postgres") -> None:
        self.run = run
        self.socket_dir = socket_dir
        self.port = port
        self.account = account

    def sql(self, statement: str, database: str = "postgres", timeout: float | None = None) -> str:
        """Run statements as superuser and return what they print; raise :class:`BackupError` when one fails."""
        words = (
            "psql",
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            self.socket_dir,
            "-p",
            str(self.port),
            "-U",
            "postgres",
        )
        return self.run(Command((*words, "-d", database, "-c", statement), user=self.account), timeout=timeout).strip()

    def json(self, query: str, database: str = "postgres") -> Any:
        """Return one row as a dictionary."""
        return json.loads(self.sql(f"SELECT to_json(answer) FROM ({query}) AS answer", database) or "null")  # noqa: S608

    def answers(self) -> bool:
        """Tell whether the server accepts connections."""
        try:
            return self.sql("SELECT 1", timeout=10) == "1"
        except BackupError:
            return False

    def transactions(self) -> int:
        """Return the number the next transaction would get."""
        return int(self.sql("SELECT pg_snapshot_xmax(pg_current_snapshot())"))

    def recovered(self) -> dict[str, Any]:
        """Return how far the last recovery got: {timeline, lsn, last_commit (None: no commit was replayed)}."""
        found: dict[str, Any] = self.json(
            "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int AS timeline,"
            " pg_current_wal_lsn()::text AS lsn,"
            " to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"+00:00\"')"
            " AS last_commit"
        )
        return found

    def last_migration(self, database: str) -> dict[str, Any]:
        """Return the newest migration of n8n, empty when there is none."""
        if self.sql("SELECT to_regclass('public.migrations')", database) == "":
            return {}
        query = "SELECT name, timestamp FROM public.migrations ORDER BY timestamp DESC LIMIT 1"
        return dict(self.json(query, database) or {})

    def counts(self, database: str, tables: list[str]) -> dict[str, int]:
        """Return the number of rows of tables, named as a manifest names them; -1 for one that does not exist."""
        listed = json.dumps(tables).replace("'", "''")
        found = self.sql(COUNT.format(listed=listed), database)
        return {name: int(count) for name, count in dict(json.loads(found or "null") or {}).items()}


class Host:
    """What a restore needs of the host with the database."""

    def __init__(self, layout: Layout, stanza: str, run: Runner = pipeline.output) -> None:
        self.layout = layout
        self.stanza = stanza
        self.run = run

    @property
    def postgres(self) -> Postgres:
        """Return the database server's settings; raise :class:`UnusableError` where there is none."""
        if self.layout.postgres is None:
            raise UnusableError("this host has no database; run this on the host of the group postgres.")
        return self.layout.postgres

    @property
    def server(self) -> Server:
        """Return the running server."""
        return Server(self.run, self.postgres.socket_dir, self.postgres.port)

    # --- pgBackRest ----------------------------------------------------------------------------------------------

    def pgbackrest(self, *words: str, timeout: float | None = None) -> str:
        """Run pgBackRest and return what it printed; another backup under way is waited for."""
        command = Command(
            ("pgbackrest", f"--stanza={self.stanza}", "--log-level-console=warn", *words), user="postgres"
        )
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return self.run(command, timeout=timeout)
            except BackupError as error:
                if LOCK_HELD not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(POLL_SECONDS)

    def info(self, repo: int) -> str:
        """Return what one repository holds, as JSON."""
        return self.pgbackrest(f"--repo={repo}", "--output=json", "info", timeout=60)

    def archive_listing(self, archive_id: str, repo: int) -> str:
        """Return the archived segments of one repository, as JSON."""
        words = (f"--repo={repo}", "--output=json", "--recurse", "--log-level-console=warn")
        path = f"archive/{self.stanza}/{archive_id}"
        return self.run(Command(("pgbackrest", *words, "repo-ls", path), user="postgres"), timeout=300)

    def history(self, timeline: int) -> str:
        """Return the history file of a timeline from the archive, empty for the first one."""
        if timeline <= 1:
            return ""
        target = f"/tmp/n8n-platform-{timeline:08X}.history.{os.getpid()}"  # noqa: S108  (removed right away)
        words = ("--log-level-console=warn", "archive-get", f"{timeline:08X}.history", target)
        pg1 = f"--pg1-path={self.postgres.data_dir}"
        try:
            self.run(Command(("pgbackrest", f"--stanza={self.stanza}", pg1, *words), user="postgres"), timeout=60)
            return Path(target).read_text(encoding="utf-8")
        except (BackupError, OSError):
            return ""
        finally:
            Path(target).unlink(missing_ok=True)

    # --- the service ---------------------------------------------------------------------------------------------

    def systemctl(self, *words: str, timeout: float | None = None) -> str:
        """Run systemctl."""
        return self.run(Command(("systemctl", *words)), timeout=timeout)

    def stop_server(self) -> None:
        """Stop the database server and wait for its end."""
        self.systemctl("stop", self.postgres.unit)

    def start_server(self, seconds: float) -> None:
        """Start the database server and wait until it takes part in life.

        Raises:
            BackupError: it does not start; the text has the server's own reason, the service is stopped.
        """
        unit = self.postgres.unit
        since = datetime.now(UTC).strftime("%F %T UTC")
        self.systemctl("reset-failed", unit)
        self.systemctl("start", "--no-block", unit)
        state: dict[str, str] = {}

        def over() -> bool:
            shown = self.systemctl("show", "--property=NRestarts,ActiveState", unit)
            state.update({line.split("=", 1)[0]: line.split("=", 1)[1] for line in shown.splitlines() if "=" in line})
            died = state.get("NRestarts", "0") != "0" or state.get("ActiveState") == "failed"
            return died or self.server.answers()

        reached = until(over, seconds)
        if reached and state.get("NRestarts", "0") == "0" and state.get("ActiveState") != "failed":
            return
        self.stop_server()
        reason = self.complaint(since) if reached else f"it did not accept connections within {seconds:.0f} s"
        if NOT_REACHED in reason:
            raise BackupError(
                "The archived write-ahead log ends before the wanted time: choose an earlier restore_time, or"
                " restore_set=latest for the newest state there is."
            )
        raise BackupError(f"PostgreSQL does not start on the restored data: {reason}")

    def complaint(self, since: str) -> str:
        """Return why the server gave up, from its journal."""
        words = ("journalctl", "--no-pager", "-o", "cat", "-u", self.postgres.unit, "--since", since)
        said = FATAL.findall(self.run(Command(words)))
        useful = [line for line in said if "starting up" not in line and "shutting down" not in line]
        return useful[0] if useful else f"see: journalctl -u {self.postgres.unit} -n 50"

    def control(self) -> dict[str, str]:
        """Return what pg_controldata says of the data directory; empty when there is no usable one."""
        try:
            words = (self.postgres.bin_dir / "pg_controldata", "-D", self.postgres.data_dir)
            printed = self.run(Command(words, user="postgres"), timeout=30)
        except BackupError:
            return {}
        pairs = (line.split(":", 1) for line in printed.splitlines() if ":" in line)
        return {name.strip(): value.strip() for name, value in pairs}

    def system(self) -> str:
        """Return the identifier that PostgreSQL gave the cluster and its copies share; empty without one."""
        return self.control().get("Database system identifier", "")

    # --- safety copies -------------------------------------------------------------------------------------------

    def safety_directories(self) -> list[Path]:
        """Return the data directories earlier restores put aside, oldest first."""
        data = self.postgres.data_dir
        return sorted(path for path in data.parent.glob(f"{data.name}{SAFETY}*") if path.is_dir())

    def safety_databases(self) -> list[str]:
        """Return the databases earlier restores put aside, oldest first; none can be seen while the server is down."""
        name = self.postgres.database + SAFETY_DATABASE
        query = f"SELECT datname FROM pg_database WHERE starts_with(datname, '{name}') ORDER BY 1"  # noqa: S608
        try:
            return [line for line in self.server.sql(query, timeout=20).splitlines() if line]
        except BackupError:
            return []

    def safety_copies(self) -> list[str]:
        """Return all of them."""
        return [str(path) for path in self.safety_directories()] + self.safety_databases()

    def migrations(self) -> set[int]:
        """Return the migrations the installed n8n knows; empty when no n8n is installed here."""
        if self.layout.n8n is None:
            return set()
        folder = self.layout.n8n.release / "node_modules/@n8n/db/dist/migrations"
        names = [entry.name for part in ("common", "postgresdb") for entry in folder.glob(f"{part}/*.js")]
        return known_migrations(names)

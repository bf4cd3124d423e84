# SPDX-License-Identifier: GPL-3.0-or-later
"""What restores and drills do to databases, archives and queues, each in one function."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from n8n_platform.backup.config import Config
from n8n_platform.backup.identity import switch_to
from n8n_platform.backup.pipeline import UNPACK, Command, Pipeline
from n8n_platform.restore import host as restore_host
from n8n_platform.restore.host import until

TERMINATE_SECONDS = 60


def free_stamp(taken: Callable[[str], bool]) -> str:
    """Return the present moment as part of a name, or the first second after it that no name has yet."""
    moment = datetime.now(UTC)
    while taken(moment.strftime(restore_host.STAMP)):
        moment += timedelta(seconds=1)
    return moment.strftime(restore_host.STAMP)


def owned_directory(path: Path, user: str) -> None:
    """Create an empty directory that only a user may enter."""
    path.mkdir(mode=0o700)
    account = switch_to(user)
    if account:
        os.chown(path, account.pw_uid, account.pw_gid)


def physical_options(plan: dict[str, Any]) -> list[str]:
    """Return pgBackRest's options for a plan."""
    options = [f"--set={plan['backup']}", f"--repo={plan['repo']}"]
    if plan["target"] == "end of backup":
        return [*options, "--type=immediate", "--target-action=promote"]
    # pgBackRest and PostgreSQL would follow the latest timeline, also one that was undone.
    options.append(f"--target-timeline=0x{int(plan['timeline']):X}")
    if plan["target"] == "newest":
        return [*options, "--type=default"]
    return [*options, "--type=time", f"--target={plan['target']}", "--target-action=promote"]


def held_settings(timeline: int) -> str:
    """Return settings for the time until the restore is proved: the archive stays as it is."""
    return (
        "# Until the restore is proved: nothing goes to the archive, nobody reads along.\n"
        f"archive_command = '/bin/false'\nhot_standby = 'off'\nrecovery_target_timeline = '0x{timeline:X}'\n"
    )


def measured_rpo(values: dict[str, Any]) -> float | None:
    """Return the seconds between what was asked for and the last commit that came back; None when unknown."""
    if values["plan"]["target"] != "newest":
        # A set is whole, and recovery saw a commit beyond its target: all that was asked for is there.
        return 0.0
    recovered = values.get("recovered", {})
    last = recovered.get("last_commit")
    # In the place of another cluster, an empty one on a new host: nobody knows what the lost one had seen.
    if not last or recovered.get("system") != values.get("system"):
        return None
    wanted = datetime.fromisoformat(values["stopped_at"])
    return max(0.0, round((wanted - datetime.fromisoformat(last)).total_seconds(), 1))


def load(folder: Path, postgres: restore_host.Postgres, socket: Path, port: int, account: str = "postgres") -> None:
    """Load the dump of a set into n8n's empty database, everything owned by n8n's role."""
    connection = ["-h", str(socket), "-p", str(port), "-U", "postgres", "-d", postgres.database]
    dump = folder / "database.dump.zst"
    if dump.exists():
        words = [str(postgres.bin_dir / "pg_restore"), "--exit-on-error", "--no-owner", f"--role={postgres.user}"]
        opening = UNPACK
    else:
        dump = folder / "database.sql.gz"
        words = [str(postgres.bin_dir / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1"]
        opening = Command(["gzip", "--decompress", "--stdout"])
    pour(dump, [opening, Command(words + connection, user=account)])


def pour(path: Path, commands: list[Command]) -> None:
    """Run programs in a pipe with a file as their input; raise :class:`BackupError` when one fails."""
    # As standard input: the server's account cannot enter the directory of sets.
    with path.open("rb") as stream, Pipeline(commands, stdin=stream) as pipeline:
        for _ in pipeline.chunks():
            pass
        pipeline.finish()


def amcheck(
    run: restore_host.Runner,
    bin_dir: Path,
    socket_dir: Path,
    port: int,
    database: str,
    *more: str,
    account: str = "postgres",
) -> None:
    """Check the structure of tables and indexes; the extension it needs is removed again."""
    server = restore_host.Server(run, socket_dir, port, account)
    there = server.sql("SELECT 1 FROM pg_extension WHERE extname = 'amcheck'", database)
    connection = ("-h", socket_dir, "-p", str(port), "-U", "postgres", "-d", database)
    try:
        run(Command((bin_dir / "pg_amcheck", "--install-missing", "--jobs=2", *more, *connection), user=account))
    finally:
        if not there:
            server.sql("DROP EXTENSION IF EXISTS amcheck", database)


def rename_database(server: restore_host.Server, old: str, new: str, connections: bool) -> None:
    """Rename a database that others may be connected to; ``connections`` tells whether it takes new ones afterwards."""
    old_name, new_name = json.dumps(old), json.dumps(new)
    server.sql(f"ALTER DATABASE {old_name} WITH ALLOW_CONNECTIONS false")
    others = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{old}'"  # noqa: S608
    until(lambda: server.sql(others) == "0", TERMINATE_SECONDS)
    server.sql(f"ALTER DATABASE {old_name} RENAME TO {new_name}")
    server.sql(f"ALTER DATABASE {new_name} WITH ALLOW_CONNECTIONS {'true' if connections else 'false'}")


def swap_database(server: restore_host.Server, name: str, safety: str, keep: str = "") -> None:
    """Put a safety copy back in its place; what is there now is dropped, or kept under another name."""
    there = server.sql(f"SELECT 1 FROM pg_database WHERE datname = '{safety}'")  # noqa: S608
    if not there:
        # Not renamed yet: at most its connections were forbidden.
        server.sql(f"ALTER DATABASE {json.dumps(name)} WITH ALLOW_CONNECTIONS true")
        return
    if server.sql(f"SELECT 1 FROM pg_database WHERE datname = '{name}'"):  # noqa: S608
        if keep:
            rename_database(server, name, keep, connections=False)
        else:
            server.sql(f"DROP DATABASE {json.dumps(name)} WITH (FORCE)")
    rename_database(server, safety, name, connections=True)


def connect_redis(config: Config, settings: Any) -> Any:
    """Return a client of a Redis instance."""
    import redis  # noqa: PLC0415  (a slow import that most commands do not need)

    tls = {"ssl": True, "ssl_ca_certs": settings.ca_file, "ssl_check_hostname": False} if settings.ca_file else {}
    password = config.secret(settings.secret)
    return redis.Redis(
        host=settings.host, port=settings.port, username=settings.user, password=password, socket_timeout=30, **tls
    )


def empty_queue(client: Any, prefix: str) -> int:
    """Remove all keys with a prefix; return how many."""
    removed = 0
    for key in client.scan_iter(match=f"{prefix}:*", count=5000):
        removed += int(client.unlink(key))
    return removed


def unpublish(server: restore_host.Server, database: str, but: str = "") -> dict[str, int]:
    """Do so, except for one workflow; return how many workflows and executions it were."""
    which = f"WHERE \"activeVersionId\" IS NOT NULL AND id <> '{but}'"
    workflows = server.sql(
        f'WITH changed AS (UPDATE workflow_entity SET active = false, "activeVersionId" = NULL {which}'  # noqa: S608
        " RETURNING 1) SELECT count(*) FROM changed",
        database,
    )
    executions = server.sql(
        'WITH changed AS (UPDATE execution_entity SET status = \'canceled\', "stoppedAt" = now(), "waitTill" = NULL'
        " WHERE status IN ('waiting', 'new', 'running') RETURNING 1) SELECT count(*) FROM changed",
        database,
    )
    return {"workflows": int(workflows), "executions": int(executions)}

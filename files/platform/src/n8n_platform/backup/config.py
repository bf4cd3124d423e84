# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings: one JSON file without secrets; keys and passwords come from files named after them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from n8n_platform.backup.errors import UnusableError

DEFAULT_PATH = Path("/etc/n8n-platform/backup/settings.json")
COMPRESSIONS = ("zstd", "gzip")


@dataclass(frozen=True)
class Database:
    """n8n's database on this host. ``count_tables`` is ``("all",)`` or names; ``level`` is the compression's.

    ``others`` are further databases of the same server, which are dumped and not counted.
    """

    host: str = "/var/run/postgresql"
    port: int = 5432
    name: str = "n8n"
    bin_dir: Path = Path("/usr/lib/postgresql/17/bin")
    compression: str = "zstd"
    level: int = 3
    count_tables: tuple[str, ...] = ("all",)
    hash_tables: tuple[str, ...] = ("workflow_entity", "credentials_entity")
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise ValueError(f"database.compression is {self.compression!r}, not one of {', '.join(COMPRESSIONS)}")


@dataclass(frozen=True)
class Redis:
    """One Redis instance; ``rdb`` is the file its BGSAVE writes, ``secret`` the name of the user's password."""

    rdb: Path
    name: str = "queue"
    host: str = "127.0.0.1"
    port: int = 6379
    user: str = "admin"
    secret: str = "redis_admin_password"  # noqa: S105  (a name)
    ca_file: str = ""
    timeout_seconds: int = 300


@dataclass(frozen=True)
class N8n:
    """n8n's files. ``cli`` is null where no exports are made. ``exclude`` are patterns of ``tar --exclude``."""

    data_dir: Path
    export_dir: Path
    scripts_dir: Path | None = None
    files_dir: Path | None = None
    # A crash journal makes n8n wait at its start, old events make it report executions again: neither may come back.
    exclude: tuple[str, ...] = (".cache", "crash.journal", "events*.log")
    cli: Path | None = Path("/usr/local/sbin/n8n")
    user: str = "n8n"
    release: Path = Path("/opt/n8n-platform/n8n/current")


@dataclass(frozen=True)
class Paths:
    """Files and directories that are archived as they are."""

    paths: tuple[Path, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Secrets:
    """What the encrypted bundle holds, and who can open it: age recipients, or paths of files with recipients."""

    paths: tuple[Path, ...]
    age_recipients: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.age_recipients:
            raise ValueError("secrets.age_recipients is empty: without a recipient there is no bundle of secrets")


@dataclass(frozen=True)
class Physical:
    """pgBackRest's stanza and repositories; its own settings are in /etc/pgbackrest/pgbackrest.conf."""

    stanza: str = "n8n"
    repos: tuple[int, ...] = (1,)
    full_every_days: int = 7


@dataclass(frozen=True)
class S3:
    """An S3 bucket. ``prefix`` is empty or ends in a slash; ``secret`` is the name of the secret key."""

    url: str
    bucket: str
    access_key: str
    region: str = "us-east-1"
    prefix: str = ""
    secret: str = "object_store_backup_secret"  # noqa: S105  (a name)
    ca_file: str = ""


@dataclass(frozen=True)
class Gfs:
    """How many of the last days, weeks and months that have sets keep their newest one."""

    daily: int = 0
    weekly: int = 0
    monthly: int = 0


@dataclass(frozen=True)
class Retention:
    """Days that sets stay. GFS keeps more in S3, or locally when there is no S3."""

    local_days: int = 7
    s3_days: int = 30
    gfs: Gfs | None = None
    # Complete sets that stay whatever their age: a clock that leaps must not empty the place.
    minimum_sets: int = 3


@dataclass(frozen=True)
class Config:
    """Everything the command knows about its surroundings."""

    environment: str
    host: str
    sets_dir: Path
    secrets_dir: Path
    collection_version: str = ""
    state_dir: Path = Path("/var/lib/n8n-platform/backup")
    metrics_file: Path = Path("/var/lib/n8n-platform/backup/n8n_backup.prom")
    lock_file: Path = Path("/run/lock/n8n-platform-backup.lock")
    user: str = "postgres"
    database: Database | None = None
    redis: tuple[Redis, ...] = ()
    n8n: N8n | None = None
    configuration: Paths | None = None
    certificates: Paths | None = None
    secrets: Secrets | None = None
    physical: Physical | None = None
    s3: S3 | None = None
    retention: Retention = field(default_factory=Retention)
    minimum_free_mb: int = 1024
    space_factor: float = 1.2
    verify_after_run: bool = True
    # Hours without a complete set, days without a successful drill, after which `status` complains (0: never).
    maximum_age_hours: int = 26
    maximum_drill_age_days: int = 0
    drill: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the parts of a complete set of this host, in the order they are made."""
        return tuple(name for name in PARTS if getattr(self, name))

    def secret(self, name: str) -> str:
        """Return a secret, from the unit's credentials when it is there, otherwise from the directory of secrets."""
        given = os.environ.get("CREDENTIALS_DIRECTORY")
        for directory in [Path(given)] if given else []:
            if (directory / name).is_file():
                return (directory / name).read_text(encoding="utf-8").strip()
        try:
            return (self.secrets_dir / name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UnusableError(
                f"cannot read the secret {name} in {self.secrets_dir}: {error.strerror}. Run this as root; if the file "
                "is gone, get it back from a bundle of secrets (docs/runbooks/disaster-recovery.md)."
            ) from error


# Parts of a set: the names of the settings that switch them on.
PARTS = ("database", "redis", "n8n", "configuration", "certificates", "secrets")
PHYSICAL = "physical"
SECTIONS: dict[str, Any] = {
    "database": Database,
    "n8n": N8n,
    "configuration": Paths,
    "certificates": Paths,
    "secrets": Secrets,
    "physical": Physical,
    "s3": S3,
    "retention": Retention,
    "gfs": Gfs,
}


def build(kind: Any, values: dict[str, Any], where: str) -> Any:
    """Return a settings object; names it does not have are errors, lists become tuples, paths become paths."""
    known = {entry.name: str(entry.type) for entry in fields(kind)}
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{where} has no setting {', '.join(unknown)}")
    given: dict[str, Any] = {}
    for name, value in values.items():
        place = f"{where}.{name}" if where else name
        if name in SECTIONS and kind in (Config, Retention):
            given[name] = None if value is None else build(SECTIONS[name], value, place)
        elif name == "redis":
            given[name] = tuple(build(Redis, entry, place) for entry in value or ())
        elif name == "count_tables" and value == "all":
            given[name] = ("all",)
        elif isinstance(value, list):
            given[name] = tuple(Path(entry) for entry in value) if "Path" in known[name] else tuple(value)
        elif "Path" in known[name] and value is not None:
            given[name] = Path(value)
        else:
            given[name] = value
    if kind is Config:
        given = {name: value for name, value in given.items() if value is not None}
    return kind(**given)


def load(path: Path) -> Config:
    """Read the settings file; raise :class:`UnusableError` when it is missing, unreadable or wrong."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        config: Config = build(Config, values, "")
    except OSError as error:
        raise UnusableError(f"cannot read {path}: {error.strerror}. The role backup writes it; run as root.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnusableError(f"{path} is not usable ({error}). Run the role backup again.") from error
    return config

# SPDX-License-Identifier: GPL-3.0-or-later
"""Physical backups by pgBackRest, each repository on its own: one that is away does not stop the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from n8n_platform.backup.config import Config, Physical
from n8n_platform.backup.errors import BackupError
from n8n_platform.backup.pipeline import Command, output

INFO_SECONDS = 300


@dataclass(frozen=True)
class Repository:
    """What a repository holds of our stanza: finished backups, oldest first, as `pgbackrest info` says."""

    repo: int
    backups: tuple[Mapping[str, Any], ...] = ()

    @property
    def newest(self) -> Mapping[str, Any] | None:
        """Return the newest backup."""
        return self.backups[-1] if self.backups else None

    def last_full(self) -> datetime | None:
        """Return when the newest full backup ended."""
        times = [int(backup["timestamp"]["stop"]) for backup in self.backups if backup["type"] == "full"]
        return datetime.fromtimestamp(max(times), UTC) if times else None


def call(config: Config, settings: Physical, repo: int, *words: str, timeout: float | None = None) -> str:
    """Run pgBackRest for a repository; raise :class:`BackupError` with what it said."""
    command = Command(
        [
            "pgbackrest",
            f"--stanza={settings.stanza}",
            f"--repo={repo}",
            "--log-level-console=off",
            "--log-level-stderr=warn",
            *words,
        ],
        user=config.user,
    )
    try:
        return output(command, timeout=timeout)
    except BackupError as error:
        raise BackupError(
            f"pgBackRest, repository {repo}: {error}. Look closer: "
            f"sudo -u {config.user or 'postgres'} pgbackrest --stanza={settings.stanza} check"
        ) from error


def info(config: Config, settings: Physical, repo: int) -> Repository:
    """Return what a repository holds."""
    printed = call(config, settings, repo, "info", "--output=json", timeout=INFO_SECONDS)
    try:
        stanza = next((entry for entry in json.loads(printed) if entry["name"] == settings.stanza), None)
        if stanza is None:
            return Repository(repo)
        status = next((entry["status"] for entry in stanza.get("repo", ()) if entry["key"] == repo), stanza["status"])
        # 2: the stanza is there, a backup is not yet.
        if int(status["code"]) not in (0, 2):
            raise BackupError(
                f"pgBackRest, repository {repo}: {status['message']}. Does the stanza exist? Run the role backup again."
            )
        backups = [
            backup
            for backup in stanza["backup"]
            if int(backup["database"]["repo-key"]) == repo and not backup.get("error")
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise BackupError(f"pgBackRest, repository {repo}: `info` answered something unknown ({error!r})") from error
    return Repository(repo, tuple(sorted(backups, key=lambda found: int(found["timestamp"]["stop"]))))


def kind_due(repository: Repository, now: datetime, full_every_days: int) -> str:
    """Return the kind of backup that is due. Half a day of grace: a nightly run must not slip by a night each time."""
    last = repository.last_full()
    if last is None or now - last >= timedelta(days=full_every_days, hours=-12):
        return "full"
    return "diff"


def backup(config: Config, settings: Physical, repo: int) -> Repository:
    """Make the backup that is due in a repository; return what is there then."""
    kind = kind_due(info(config, settings, repo), datetime.now(UTC), settings.full_every_days)
    call(config, settings, repo, f"--type={kind}", "backup")
    found = info(config, settings, repo)
    if found.newest is None:
        raise BackupError(f"pgBackRest, repository {repo}: the backup ended well, but `info` does not list it")
    return found


def size(backup: Mapping[str, Any]) -> int:
    """Return the bytes of a backup: in the repository, or of what it saved where blocks are shared between backups."""
    known = backup.get("info", {})
    return int(known.get("repository", {}).get("size") or known.get("size") or 0)

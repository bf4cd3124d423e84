# SPDX-License-Identifier: GPL-3.0-or-later
"""Physical backups by pgBackRest, each repository on its own: one that is away does not stop the other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from n8n_platform.backup.config import Config, Physical
from n8n_platform.backup.errors import BackupError
from n8n_platform.backup.pipeline import Command, output

INFO_SECONDS = 300
WAL = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})(?:-[0-9a-f]{40}.*)?")
# Names shown of a gap.
SHOWN = 3


@dataclass(frozen=True)
class Repository:
    """What a repository holds of our stanza: finished backups, oldest first, as `pgbackrest info` says."""

    repo: int
    backups: tuple[Mapping[str, Any], ...] = ()
    archive_id: str = ""

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
        ["pgbackrest", f"--stanza={settings.stanza}", f"--repo={repo}", "--log-level-console=warn", *words],
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
        archives = [entry["id"] for entry in stanza["archive"] if int(entry["database"]["repo-key"]) == repo]
    except (ValueError, KeyError, TypeError) as error:
        raise BackupError(f"pgBackRest, repository {repo}: `info` answered something unknown ({error!r})") from error
    return Repository(
        repo,
        tuple(sorted(backups, key=lambda found: int(found["timestamp"]["stop"]))),
        archives[-1] if archives else "",
    )


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


def missing_wal(names: Iterable[str], start: str, segments_per_file: int = 256) -> list[str]:
    """Return the WAL segments that lack between ``start`` and the newest one of its timeline, in order.

    ``names`` are those of the archive. One segment file of 16 MiB is the 256th part of what shares a middle number.
    """
    first = WAL.fullmatch(start)
    if not first:
        return []
    timeline = first[1]
    present = {
        int(match[2], 16) * segments_per_file + int(match[3], 16)
        for match in map(WAL.fullmatch, names)
        if match and match[1] == timeline
    }
    begin = int(first[2], 16) * segments_per_file + int(first[3], 16)
    return [
        f"{timeline}{number // segments_per_file:08X}{number % segments_per_file:08X}"
        for number in range(begin, max(present, default=begin - 1) + 1)
        if number not in present
    ]


def archive_gap(config: Config, settings: Physical, found: Repository) -> str:
    """Return what lacks in the archive since the newest backup: recovery to a later time would stop there."""
    if found.newest is None or not found.archive_id:
        return ""
    start = str(found.newest["archive"]["start"])
    place = f"archive/{settings.stanza}/{found.archive_id}"
    printed = call(config, settings, found.repo, "repo-ls", place, "--recurse", timeout=INFO_SECONDS)
    lost = missing_wal((line.rsplit("/", 1)[-1] for line in printed.splitlines()), start)
    if not lost:
        return ""
    names = ", ".join(lost[:SHOWN]) + (f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else "")
    return (
        f"pgBackRest, repository {found.repo}: the archive lacks {names} since the backup {found.newest['label']}; "
        "a restore cannot go past that point. A new backup closes the gap: n8n-platform-backup run --parts physical"
    )

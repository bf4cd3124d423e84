# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be restored, and from where: pgBackRest's backups, timelines, archived WAL, and the choice for a wish.

Nothing here touches the host; it is all reading and reckoning, so that a plan can be printed without any risk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from n8n_platform.backup.errors import UsageError
from n8n_platform.backup.manifest import parse_id

LABEL = re.compile(r"\d{8}-\d{6}F(_\d{8}-\d{6}[DI])?")
TIME = re.compile(r"(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?) ?(Z|[+-]\d{2}(?::?\d{2})?)")
WAL_NAME = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})")
# Segments of 16 MiB in a log file of 4 GiB.
SEGMENTS = 256
HEX = 16


def parse_time(text: str) -> datetime:
    """Return the moment a person asked for.

    Raises:
        UsageError: it has no zone, a named zone, or another order of day and month; each can mean several moments.
    """
    match = TIME.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"restore_time {text!r} can mean several moments: write it with its offset from UTC, as in"
            " '2026-11-22 14:05:00+00:00'."
        )
    day, clock, zone = match.groups()
    offset = {"Z": "+00:00"}.get(zone, zone if ":" in zone else f"{zone[:3]}:{zone[3:] or '00'}")
    try:
        return datetime.fromisoformat(f"{day}T{clock}{offset}").astimezone(UTC)
    except ValueError as error:
        raise UsageError(f"restore_time {text!r} is not a time: {error}.") from error


def segment(name: str) -> tuple[int, int]:
    """Return (timeline, running number) of a WAL segment's name."""
    match = WAL_NAME.match(name)
    if match is None:
        raise ValueError(f"{name!r} is not the name of a WAL segment")
    timeline, log, number = (int(part, HEX) for part in match.groups())
    return timeline, log * SEGMENTS + number


def segment_name(timeline: int, number: int) -> str:
    """Return the name of a WAL segment."""
    return f"{timeline:08X}{number // SEGMENTS:08X}{number % SEGMENTS:08X}"


def lsn(text: str) -> int:
    """Return a position in the WAL as a number."""
    high, low = text.split("/")
    return (int(high, HEX) << 32) + int(low, HEX)


@dataclass(frozen=True)
class Backup:
    """A backup of pgBackRest in one repository. Times are UTC, sizes are bytes."""

    label: str
    repo: int
    kind: str
    started: datetime
    stopped: datetime
    first_wal: str
    last_wal: str
    stop_lsn: int
    size: int
    version: str = ""
    broken: bool = False

    @property
    def timeline(self) -> int:
        """Return the timeline the backup was taken on."""
        return segment(self.last_wal)[0]


@dataclass(frozen=True)
class Repositories:
    """What ``pgbackrest info`` says: backups oldest first, archive directory of the newest database, problems."""

    backups: tuple[Backup, ...] = ()
    archive_ids: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def read_info(text: str, stanza: str) -> Repositories:
    """Return what ``pgbackrest info --output=json`` says of a stanza."""
    found = next((entry for entry in json.loads(text or "[]") if entry.get("name") == stanza), None)
    if found is None:
        return Repositories(problems=(f"pgBackRest knows no stanza {stanza}",))
    problems = [
        f"repository {repo['key']}: {repo['status'].get('message', 'unknown error')}"
        for repo in found.get("repo", ())
        if repo.get("status", {}).get("code", 0) not in (0, 2)
    ]
    versions = {(db["id"], db.get("repo-key", 1)): str(db.get("version", "")) for db in found.get("db", ())}
    backups = []
    for entry in found.get("backup", ()):
        database = entry.get("database", {})
        place = (database.get("id"), database.get("repo-key", 1))
        backups.append(
            Backup(
                label=entry["label"],
                repo=int(database.get("repo-key", 1)),
                kind=entry["type"],
                started=datetime.fromtimestamp(entry["timestamp"]["start"], UTC),
                stopped=datetime.fromtimestamp(entry["timestamp"]["stop"], UTC),
                first_wal=entry["archive"]["start"],
                last_wal=entry["archive"]["stop"],
                stop_lsn=lsn(entry["lsn"]["stop"]),
                size=int(entry["info"]["size"]),
                version=versions.get(place, ""),
                broken=bool(entry.get("error")),
            )
        )
    newest = max((db["id"] for db in found.get("db", ())), default=None)
    archives = [entry["id"] for entry in found.get("archive", ()) if entry.get("database", {}).get("id") == newest]
    backups.sort(key=lambda backup: (backup.stopped, -backup.repo))
    return Repositories(tuple(backups), tuple(dict.fromkeys(archives)), tuple(problems))


@dataclass(frozen=True)
class Lineage:
    """The timelines that lead to one: ``{timeline: position where the next one branched off, None for the last}``."""

    timeline: int
    ends: Mapping[int, int | None] = field(default_factory=dict)

    def holds(self, backup: Backup) -> bool:
        """Tell whether a backup is an ancestor of this timeline."""
        if backup.timeline not in self.ends:
            return False
        end = self.ends[backup.timeline]
        return end is None or backup.stop_lsn <= end


def lineage(timeline: int, history: str = "") -> Lineage:
    """Return the ancestors of a timeline from its history file (empty for the first)."""
    ends: dict[int, int | None] = {}
    for line in history.splitlines():
        words = line.split("\t") if "\t" in line else line.split()
        if len(words) > 1 and words[0].strip().isdigit():
            ends[int(words[0])] = lsn(words[1].strip())
    return Lineage(timeline, {**ends, timeline: None})


def choose_backup(backups: Sequence[Backup], line: Lineage, target: datetime | None) -> Backup | None:
    """Return the newest sound backup from which a moment (None: the newest state) can be reached."""
    fit = [
        backup
        for backup in backups
        if not backup.broken and line.holds(backup) and (target is None or backup.stopped <= target)
    ]
    return max(fit, key=lambda backup: (backup.stopped, -backup.repo), default=None)


@dataclass(frozen=True)
class Archived:
    """A segment in the archive and when it got there."""

    number: int
    timeline: int
    at: datetime


def read_archive(listings: Iterable[str], line: Lineage) -> dict[int, Archived]:
    """Return the segments of a lineage by number, from answers of ``pgbackrest repo-ls --recurse --output=json``."""
    found: dict[int, Archived] = {}
    for listing in listings:
        for path, entry in json.loads(listing or "{}").items():
            match = WAL_NAME.match(path.rsplit("/", 1)[-1])
            if match is None or entry.get("type") != "file" or ".partial" in path or ".backup" in path:
                continue
            timeline, number = segment(match[0])
            if timeline not in line.ends:
                continue
            at = datetime.fromtimestamp(int(entry.get("time", 0)), UTC)
            known = found.get(number)
            if known is None or timeline > known.timeline or (timeline == known.timeline and at < known.at):
                found[number] = Archived(number, timeline, at)
    return found


def missing_wal(archive: Mapping[int, Archived], backup: Backup, target: datetime | None) -> str:
    """Return the first segment that is missing on the way from a backup to a moment; empty when there is none.

    With a moment, a gap only counts when the last segment before it was archived earlier than that moment.
    """
    first, needed = segment(backup.first_wal)[1], segment(backup.last_wal)[1]
    last = max(archive, default=first)
    for number in range(first, max(last, needed) + 1):
        if number in archive:
            continue
        before = archive.get(number - 1)
        if number > needed and target is not None and before is not None and before.at > target:
            return ""
        return segment_name(backup.timeline, number)
    return ""


@dataclass(frozen=True)
class Wish:
    """What a person asked for: exactly one of the newest state, a set or backup by its id, a moment."""

    kind: str
    id: str = ""
    time: datetime | None = None


def parse_wish(restore_set: str, restore_time: str, now: datetime) -> Wish | None:
    """Return what was asked for, None for nothing.

    Raises:
        UsageError: it cannot be understood; the text says how to ask.
    """
    if restore_set and restore_time:
        raise UsageError("Give either restore_set or restore_time, not both.")
    if restore_time:
        moment = parse_time(restore_time)
        if moment > now:
            raise UsageError(
                f"restore_time {restore_time!r} is in the future; this host's clock says {now:%F %T}+00:00."
            )
        return Wish("time", time=moment)
    if not restore_set:
        return None
    if restore_set == "latest":
        return Wish("latest")
    if LABEL.fullmatch(restore_set):
        return Wish("backup", id=restore_set)
    if parse_id(restore_set):
        return Wish("set", id=restore_set)
    raise UsageError(
        f"restore_set {restore_set!r} is neither `latest`, nor a backup such as 20261122-020000F, nor a set such as"
        " 20261122T020000Z-db1; run the playbook without restore_set to see what there is."
    )


def known_migrations(names: Iterable[str]) -> set[int]:
    """Return the numbers of the migrations a release of n8n brings, from the names of its files."""
    return {int(match[1]) for name in names if (match := re.match(r"(\d{13})-.*\.js$", name))}

# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a restore: where the data comes from, what would be lost, and every reason not to begin."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from n8n_platform.backup import manifest
from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import BackupError, UnusableError
from n8n_platform.backup.report import human_size
from n8n_platform.restore.host import Host
from n8n_platform.restore.points import (
    Backup,
    Lineage,
    Wish,
    choose_backup,
    lineage,
    missing_wal,
    parse_wish,
    read_archive,
    segment,
)
from n8n_platform.restore.stock import LOGICAL, PHYSICAL, RESERVE_BYTES, Stock, last_drill

MOST_COPIES = 2
# What a restored cluster needs beside the data: WAL of the recovery and room to go on.
PHYSICAL_FACTOR = 1.1
# A database is bigger than its tables while indexes are built.
LOGICAL_FACTOR = 1.3
KEY_NAME = "n8n_encryption_key"


@dataclass
class Plan:
    """What a restore would do. Nothing is begun while ``refused`` has an entry."""

    wish: str = ""
    kind: str = ""
    source: str = ""
    backup: str = ""
    repo: int = 0
    set: str = ""
    places: tuple[str, ...] = ()
    target: str = ""
    timeline: int = 0
    data_as_of: str = ""
    live: bool = False
    losses: dict[str, int] = field(default_factory=dict)
    needed_bytes: int = 0
    free_bytes: int = 0
    key: str = ""
    migration: str = ""
    expected_seconds: float | None = None
    expected_from: str = ""
    safety: str = ""
    notes: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the plan for programs."""
        return asdict(self)


class Planner:
    """Makes the plan for a wish."""

    def __init__(self, config: Config, host: Host, stock: Stock, now: datetime) -> None:
        self.config = config
        self.host = host
        self.stock = stock
        self.now = now
        self.plan = Plan()

    def make(self, restore_set: str, restore_time: str, timeline: int = 0) -> Plan:
        """Return the plan; reasons not to begin are in ``refused``."""
        plan = self.plan
        try:
            wish = parse_wish(restore_set, restore_time, self.now)
        except BackupError as error:
            plan.refused.append(str(error))
            return plan
        if wish is None:
            plan.refused.append("Nothing was asked for: give restore_set or restore_time.")
            return plan
        plan.wish = restore_set or (manifest_time(wish.time) if wish.time else "")
        plan.live = self.host.server.answers()
        nothing = not self.stock.repositories.backups
        if wish.kind == "latest" and nothing and self.stock.unread:
            # Going on with yesterday's set in silence would lose a day that may be in a repository.
            plan.refused.append(
                f"No repository of pgBackRest can be read ({'; '.join(self.stock.unread)}):"
                " find out why, or name a set."
            )
        elif wish.kind == "set" or (wish.kind == "latest" and nothing):
            self._logical(wish)
        else:
            self._physical(wish, timeline)
        if plan.kind:
            self._key_and_schema()
            self._losses()
        self._safety()
        self._duration()
        return plan

    # --- sources -------------------------------------------------------------------------------------------------

    def live_timeline(self) -> int:
        """Return the timeline of the database as it is; that of the newest backup when there is no database."""
        control = self.host.control().get("Latest checkpoint's TimeLineID", "")
        if control.isdigit():
            return int(control)
        backups = self.stock.repositories.backups
        return backups[-1].timeline if backups else 1

    def _physical(self, wish: Wish, timeline: int) -> None:
        plan, backups = self.plan, self.stock.repositories.backups
        if not backups:
            reasons = "; ".join(self.stock.problems)
            plan.refused.append(f"There is no backup of pgBackRest{f' ({reasons})' if reasons else ''}.")
            return
        line = lineage(timeline or self.live_timeline(), "")
        line = lineage(line.timeline, self.host.history(line.timeline))
        if wish.kind == "backup":
            copies = [backup for backup in backups if backup.label == wish.id]
            chosen = min(copies, key=lambda backup: backup.repo, default=None)
            if chosen is None:
                plan.refused.append(f"There is no backup {wish.id}; run the playbook without restore_set for the list.")
                return
            if chosen.broken:
                plan.refused.append(f"Backup {wish.id} holds damaged pages; choose another one.")
            line = lineage(chosen.timeline)
        else:
            chosen = choose_backup(backups, line, wish.time)
            if chosen is None:
                first = min(backup.stopped for backup in backups)
                plan.refused.append(
                    f"No backup is older than {plan.wish} (timeline {line.timeline}): the earliest moment is"
                    f" {manifest_time(first)}."
                )
                return
        plan.kind, plan.backup, plan.repo, plan.timeline = PHYSICAL, chosen.label, chosen.repo, line.timeline
        plan.target = manifest_time(wish.time) if wish.time else "end of backup" if wish.kind == "backup" else "newest"
        where = "local" if chosen.repo == 1 else "object store"
        plan.source = f"pgBackRest backup {chosen.label} ({where}), then archived WAL"
        plan.data_as_of = (
            manifest_time(wish.time or chosen.stopped) if wish.kind != "latest" else "the newest archived WAL"
        )
        plan.needed_bytes = int(chosen.size * PHYSICAL_FACTOR) + RESERVE_BYTES
        if chosen.version and chosen.version != self.host.postgres.major:
            plan.refused.append(
                f"The backup is of PostgreSQL {chosen.version}, this host runs {self.host.postgres.major}: install that"
                " version, or restore a set."
            )
        self._wal(chosen, line, wish)

    def _wal(self, chosen: Backup, line: Lineage, wish: Wish) -> None:
        listings = []
        for archive in self.stock.repositories.archive_ids:
            for repo in self.config.physical.repos if self.config.physical else ():
                try:
                    listings.append(self.host.archive_listing(archive, repo))
                except BackupError as error:
                    self.plan.notes.append(f"repository {repo}: {error}")
        archive_now = read_archive(listings, line)
        if wish.kind == "backup":
            last = segment(chosen.last_wal)[1]
            archive_now = {number: entry for number, entry in archive_now.items() if number <= last}
        missing = missing_wal(archive_now, chosen, wish.time)
        if missing:
            before = [entry.at for number, entry in archive_now.items() if number < segment(missing)[1]]
            until = f"; the newest moment before it is about {manifest_time(max(before))}" if before else ""
            self.plan.refused.append(
                f"Segment {missing} of the write-ahead log is in no repository, so {self.plan.target} cannot be reached"
                f" from backup {chosen.label}{until}."
            )

    def _logical(self, wish: Wish) -> None:
        plan = self.plan
        if wish.kind == "latest":
            good = [
                place for place in self.stock.sets if not place.found.problem and place.found.document.get("database")
            ]
            place = good[-1] if good else None
        else:
            place = next((place for place in self.stock.sets if place.found.id == wish.id), None)
        if place is None:
            reasons = "; ".join(self.stock.problems)
            plan.refused.append(
                f"There is no set {wish.id or 'of this database'}{f' ({reasons})' if reasons else ''};"
                " run the playbook without restore_set for the list."
            )
            return
        item = place.found
        if item.problem:
            plan.refused.append(item.problem)
            return
        database = dict(item.document.get("database") or {})
        if not database:
            plan.refused.append(f"Set {item.id} holds no database; choose a set of the host with the database.")
            return
        plan.kind, plan.set, plan.places = LOGICAL, item.id, place.places
        plan.source = f"logical set {item.id} ({' and '.join(place.places)})"
        plan.target = plan.data_as_of = str(item.document.get("started_at", manifest_time(item.at)))
        fetched = 0 if "local" in place.places else item.size
        plan.needed_bytes = int(int(database.get("size_bytes") or 0) * LOGICAL_FACTOR) + fetched + RESERVE_BYTES
        version = str(item.document.get("versions", {}).get("postgresql", "")).split(".")[0].split(" ")[0]
        if version.isdigit() and int(version) > int(self.host.postgres.major):
            plan.refused.append(
                f"The set was made by PostgreSQL {version}, this host runs the older {self.host.postgres.major}."
            )
        if item.verified.result == "failed":
            plan.refused.append(f"Set {item.id} failed its check on {item.verified.at}: {item.verified.detail}.")

    # --- checks --------------------------------------------------------------------------------------------------

    def related_manifest(self) -> Mapping[str, Any]:
        """Return the manifest that speaks for the source: the set's, or that of the set nearest before its moment."""
        plan = self.plan
        good = [
            place.found for place in self.stock.sets if not place.found.problem and place.found.document.get("database")
        ]
        if plan.kind == LOGICAL:
            return next((item.document for item in good if item.id == plan.set), {})
        try:
            moment = datetime.fromisoformat(plan.data_as_of)
        except ValueError:
            moment = self.now
        before = [item for item in good if item.at <= moment]
        return before[-1].document if before else {}

    def _key_and_schema(self) -> None:
        plan, document = self.plan, self.related_manifest()
        expected = str(document.get("encryption_key_fingerprint") or "")
        try:
            mine = manifest.fingerprint(self.config.secret(KEY_NAME))
        except UnusableError:
            mine = ""
        if not expected:
            plan.key = "no set says which key it needs; every credential is decrypted before n8n starts"
        elif not mine:
            plan.key = "the key is not on this host; every credential is decrypted on n8n's host before n8n starts"
        elif mine == expected:
            plan.key = "this host's encryption key is the one the data needs"
        else:
            plan.key = "wrong"
            plan.refused.append(
                "The encryption key of this host is not the one the data was encrypted with (fingerprints"
                f" {mine[:8]}… and {expected[:8]}…): put the right key to {self.config.secrets_dir}/{KEY_NAME} first"
                " (docs/runbooks/disaster-recovery.md)."
            )
        last = dict((document.get("database") or {}).get("last_migration") or {})
        plan.migration = str(last.get("name", ""))
        known = self.host.migrations()
        if known and last.get("timestamp") and int(last["timestamp"]) not in known:
            plan.refused.append(
                f"The data was last migrated by a newer n8n ({plan.migration}) than the one installed: install at least"
                " n8n"
                f" {document.get('versions', {}).get('n8n', 'that version')} (n8n_version), then restore."
            )

    def _losses(self) -> None:
        plan = self.plan
        if not plan.live:
            plan.notes.append("PostgreSQL does not run, so what would be lost cannot be counted.")
            return
        try:
            moment = datetime.fromisoformat(plan.data_as_of)
        except ValueError:
            plan.notes.append("Everything that was archived is replayed; at most the last minute is lost.")
            return
        at = manifest_time(moment)
        try:
            found = self.host.server.json(
                f"""SELECT (SELECT count(*) FROM execution_entity WHERE "createdAt" > '{at}') AS executions,
                           (SELECT count(*) FROM workflow_entity WHERE "updatedAt" > '{at}') AS workflows,
                           (SELECT count(*) FROM credentials_entity WHERE "updatedAt" > '{at}') AS credentials""",  # noqa: S608
                self.host.postgres.database,
            )
            plan.losses = {name: int(count) for name, count in dict(found).items()}
        except BackupError:
            plan.notes.append("n8n's tables cannot be read, so what would be lost cannot be counted.")

    def _safety(self) -> None:
        plan, postgres = self.plan, self.host.postgres
        copies = self.host.safety_copies()
        if len(copies) >= MOST_COPIES:
            plan.refused.append(
                f"{len(copies)} safety copies of earlier restores are still here ({', '.join(copies)}): remove what is"
                " no longer needed first (playbooks/restore_undo.yml -e restore_purge=<name>)."
            )
        directory = postgres.data_dir if postgres.data_dir.exists() else postgres.data_dir.parent
        if plan.kind == PHYSICAL and postgres.data_dir.is_mount():
            plan.refused.append(
                f"{postgres.data_dir} is a mount point and cannot be renamed: keep the cluster in a directory below it."
            )
        plan.safety = f"{postgres.database}{'_before_restore_…' if plan.kind == LOGICAL else ''}"
        if plan.kind == PHYSICAL:
            plan.safety = f"{postgres.data_dir}.before-restore-…"
        try:
            plan.free_bytes = shutil.disk_usage(directory).free
        except OSError as error:
            plan.refused.append(f"Cannot ask for the room in {directory}: {error.strerror}.")
            return
        if plan.needed_bytes > plan.free_bytes:
            plan.refused.append(
                f"Too little space in {directory}: the restore needs {human_size(plan.needed_bytes)} beside what"
                f" is there, {human_size(plan.free_bytes)} are free."
            )

    def _duration(self) -> None:
        drill = last_drill(self.config, self.plan.kind)
        if drill.get("rto_seconds") is not None:
            self.plan.expected_seconds = float(drill["rto_seconds"])
            self.plan.expected_from = str(drill.get("at", ""))


def manifest_time(moment: datetime) -> str:
    """Return a moment with microseconds only when it has some, in UTC, as PostgreSQL and people read it."""
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="microseconds" if moment.microsecond else "seconds")


def sentences(plan: Plan, name: str) -> str:
    """Return the plan for people."""
    lost = ", ".join(f"{count} {what}" for what, count in plan.losses.items())
    count_minutes = max(1, round((plan.expected_seconds or 0) / 60 + 0.4))
    minutes = f"about {count_minutes} min, going by the drill of {plan.expected_from}"
    rows: Sequence[tuple[str, str]] = (
        ("source", plan.source),
        ("up to", f"{plan.target}{f' on timeline {plan.timeline}' if plan.timeline else ''}"),
        ("would be lost", f"{lost} created or changed after that" if lost else ""),
        ("kept aside", f"{plan.safety} (until you purge it)" if plan.kind else ""),
        ("space", f"{human_size(plan.needed_bytes)} needed, {human_size(plan.free_bytes)} free" if plan.kind else ""),
        ("newest schema", plan.migration),
        ("key", plan.key),
        ("takes", minutes if plan.expected_seconds is not None else "unknown, there was no drill yet (make drill)"),
    )
    lines = [f"Restore of {name} to {plan.wish or 'nothing'}"]
    lines += [f"  {title:14} {text}" for title, text in rows if text]
    lines += [f"  note           {note}" for note in plan.notes]
    lines += [f"  REFUSED        {reason}" for reason in plan.refused]
    return "\n".join(lines)

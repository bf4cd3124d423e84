# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is to restore: backups of pgBackRest and sets, at every place, and what is known of each."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from n8n_platform import files
from n8n_platform.backup import sets
from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import BackupError
from n8n_platform.backup.report import human_age, human_size
from n8n_platform.restore.host import Host
from n8n_platform.restore.points import Backup, Repositories, read_info

PHYSICAL, LOGICAL = "physical", "logical"
RESTORES = "restores"
DRILLS = "drills"
# Bytes that must stay free besides.
RESERVE_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class Place:
    """A set and where it is."""

    found: sets.Found
    places: tuple[str, ...]


@dataclass(frozen=True)
class Stock:
    """Everything that can be restored."""

    repositories: Repositories
    sets: tuple[Place, ...]
    problems: tuple[str, ...] = ()
    # Repositories that did not answer, each with the reason.
    unread: tuple[str, ...] = ()


def read_stock(config: Config, host: Host) -> Stock:
    """Return what there is. A place that does not answer is a problem, not the end: the other one may do."""
    problems: list[str] = []
    unread: list[str] = []
    backups: list[Backup] = []
    archives: list[str] = []
    for repo in config.physical.repos if config.physical and host.layout.postgres else ():
        try:
            found = read_info(host.info(repo), config.physical.stanza if config.physical else "")
        except BackupError as error:
            unread.append(f"repository {repo}: {error}")
            continue
        backups += found.backups
        archives += found.archive_ids
        problems += found.problems
    known: dict[str, Place] = {}
    key = sets.signing_key(config)
    try:
        shelves = sets.shelves(config)
    except BackupError as error:
        problems.append(str(error))
        shelves = [sets.LocalShelf(config.sets_dir)]
    for shelf in shelves:
        try:
            for item in sets.everything(shelf, key):
                before = known.get(item.id)
                places = (*(before.places if before else ()), shelf.name)
                known[item.id] = Place(before.found if before and not before.found.problem else item, places)
        except BackupError as error:
            problems.append(str(error))
    backups.sort(key=lambda backup: (backup.stopped, -backup.repo))
    repositories = Repositories(tuple(backups), tuple(dict.fromkeys(archives)))
    everything = tuple(known[name] for name in sorted(known))
    return Stock(repositories, everything, tuple(dict.fromkeys(unread + problems)), tuple(unread))


def history_of(config: Config, folder: str) -> list[dict[str, Any]]:
    """Return the records of earlier restores or drills, oldest first."""
    return [files.read_json(path) for path in sorted((config.state_dir / folder).glob("*.json"))]


def last_drill(config: Config, kind: str = "") -> dict[str, Any]:
    """Return the newest successful drill (of a kind, when one is given)."""
    good = [entry for entry in history_of(config, DRILLS) if entry.get("result") == "ok"]
    fit = [entry for entry in good if not kind or entry.get("kind") == kind]
    return (fit or [{}])[-1]


def drilled(config: Config, label: str) -> str:
    """Return when a backup was proved by a drill, empty if never."""
    found = [entry for entry in history_of(config, DRILLS) if entry.get("backup") == label]
    return f"{found[-1]['result']} {found[-1]['at'][:16]} drill" if found else ""


def table(stock: Stock, config: Config, now: datetime) -> str:
    """Return what there is, for people, newest first."""
    rows = []
    labels: dict[str, list[Backup]] = {}
    for backup in stock.repositories.backups:
        labels.setdefault(backup.label, []).append(backup)
    for label, copies in labels.items():
        one = copies[0]
        repos = "+".join("local" if copy.repo == 1 else "s3" for copy in sorted(copies, key=lambda copy: copy.repo))
        checked = "page error" if any(copy.broken for copy in copies) else drilled(config, label) or "not yet"
        rows.append((one.stopped, label, f"{one.kind} + WAL", one.size, f"PostgreSQL {one.version}", repos, checked))
    for place in stock.sets:
        item = place.found
        versions = dict(item.document.get("versions", {}))
        checked = f"{item.verified.result} {item.verified.at[:16]} {item.verified.by}".strip() or "not yet"
        rows.append(
            (
                item.at,
                item.id,
                "set",
                item.size,
                f"n8n {versions.get('n8n', '?')}, PostgreSQL {str(versions.get('postgresql', '?')).split()[0]}",
                "+".join(place.places),
                item.problem[:60] or checked,
            )
        )
    if not rows:
        return "There is no backup and no set, neither here nor in the object store."
    rows.sort(key=lambda row: row[0], reverse=True)
    width = max(len(row[1]) for row in rows)
    lines = [f"{'ID':{width}}  {'AGE':>8}  {'KIND':13}  {'SIZE':>9}  {'WHERE':9}  {'VERSIONS':34}  VERIFIED (UTC, BY)"]
    for at, name, kind, size, versions_text, where, checked in rows:
        age = human_age((now - at).total_seconds())
        lines.append(
            f"{name:{width}}  {age:>8}  {kind:13}  {human_size(size):>9}  {where:9}  {versions_text:34}  {checked}"
        )
    return "\n".join([*lines, *(f"problem: {problem}" for problem in stock.problems)])


def room(path: Path) -> int:
    """Return the free bytes where a path will be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free

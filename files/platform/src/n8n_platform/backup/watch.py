# SPDX-License-Identifier: GPL-3.0-or-later
"""The watcher of the archive: every piece of the write-ahead log the server let go of must be in every repository.

pgBackRest drops pieces, and tells the server they were archived, when its queue is full; somebody may switch archiving
off for a while. Either leaves a hole that no restore can cross, and nothing fails. So the watcher asks the repositories
themselves: every complete segment the server no longer marks as waiting must be there. For a repository with a hole it
asks for a new full backup, from which on a restore to any point in time works again.

Runs as the database's user, every minute or so: ``look`` writes the report, the metrics and the wish for a full backup;
``repair`` makes the backups that were wished for.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from n8n_platform import files

DEFAULT_PATH = Path("/etc/n8n-platform/backup/watch.json")
REPORT = "watch.json"
METRICS = "n8n_backup_archive.prom"
WANTED = "full-wanted"
# Segments looked for in one pass; more are left for the next.
BATCH = 4096
# Seconds a program may take to answer, and an object store to let us in.
PATIENCE = 120
CONNECT_SECONDS = 5
# What pgBackRest returns when another one of its processes is at work.
LOCK_HELD = 50
HEX_DIGITS = 24
# Status codes of a repository in pgBackRest's answer: well, or without a backup so far.
READ = (0, 2)

# Two questions, in this order: a segment that is complete at the first one waits at the second, or was let go of.
CURRENT_SQL = """SELECT json_build_object(
 'current', pg_walfile_name(pg_current_wal_lsn()),
 'segment_bytes', pg_size_bytes(current_setting('wal_segment_size')),
 'archive_mode', current_setting('archive_mode'))"""
WAITING_SQL = """SELECT coalesce(json_object_agg(left(name, 24), extract(epoch FROM modification)), '{}')
 FROM pg_ls_archive_statusdir() WHERE name ~ '^[0-9A-F]{24}[.]ready$'"""


class WatchError(Exception):
    """A program did not answer; the text says which and why."""


@dataclass(frozen=True, order=True)
class Segment:
    """A piece of the write-ahead log: its timeline and its number on it."""

    timeline: int
    number: int

    @classmethod
    def parse(cls, name: str, segment_bytes: int) -> Segment:
        """Return the segment of a file name such as ``0000000100000000000000A3``."""
        per_log = 2**32 // segment_bytes
        return cls(int(name[:8], 16), int(name[8:16], 16) * per_log + int(name[16:24], 16))

    def name(self, segment_bytes: int) -> str:
        """Return the file name."""
        log, rest = divmod(self.number, 2**32 // segment_bytes)
        return f"{self.timeline:08X}{log:08X}{rest:08X}"


@dataclass(frozen=True)
class Settings:
    """What the role backup writes; ``host`` is the server's socket directory, ``stores`` where repositories are."""

    stanza: str
    repositories: tuple[int, ...]
    host: str
    port: int
    state_dir: Path
    stores: dict[int, tuple[str, int]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Read the settings file."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            repositories = tuple(int(number) for number in values["repositories"])
            stores = {int(number): (host, int(port)) for number, (host, port) in values.get("stores", {}).items()}
            server = (values["host"], int(values["port"]))
            return cls(values["stanza"], repositories, *server, Path(values["state_dir"]), stores)
        except OSError as error:
            raise WatchError(f"cannot read {path}: {error.strerror}. The role backup writes it.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise WatchError(f"{path} is not usable ({error!r}). Run the role backup again.") from error


def output(*words: str) -> str:
    """Return what a program prints; raise :class:`WatchError` when it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE, cwd="/")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WatchError(f"{words[0]}: {error}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise WatchError(f"{words[0]} failed (exit code {done.returncode}): {said[-1] if said else 'it said nothing'}")
    return done.stdout


@dataclass(frozen=True)
class Server:
    """The server's own view: the segment it writes, and the complete ones that wait, with their time."""

    current: Segment
    segment_bytes: int
    archive_mode: str
    waiting: dict[Segment, float]

    @classmethod
    def ask(cls, settings: Settings) -> Server:
        """Ask the server."""
        connection = ("--host", settings.host, "--port", str(settings.port), "--dbname", "postgres")
        questions = ("--command", CURRENT_SQL, "--command", WAITING_SQL)
        answer = output("psql", "-XAtq", "--set=ON_ERROR_STOP=1", *connection, *questions)
        said, queue = (json.loads(line) for line in answer.splitlines())
        size = int(said["segment_bytes"])
        waiting = {Segment.parse(name, size): float(since) for name, since in queue.items()}
        return cls(Segment.parse(said["current"], size), size, said["archive_mode"], waiting)


@dataclass(frozen=True)
class Backup:
    """The newest backup of a repository; ``at`` is its end, seconds since 1970."""

    label: str
    kind: str
    at: float
    start: Segment


class Repository:
    """One repository of pgBackRest."""

    def __init__(self, stanza: str, number: int, store: tuple[str, int] | None = None) -> None:
        self.stanza = stanza
        self.number = number
        self.store = store
        self.archive = ""

    def knock(self) -> None:
        """Try to reach the store. pgBackRest itself would try again and again, for minutes."""
        if self.store is None:
            return
        try:
            socket.create_connection(self.store, timeout=CONNECT_SECONDS).close()
        except OSError as error:
            raise WatchError(f"{self.store[0]}:{self.store[1]} does not answer: {error.strerror or error}") from error

    def ask(self, command: str, *words: str) -> Any:
        """Return pgBackRest's answer about this repository."""
        options = (f"--repo={self.number}", "--log-level-console=off", "--log-level-file=off", "--io-timeout=15")
        return json.loads(output("pgbackrest", *options, "--output=json", command, *words))

    def newest_backup(self, segment_bytes: int) -> Backup | None:
        """Return the newest backup of the cluster as it is now; remember where its archive lies."""
        (stanza,) = self.ask("info", f"--stanza={self.stanza}")
        status = next((one["status"] for one in stanza.get("repo", []) if one["key"] == self.number), stanza["status"])
        clusters = [one for one in stanza.get("db", []) if one["repo-key"] == self.number]
        if status["code"] not in READ or not clusters:
            raise WatchError(" ".join(str(status["message"]).split()))
        cluster = max(clusters, key=lambda one: int(one["id"]))
        self.archive = f"archive/{self.stanza}/{cluster['version']}-{cluster['id']}"
        backups = [
            Backup(
                one["label"],
                one["type"],
                float(one["timestamp"]["stop"]),
                Segment.parse(one["archive"]["start"], segment_bytes),
            )
            for one in stanza["backup"]
            if one["database"] == {"id": cluster["id"], "repo-key": self.number}
        ]
        return max(backups, key=lambda one: one.at, default=None)

    def segments(self, first: Segment, last: Segment, segment_bytes: int) -> set[Segment]:
        """Return which of the segments from ``first`` to ``last`` (one timeline) are in the archive."""
        per_log = 2**32 // segment_bytes
        found = set()
        for log in range(first.number // per_log, last.number // per_log + 1):
            names = self.ask("repo-ls", f"{self.archive}/{first.timeline:08X}{log:08X}")
            found |= {
                Segment.parse(name[:HEX_DIGITS], segment_bytes)
                for name in names
                if len(name.split("-")[0]) == HEX_DIGITS
            }
        return found


@dataclass
class Look:
    """What is known of one repository; ``checked`` is the last segment that is settled, there or missing."""

    reachable: bool = False
    error: str = ""
    checked: str = ""
    suspects: list[str] = field(default_factory=list)
    missing_first: str = ""
    missing_last: str = ""
    missing_count: int = 0
    gaps: int = 0
    behind_seconds: float = 0
    last_reached: float = 0
    backup_label: str = ""
    backup_type: str = ""
    backup_at: float = 0


def renewed(look: Look, server: Server, backup: Backup | None) -> Segment:
    """Forget what a newer backup makes unimportant; return the first segment that has to be looked for."""
    size = server.segment_bytes
    current = server.current
    known = bool(look.checked) and Segment.parse(look.checked, size).timeline == current.timeline
    start = Segment(current.timeline, Segment.parse(look.checked, size).number + 1) if known else current
    if backup is not None:
        look.backup_label, look.backup_type, look.backup_at = backup.label, backup.kind, backup.at
        if look.missing_last and backup.start > Segment.parse(look.missing_last, size):
            look.missing_first = look.missing_last = ""
            look.missing_count = 0
        if backup.start.timeline == current.timeline and (not known or backup.start > start):
            start = backup.start
    return start


def inspect(look: Look, server: Server, repository: Repository, now: float) -> None:
    """Compare a repository with what the server let go of.

    A segment counts as missing when two looks in a row did not find it.
    """
    size = server.segment_bytes
    repository.knock()
    start = renewed(look, server, repository.newest_backup(size))
    look.reachable, look.error, look.last_reached, look.behind_seconds = True, "", now, 0
    numbers = range(start.number, server.current.number)[:BATCH]
    wanted = [Segment(server.current.timeline, number) for number in numbers]
    there = repository.segments(wanted[0], wanted[-1], size) if wanted else set()
    suspects: list[str] = []
    settled = Segment(server.current.timeline, start.number - 1)
    clean = True
    for segment in wanted:
        name = segment.name(size)
        if segment in there:
            pass
        elif segment in server.waiting:
            look.behind_seconds = max(look.behind_seconds, now - server.waiting[segment])
            clean = False
        elif clean and name in look.suspects:
            look.gaps += look.missing_last != Segment(segment.timeline, segment.number - 1).name(size)
            look.missing_first = look.missing_first or name
            look.missing_last = name
            look.missing_count += 1
        else:
            suspects.append(name)
            clean = False
        if clean:
            settled = segment
    look.suspects = suspects
    look.checked = settled.name(size)


def pass_over(settings: Settings, now: float) -> tuple[dict[str, Any], list[str]]:
    """Look at everything once; return the report and sentences on what changed for the worse or the better."""
    known = files.read_json(settings.state_dir / REPORT)
    server = Server.ask(settings)
    looks: dict[str, Look] = {}
    sentences = []
    for number in settings.repositories:
        before = dict(known.get("repositories", {}).get(str(number), {}))
        try:
            look = Look(**before)
        except TypeError:
            look = Look()
        looks[str(number)] = look
        try:
            inspect(look, server, Repository(settings.stanza, number, settings.stores.get(number)), now)
        except (WatchError, ValueError, KeyError) as error:
            if look.reachable or not before:
                sentences.append(f"<4>repository {number} cannot be read: {error}")
            look.reachable, look.error = False, str(error)
            look.behind_seconds = now - look.last_reached if look.last_reached else 0
        else:
            if before and not before.get("reachable"):
                sentences.append(f"<5>repository {number} can be read again")
        if look.missing_count and look.missing_last != before.get("missing_last", ""):
            hole = f"{look.missing_first} to {look.missing_last}"
            sentences.append(
                f"<3>repository {number} lacks {look.missing_count} segments of the write-ahead log, {hole}: nothing "
                "after them can be restored from it until a new full backup is done"
            )
        if before.get("missing_last") and not look.missing_last:
            sentences.append(f"<5>repository {number} is whole again from backup {look.backup_label} on")
    report = {
        "at": now,
        "archive_mode": server.archive_mode,
        "queue_segments": len(server.waiting),
        "queue_bytes": len(server.waiting) * server.segment_bytes,
        "repositories": {number: vars(look) for number, look in looks.items()},
    }
    return report, sentences


def metrics(report: dict[str, Any]) -> list[files.Metric]:
    """Return a report as metrics."""
    repositories = report["repositories"].items()

    def each(name: str, text: str, value: str, kind: str = "gauge") -> files.Metric:
        """Return a metric with one sample for each repository."""
        flag = name in ("missing", "reachable")
        samples = [
            ({"repo": number}, float(bool(look[value]) if flag else look[value])) for number, look in repositories
        ]
        return files.Metric(f"n8n_backup_archive_{name}", text, samples, kind)

    return [
        each("missing", "1 while the repository lacks log that its newest backup needs.", "missing_count"),
        each("gaps_total", "Holes found in the archive so far.", "gaps", "counter"),
        each("behind_seconds", "Age of the oldest complete segment that is not in the repository.", "behind_seconds"),
        each("reachable", "Whether the repository could be read.", "reachable"),
        each("newest_backup_timestamp_seconds", "End of the newest backup in the repository.", "backup_at"),
        files.Metric("n8n_backup_archive_queue_bytes", "Log that waits to be archived.", [({}, report["queue_bytes"])]),
        files.Metric(
            "n8n_backup_archive_last_look_timestamp_seconds", "When the watcher looked last.", [({}, report["at"])]
        ),
    ]


def wish(settings: Settings, report: dict[str, Any]) -> None:
    """Leave the numbers of the repositories that need a full backup, or nothing."""
    numbers = [number for number, look in report["repositories"].items() if look["missing_count"] and look["reachable"]]
    path = settings.state_dir / WANTED
    if numbers:
        files.replace(path, " ".join(numbers) + "\n")
    else:
        path.unlink(missing_ok=True)


def do_look(settings: Settings) -> int:
    """Do one pass."""
    report, sentences = pass_over(settings, time.time())
    files.write_json(settings.state_dir / REPORT, report)
    files.replace(settings.state_dir / METRICS, files.exposition(metrics(report)))
    wish(settings, report)
    for sentence in sentences:
        print(sentence)
    return 0


def do_repair(settings: Settings) -> int:
    """Make the full backups that were wished for. The next look sees that they are there."""
    try:
        numbers = (settings.state_dir / WANTED).read_text(encoding="ascii").split()
    except OSError:
        return 0
    failed = 0
    for number in numbers:
        print(f"<5>full backup of repository {number}, because its archive has a hole")
        options = (f"--stanza={settings.stanza}", f"--repo={number}", "--type=full", "--log-level-console=warn")
        code = subprocess.run(["pgbackrest", *options, "backup"], check=False, cwd="/").returncode
        if code == LOCK_HELD:
            print("<5>another backup is under way; the next pass tries again")
        else:
            failed |= code
    return 1 if failed else 0


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="backup-watch", description=__doc__)
    parser.add_argument("--settings", type=Path, default=DEFAULT_PATH, help="settings file (%(default)s)")
    parser.add_argument("command", choices=["look", "repair"])
    arguments = parser.parse_args(words)
    try:
        settings = Settings.load(arguments.settings)
        return do_repair(settings) if arguments.command == "repair" else do_look(settings)
    except (WatchError, OSError) as error:
        print(f"<3>{error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

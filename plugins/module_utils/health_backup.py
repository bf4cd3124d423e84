# SPDX-License-Identifier: GPL-3.0-or-later
"""What the doctor knows of backups: what the backup command says of itself, and what the watcher of the archive saw."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ansible_collections.dealscale.n8n_platform.plugins.module_utils.health import Health, read, size

# The watcher looks every minute or so; a look at an object store that does not answer takes longer.
WATCH_SILENT_S = 900
STATUS = "n8n-platform-backup status; docs/runbooks/backup-failed.md"
DRILL = "n8n-platform-backup status; docs/runbooks/backup-drill.md"
ARCHIVE = "journalctl -u n8n-backup-watch -u n8n-backup-repair -n 20; docs/runbooks/backup-archive.md"


def days(seconds: float) -> str:
    """Return a span of time for people."""
    hours = seconds / 3600
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"  # noqa: PLR2004


def check_backup(health: Health, settings: dict[str, Any]) -> None:
    """Look at the sets, the last runs and drills, and at the archive."""
    summary = []
    _, out, err = health.module.run_command([settings["command"], "status", "--json"])
    try:
        said = json.loads(out)
    except ValueError:
        why = (err or out).strip().splitlines()
        health.find(
            "error", "backup", f"The backups cannot be asked: {why[-1] if why else 'no answer'}.", "Run site.yml."
        )
    else:
        summary.append(newest_set(said))
        for problem in said["problems"]:
            # A drill that is late does not make the backups worse; one that failed does.
            drill = "drill" in problem
            late = drill and "failed" not in problem
            text = str(problem) if str(problem).endswith(".") else f"{problem}."
            health.find(
                "warning" if late else "error", "backup", text[:1].upper() + text[1:], DRILL if drill else STATUS
            )
    if settings["watch"]:
        summary += check_archive(health, Path(settings["watch"]), int(settings["max_behind_seconds"]))
    health.summary["backup"] = ", ".join(summary) or "unknown"


def newest_set(said: dict[str, Any]) -> str:
    """Return a few words on the newest set."""
    newest = said.get("newest")
    if said.get("under_way"):
        return "a run is under way"
    if not newest:
        return "no set"
    place = "here and in the object store" if newest["in_s3"] else "here"
    return f"set {days(newest['age_seconds'])} old {place}"


def check_archive(health: Health, report: Path, max_behind_seconds: int) -> list[str]:
    """Look at what the watcher of the archive saw; return a few words on each repository."""
    try:
        said = json.loads(read(report))
    except ValueError:
        health.find("error", "backup", "The watcher of the archive has not looked yet.", ARCHIVE)
        return []
    age = int(time.time() - said["at"])
    if age > WATCH_SILENT_S:
        health.find("error", "backup", f"The watcher of the archive has not looked for {age} s.", ARCHIVE)
    words = []
    for number, look in said["repositories"].items():
        behind, missing = int(look["behind_seconds"]), int(look["missing_count"])
        backup = f"backup {days(time.time() - look['backup_at'])} old" if look["backup_at"] else "no backup"
        words.append(f"repository {number}: {backup}")
        if missing:
            text = (
                f"Repository {number} lacks {missing} segments of the write-ahead log ({look['missing_first']} to "
                f"{look['missing_last']}); a new full backup mends it and begins by itself."
            )
            health.find("error", "backup", text, ARCHIVE)
        if not look["backup_at"] and look["reachable"]:
            text = f"Repository {number} has no backup of PostgreSQL."
            health.find("error", "backup", text, "systemctl start n8n-backup.service")
        if not look["reachable"]:
            text = f"Repository {number} cannot be read ({look['error']})"
            since = f", for {days(behind)}" if behind else ""
            health.find("error", "backup", f"{text}{since}.", ARCHIVE)
        elif behind > max_behind_seconds:
            text = f"Repository {number} is {behind} s behind; {size(said['queue_bytes'] // 2**20)} of log wait."
            health.find("error", "backup", text, ARCHIVE)
    return words

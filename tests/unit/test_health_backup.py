# SPDX-License-Identifier: GPL-3.0-or-later
"""What the doctor finds in the answers of the backup command and the watcher of the archive."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.dealscale.n8n_platform.plugins.module_utils import health_backup
from ansible_collections.dealscale.n8n_platform.plugins.module_utils.health import Health

WELL = {"problems": [], "under_way": False, "newest": {"age_seconds": 7200, "in_s3": True}}


class Module:
    """The part of an Ansible module that runs programs."""

    def __init__(self, out: str, err: str = "") -> None:
        self.answer = (0, out, err)

    def run_command(self, command: list[str]) -> tuple[int, str, str]:
        assert command == ["/sbin/backup", "status", "--json"]
        return self.answer


def repository(**changes: Any) -> dict[str, Any]:
    """Return what the watcher says of a repository that is well."""
    well = {
        "reachable": True,
        "error": "",
        "missing_count": 0,
        "missing_first": "",
        "missing_last": "",
        "behind_seconds": 2.5,
        "backup_at": time.time() - 100_000,
    }
    return {**well, **changes}


def look(tmp_path: Path, said: Any, watch: Any = None) -> tuple[list[str], str]:
    """Return the findings, each on a line, and the summary."""
    report = tmp_path / "watch.json"
    if watch is not None:
        report.write_text(json.dumps(watch))
    health = Health(Module(said if isinstance(said, str) else json.dumps(said)))
    settings = {"command": "/sbin/backup", "watch": str(report) if watch is not None else "", "max_behind_seconds": 60}
    health_backup.check_backup(health, settings)
    return [f"{one['severity']} {one['problem']} -> {one['advice']}" for one in health.findings], health.summary[
        "backup"
    ]


def test_backups_that_are_well(tmp_path: Path) -> None:
    watch = {"at": time.time(), "queue_bytes": 0, "repositories": {"1": repository()}}
    assert look(tmp_path, WELL, watch) == (
        [],
        "set 2 h old here and in the object store, repository 1: backup 28 h old",
    )
    assert look(tmp_path, {**WELL, "newest": {"age_seconds": 260_000, "in_s3": False}}) == ([], "set 3 days old here")
    assert look(tmp_path, {**WELL, "under_way": True})[1] == "a run is under way"


def test_what_the_command_says(tmp_path: Path) -> None:
    problems = [
        "no backup was restored in a drill for 8 days. Do it: n8n-platform-backup drill",
        "the last drill failed: x.",
    ]
    findings, summary = look(tmp_path, {**WELL, "newest": None, "problems": problems})
    assert findings[0].startswith(
        "warning No backup was restored in a drill for 8 days. Do it: n8n-platform-backup drill."
    )
    assert findings[1].startswith("error The last drill failed: x. -> n8n-platform-backup status")
    assert summary == "no set"


def test_a_command_that_does_not_answer(tmp_path: Path) -> None:
    findings, summary = look(tmp_path, "")
    assert (findings, summary) == (["error The backups cannot be asked: no answer. -> Run site.yml."], "unknown")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"missing_count": 3, "missing_first": "A", "missing_last": "C"}, "error Repository 2 lacks 3 segments"),
        ({"backup_at": 0}, "error Repository 2 has no backup of PostgreSQL."),
        ({"reachable": False, "error": "no route"}, "error Repository 2 cannot be read (no route), for 0 h."),
        ({"behind_seconds": 300}, "error Repository 2 is 300 s behind; 32 MiB of log wait."),
    ],
)
def test_an_archive_that_is_ill(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    repositories = {"1": repository(), "2": repository(**changes)}
    findings, _ = look(tmp_path, WELL, {"at": time.time(), "queue_bytes": 2**25, "repositories": repositories})
    assert len(findings) == 1
    assert findings[0].startswith(said)


def test_a_watcher_that_is_silent(tmp_path: Path) -> None:
    findings, _ = look(tmp_path, WELL, {"at": time.time() - 4000, "queue_bytes": 0, "repositories": {}})
    assert "has not looked for 4000 s" in findings[0]
    (tmp_path / "watch.json").unlink()
    health = Health(Module(json.dumps(WELL)))
    settings = {"command": "/sbin/backup", "watch": str(tmp_path / "watch.json"), "max_behind_seconds": 60}
    health_backup.check_backup(health, settings)
    assert health.findings[0]["problem"] == "The watcher of the archive has not looked yet."

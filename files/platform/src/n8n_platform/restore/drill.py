# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `n8n-platform-backup drill`: run a restore drill, say what it proved, remember it."""

from __future__ import annotations

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

from n8n_platform import files
from n8n_platform.backup import lock, sets, state, verification
from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import FAILED, OK
from n8n_platform.backup.report import Report, human_size
from n8n_platform.restore import commands as restore
from n8n_platform.restore.drill_steps import Drill, Outcome
from n8n_platform.restore.host import STAMP
from n8n_platform.restore.stock import DRILLS

LOCK = Path("/run/lock/n8n-platform-drill.lock")
KEPT_RECORDS = 100


def remember(config: Config, outcome: Outcome, report: Report) -> None:
    """Write the record, the metrics, and the set's verification."""
    folder = config.state_dir / DRILLS
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    record = outcome.as_json()
    files.write_json(folder / f"{outcome.began.strftime(STAMP)}.json", record)
    for old in sorted(folder.glob("*.json"))[:-KEPT_RECORDS]:
        old.unlink()
    detail = "; ".join(outcome.problems) or f"restored {outcome.backup or outcome.set}, canary workflow ran"
    state.drilled(config, not outcome.problems, outcome.rto_seconds or 0.0, outcome.rpo_seconds or 0.0, detail)
    if outcome.set:
        where = sets.shelves(config)
        entry = verification.entry(
            verification.DRILL, outcome.problems, outcome.rto_seconds, outcome.rpo_seconds, detail
        )
        held = [shelf for shelf in where if outcome.set in shelf.ids()]
        for problem in sets.record(config, outcome.set, entry, held):
            report.warn(problem)


def do_drill(config: Config, arguments: argparse.Namespace) -> int:
    """Run a drill and say what it proved."""
    report = Report(quiet=arguments.json)
    host = restore.host_of(config)
    drill = Drill(config, host, report)
    if arguments.clean:
        drill.scratch.clean()
        return OK
    # A unit that systemd stops gets the time to clean up; so does a terminal that is closed.
    signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    with lock.held(LOCK, "n8n-platform-backup drill"):
        os.umask(0o022)
        outcome = drill.run(arguments.set)
        remember(config, outcome, report)
    record = outcome.as_json()
    if arguments.json:
        print(json.dumps(record, sort_keys=True))
    elif outcome.problems:
        report.problem(outcome.problems[0])
    else:
        report.say(summary(outcome))
    return FAILED if outcome.problems else OK


def summary(outcome: Outcome) -> str:
    """Return the result in words."""
    evidence = outcome.evidence
    rpo = "unknown" if outcome.rpo_seconds is None else f"{outcome.rpo_seconds:.0f} s"
    lines = [
        f"Restored {outcome.backup or outcome.set} ({human_size(evidence['bytes'])}) and ran a workflow on it.",
        f"RTO {outcome.rto_seconds:.0f} s, RPO {rpo} (data as of {outcome.data_as_of or 'the backup'}).",
        f"{evidence.get('rows', 0)} rows in {evidence.get('tables', 0)} tables, structure checked;"
        f" {evidence.get('credentials_decrypted', 0)} credentials decrypted; canary execution"
        f" {evidence.get('canary_execution', '-')}.",
    ]
    return "\n".join(lines)


def register(subparsers: Any) -> None:
    """Add the command."""
    text = "Restore the newest backup beside the running platform, check it, and run a workflow on it."
    parser = subparsers.add_parser("drill", help=text, description=text)
    parser.add_argument("--set", default="", help="a set's id, or latest: restore that instead of pgBackRest's backup")
    parser.add_argument("--json", action="store_true", help="print the record as JSON")
    parser.add_argument("--clean", action="store_true", help="only remove what a killed drill left")
    parser.set_defaults(action=do_drill)

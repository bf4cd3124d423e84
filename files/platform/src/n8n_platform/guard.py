# SPDX-License-Identifier: GPL-3.0-or-later
"""One pass of the guard: no execution that n8n acknowledged stays stuck, and none is lost in silence.

Three steps, each harmless to repeat: settle executions whose job has vanished, list those that came to no end of their
own, follow up those listed. Numbers go to the metrics and to the state file that the doctor reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from n8n_platform import files
from n8n_platform.queue import Queue, QueueError
from n8n_platform.schema import TRIGGERS
from n8n_platform.settings import Settings
from n8n_platform.store import QUEUED_MODES, UNLISTED_MODES, Store

STATE = "guard/guard.json"
METRICS = "guard/n8n_guard.prom"
# Errors are looked for this far back, seconds: longer than a commit can take, and over a pause of the guard itself.
WINDOW_SECONDS = 900
CLAIM_SECONDS = 300
UNDER_WAY = ("new", "running", "waiting", "unknown")


@dataclass
class Outcome:
    """What a pass found and did. ``problems`` are sentences for people."""

    changed: list[str] = field(default_factory=list)
    crashed: list[int] = field(default_factory=list)
    listed: list[int] = field(default_factory=list)
    followed: Mapping[str, int] = field(default_factory=dict)
    unsettled: int = 0
    suspects: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    queue: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    copy_active: bool = False


def without_job(rows: list[dict[str, Any]], live: set[int]) -> tuple[list[int], list[int]]:
    """Return, of executions under way, those that should have a job and have none, and those that never have one."""
    queued = [row["id"] for row in rows if row["mode"] in QUEUED_MODES and row["id"] not in live]
    inside = [row["id"] for row in rows if row["mode"] not in QUEUED_MODES and row["id"] not in live]
    return queued, inside


def sort_children(parents: Mapping[int, Mapping[str, Any]], orphan_seconds: int) -> tuple[list[int], list[int]]:
    """Return, of sub-workflow executions, those that ended with their parent, and those nothing vouches for any more.

    They live in the process of their parent: while it is under way so are they, and when it crashed they did. One that
    outlives its parent (called without waiting) is given ``orphan_seconds``.
    """
    covered, orphans = [], []
    for child, parent in parents.items():
        if parent["parent_status"] == "crashed" or parent["listed"]:
            covered.append(child)
        elif parent["parent_status"] not in UNDER_WAY and parent["age"] > orphan_seconds:
            orphans.append(child)
    return covered, orphans


class Guard:
    """The guard; ``clock`` gives Unix time in seconds."""

    def __init__(self, settings: Settings, store: Store, queue: Queue, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self.store = store
        self.queue = queue
        self.clock = clock

    def run(self) -> Outcome:
        """Do one pass, write metrics and state. Without PostgreSQL it fails; without Redis it settles nothing."""
        outcome = Outcome()
        options = self.settings.guard
        previous = files.read_json(self.settings.state_dir / STATE)
        if not self.store.n8n_is_there():
            outcome.problems.append("n8n has not created its tables yet; start n8n-main.")
            self.write(outcome)
            return outcome
        outcome.changed = self.store.ensure(options.payload_copy)
        outcome.changed += self.store.partition(options.payload_days, options.archive_days)
        outcome.copy_active = "n8n_platform_keep_payload" in self.store.triggers()
        if options.payload_copy and not outcome.copy_active:
            outcome.problems.append(f"The trigger that keeps payloads is missing ({', '.join(TRIGGERS)}).")
        try:
            self.settle(outcome, previous.get("suspects", {}))
        except QueueError as error:
            # Nothing may be concluded from a queue one cannot see.
            outcome.problems.append(f"{error}; executions without a job are not settled meanwhile.")
        followed = dict(self.store.reconcile(CLAIM_SECONDS))
        self.list_new(outcome, self.clock() - float(previous.get("at", 0)))
        outcome.followed = followed
        self.store.prune(options.payload_days, options.closed_days)
        outcome.numbers = self.store.numbers()
        self.write(outcome)
        return outcome

    def settle(self, outcome: Outcome, known: Mapping[str, float]) -> None:
        """End executions that have no job any more, once that was so for ``confirm_seconds`` and in two passes."""
        options, now = self.settings.guard, self.clock()
        # The database first: what is queued or ends between the two looks is then either not seen or seen alive.
        rows = self.store.unsettled(options.grace_seconds)
        outcome.unsettled = len(rows)
        uptime = self.queue.uptime()
        counts = self.queue.counts()
        outcome.queue = {"waiting": counts.waiting, "active": counts.active, "silent": counts.silent}
        if not rows:
            return
        if not self.queue.has_members():
            raise QueueError("No n8n process reports to this Redis under this prefix")
        queued, inside = without_job(rows, self.queue.live_executions())
        covered, orphans = sort_children(self.store.parents(inside), options.orphan_seconds) if inside else ([], [])
        # Processes that waited for Redis to come back put their jobs in within seconds.
        missing = queued if uptime > options.confirm_seconds else []
        outcome.suspects = {str(item): float(known.get(str(item), now)) for item in missing}
        confirmed = [item for item in missing if now - outcome.suspects[str(item)] >= options.confirm_seconds]
        ended = confirmed + covered + orphans
        outcome.crashed = self.store.mark_crashed(ended) if ended else []
        for item in outcome.crashed:
            outcome.suspects.pop(str(item), None)

    def list_new(self, outcome: Outcome, since: float) -> None:
        """List what crashed or lost its payload since the last pass (``since`` seconds ago)."""
        crashed = self.store.crashed()
        own = [row["id"] for row in crashed if row["mode"] in QUEUED_MODES]
        inside = [row["id"] for row in crashed if row["mode"] not in (*QUEUED_MODES, *UNLISTED_MODES)]
        if own:
            outcome.listed += self.store.add(own, "crashed")
        died = self.store.died(WINDOW_SECONDS + int(min(since, 7 * 86400)))
        for reason in sorted({row["reason"] for row in died}):
            outcome.listed += self.store.add([row["id"] for row in died if row["reason"] == reason], reason)
        if inside:
            covered, orphans = sort_children(self.store.parents(inside), 0)
            if covered:
                self.store.cover(covered)
            if orphans:
                outcome.listed += self.store.add(orphans, "crashed")

    def write(self, outcome: Outcome) -> None:
        """Write metrics and state."""
        numbers, directory = outcome.numbers, self.settings.state_dir
        now = self.clock()
        oldest = numbers.get("oldest")
        gauges = {
            "lost_executions": (
                "Acknowledged executions that did not finish and wait for a person.",
                numbers.get("open", 0),
            ),
            "lost_without_payload": ("Those of them whose payload is gone, too.", numbers.get("without_payload", 0)),
            "lost_rerunning": ("Those of them that are being run again.", numbers.get("rerunning", 0)),
            "lost_oldest_age_seconds": ("Age of the oldest of them.", max(now - oldest, 0) if oldest else 0),
            "stuck_executions": ("Executions under way without a job; they are settled soon.", len(outcome.suspects)),
            "overdue_waits": ("Waiting executions overdue by 5 minutes.", numbers.get("overdue_waits", 0)),
            "payload_copy_active": ("1 when the payload of every new execution is kept.", outcome.copy_active),
            "payload_copy_bytes": ("Disk space of the kept payloads.", numbers.get("payload_bytes", 0)),
            "silent_jobs": ("Jobs whose worker no longer renews its lock.", outcome.queue.get("silent", 0)),
            "problems": ("Problems in the report; see n8n-platform guard status.", len(outcome.problems)),
            "last_pass_timestamp_seconds": ("When the guard last finished a pass.", now),
        }
        metrics = [
            files.Metric(f"n8n_guard_{name}", text, [({}, float(value))]) for name, (text, value) in gauges.items()
        ]
        files.replace(directory / METRICS, files.exposition(metrics))
        files.write_json(
            directory / STATE,
            {
                "at": now,
                "lost": int(numbers.get("open", 0)),
                "lost_without_payload": int(numbers.get("without_payload", 0)),
                "rerunning": int(numbers.get("rerunning", 0)),
                "overdue_waits": int(numbers.get("overdue_waits", 0)),
                "payload_copy_active": outcome.copy_active,
                "payload_bytes": int(numbers.get("payload_bytes", 0)),
                "queue": outcome.queue,
                "unsettled": outcome.unsettled,
                "suspects": outcome.suspects,
                "problems": outcome.problems,
                "commands": {"list": "n8n-platform executions lost", "rerun": "n8n-platform executions rerun --all"},
            },
        )

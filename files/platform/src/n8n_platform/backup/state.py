# SPDX-License-Identifier: GPL-3.0-or-later
"""What the last runs did: a memory for `status` and the metrics, and a watch on the clock."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from n8n_platform import files
from n8n_platform.backup import manifest
from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import PlaceError
from n8n_platform.files import Metric

NAME = "state.json"
SET, PHYSICAL = "set", "physical"
# Seconds the clock may gain on, or lose against, the time since the host was started.
LEAP_SECONDS = 6 * 3600
BACK_SECONDS = 600
# What lies here does not outlive a boot.
VOLATILE = Path("/run")


def read(config: Config) -> dict[str, Any]:
    """Return what is remembered; empty on a new host."""
    return files.read_json(config.state_dir / NAME)


def update(config: Config, changes: Mapping[str, Any]) -> None:
    """Remember values (one level deep: sections are merged) and write the metrics anew."""
    state = read(config)
    for name, value in changes.items():
        state[name] = {**state.get(name, {}), **value} if isinstance(value, Mapping) else value
        if isinstance(value, Mapping) and "last_success" in value:
            state[name].setdefault("first_success", value["last_success"])
    try:
        config.state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        files.write_json(config.state_dir / NAME, state)
        files.replace(config.metrics_file, files.exposition(metrics(state)))
    except OSError as error:
        raise PlaceError(f"cannot write to {config.state_dir}: {error.strerror or error}") from error


def ended(kind: str, started: datetime, failed: bool, succeeded: bool, size: int | None = None) -> dict[str, Any]:
    """Return what to remember of a run. ``succeeded`` may hold beside ``failed``: one of two places has the set."""
    now = datetime.now(UTC)
    section: dict[str, Any] = {
        "last_run": now.timestamp(),
        "failed": failed,
        "duration_seconds": round((now - started).total_seconds(), 1),
    }
    if succeeded:
        section["last_success"] = now.timestamp()
        if size is not None:
            section["size_bytes"] = size
    return {kind: section}


def drilled(config: Config, succeeded: bool, rto_seconds: float, rpo_seconds: float, detail: str = "") -> None:
    """Remember a drill."""
    now = datetime.now(UTC).timestamp()
    section: dict[str, Any] = {"last_run": now, "failed": not succeeded, "detail": detail}
    if succeeded:
        section |= {"last_success": now, "rto_seconds": rto_seconds, "rpo_seconds": rpo_seconds}
    update(config, {"drill": section})


def boot_id(config: Config) -> str:
    """Return what is the same until the next boot, empty when we cannot know. The unit's sandbox hides the kernel's."""
    marker = config.lock_file.with_suffix(".boot")
    if VOLATILE not in marker.parents:
        return ""
    try:
        with contextlib.suppress(FileExistsError), marker.open("x", encoding="ascii") as stream:
            stream.write(secrets.token_hex(8))
        return marker.read_text(encoding="ascii")
    except OSError:
        return ""


def clock_reading(config: Config) -> dict[str, Any]:
    """Return the clock, and what it can be compared with."""
    return {"wall": time.time(), "since_boot": time.clock_gettime(time.CLOCK_BOOTTIME), "boot": boot_id(config)}


def clock_problem(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what is wrong with the clock since the last run, empty when nothing is."""
    if not before:
        return ""
    moved = now["wall"] - before["wall"]
    then = manifest.stamp(datetime.fromtimestamp(before["wall"], UTC))
    if moved < -BACK_SECONDS:
        return f"the clock of this host was at {then} already, it went back by {-moved / 3600:.1f} h"
    passed = now["since_boot"] - before["since_boot"]
    if now["boot"] and now["boot"] == before["boot"] and moved - passed > LEAP_SECONDS:
        return f"the clock of this host leapt ahead by {(moved - passed) / 3600:.1f} h since {then}"
    return ""


def metrics(state: Mapping[str, Any]) -> list[Metric]:
    """Return the metrics; what never happened has none, so that an alert can tell."""

    def by_kind(name: str, text: str, key: str) -> Metric:
        samples = [({"kind": kind}, float(state[kind][key])) for kind in (SET, PHYSICAL) if key in state.get(kind, {})]
        return Metric(f"n8n_backup_{name}", text, samples)

    def single(name: str, text: str, section: str, key: str) -> Metric:
        value = state.get(section, {}).get(key)
        return Metric(f"n8n_backup_{name}", text, [] if value is None else [({}, float(value))])

    found = [
        by_kind(
            "last_success_timestamp_seconds",
            "When a backup was last complete at one place at least.",
            "last_success",
        ),
        by_kind("last_run_timestamp_seconds", "When a backup last ended, well or not.", "last_run"),
        by_kind("last_run_failed", "1 when anything went wrong in the last backup.", "failed"),
        by_kind("duration_seconds", "How long the last backup took.", "duration_seconds"),
        by_kind("size_bytes", "Size of the last complete backup.", "size_bytes"),
        single("last_verified_timestamp_seconds", "When a set last passed a check.", "verified", "at"),
        Metric(
            "n8n_backup_sets",
            "Sets of this host at a place.",
            [({"place": place}, float(count)) for place, count in sorted(state.get("sets", {}).items())],
        ),
        single("drill_success_timestamp_seconds", "When a set was last restored in a drill.", "drill", "last_success"),
        single("drill_rto_seconds", "How long the restore of that drill took.", "drill", "rto_seconds"),
        single("drill_rpo_seconds", "Age of the newest data that the drill got back.", "drill", "rpo_seconds"),
    ]
    return [metric for metric in found if metric.samples]

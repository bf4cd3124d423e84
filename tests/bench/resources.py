# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory of every unit, idle and under load, and how evenly the workers share the work."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from tests.bench import host, sites

GOALS_GIB = {"idle": 2.2, "load": 3.0}
CORE = re.compile(r"^(n8n-(main|webhook|worker|runner)|postgresql@17-main|redis-(queue|cache)|traefik)")
WORKER_LIMIT_MIB = 512
FINISHED = "Worker finished execution"


def core(memory: dict[str, float]) -> dict[str, float]:
    """Return the units of the platform's core."""
    return {unit: round(mib, 1) for unit, mib in sorted(memory.items()) if CORE.match(unit)}


def limits() -> dict[str, float]:
    """Return MemoryMax of each unit of the core, MiB."""
    found: dict[str, float] = {}
    for unit in host.service_units("n8n-*", "postgresql@17-main*", "redis-*", "traefik*"):
        value = host.properties(unit, "MemoryMax")["MemoryMax"]
        if CORE.match(unit) and value.isdigit():
            found[unit.removesuffix(".service")] = round(int(value) / 1024**2)
    return found


def worker_peaks() -> dict[str, float]:
    """Return the most memory, file cache included, the kernel ever charged each worker and its runner with, MiB."""
    peaks = {}
    for unit in host.service_units("n8n-worker@*"):
        index = unit.split("@")[1].split(".")[0]
        group = host.properties(f"n8n-platform-worker-{index}.slice", "ControlGroup")["ControlGroup"]
        printed = host.shell(
            f"cat /sys/fs/cgroup/memory{group}/memory.max_usage_in_bytes /sys/fs/cgroup{group}/memory.peak 2>/dev/null"
            " | head -1; true"
        )
        if printed.strip().isdigit():
            peaks[f"n8n-worker@{index}"] = round(int(printed) / 1024**2, 1)
    return peaks


def gib(memory: dict[str, float]) -> float:
    """Return the sum in GiB."""
    return round(sum(memory.values()) / 1024, 2)


def memory(ours: sites.Site, timing: dict[str, float], say: Callable[[str], None]) -> dict[str, Any]:
    """Measure memory idle, and while every worker runs its ten executions."""
    idle = core(host.memory_mib())
    say(f"  idle {gib(idle)} GiB")
    result: dict[str, Any] = {"idle_mib": idle, "idle_gib": gib(idle), "limits_mib": limits(), "load": {}}
    for kind in ("expression", "code"):
        run = host.drive(ours.job(kind, memory_samples=3, **timing))
        samples = [core(sample) for sample in run.pop("memory_mib")]
        most = {unit: max(sample.get(unit, 0.0) for sample in samples) for unit in samples[0]}
        pairs = {
            unit: round(most[unit] + most.get(unit.replace("worker", "runner"), 0.0), 1)
            for unit in most
            if unit.startswith("n8n-worker@")
        }
        highest = max(gib(sample) for sample in samples)
        result["load"][kind] = {"mib": most, "gib": highest, "worker_and_runner_mib": pairs, "run": run}
        say(
            f"  load ({kind}) {highest} GiB, worker with runner {max(pairs.values())} MiB,"
            f" {run['completions_per_s']} completions/s {run['errors'] or ''}"
        )
    result["worker_slice_peak_mib"] = worker_peaks()
    result["oom_kills"] = host.shell("journalctl -b --no-pager -o cat 2>/dev/null | grep -c 'oom-kill' || true").strip()
    load = max(part["gib"] for part in result["load"].values())
    pair = max(max(part["worker_and_runner_mib"].values()) for part in result["load"].values())
    result["goals"] = [
        {
            "goal": "core idle, GiB",
            "wanted": GOALS_GIB["idle"],
            "reached": result["idle_gib"],
            "met": result["idle_gib"] <= GOALS_GIB["idle"],
        },
        {
            "goal": "core under load, GiB",
            "wanted": GOALS_GIB["load"],
            "reached": load,
            "met": load <= GOALS_GIB["load"],
        },
        {
            "goal": "worker with runner, MiB",
            "wanted": WORKER_LIMIT_MIB,
            "reached": pair,
            "met": pair <= WORKER_LIMIT_MIB,
        },
    ]
    return result


def spread(ours: sites.Site, timing: dict[str, float], say: Callable[[str], None]) -> dict[str, Any]:
    """Count the executions of each worker during a load, from the workers' own journals."""
    began = time.time()
    run = host.drive(ours.job("expression", **timing))
    counted = {}
    for unit in host.service_units("n8n-worker@*"):
        printed = host.shell(
            f"journalctl -u {unit} --since=@{began:.0f} -o cat --no-pager | grep -c '{FINISHED}' || true"
        )
        counted[unit.removesuffix(".service")] = int(printed)
    say(f"  {counted}")
    return {
        "executions": counted,
        "succeeded": run["succeeded"],
        "acknowledged": run["acknowledged"],
        "met": all(counted.values()),
    }

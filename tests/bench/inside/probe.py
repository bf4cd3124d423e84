# SPDX-License-Identifier: GPL-3.0-or-later
"""What the kernel says about the units of this host: CPU seconds and memory.

python3 -m inside.probe     prints the memory of each unit as JSON
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
# Processes outside any service: the driver itself and the psql it asks.
OUTSIDE = "driver"
CGROUP = re.compile(r"^(?:0::|\d+:name=systemd:)(\S*)$", re.MULTILINE)


def units() -> dict[str, list[str]]:
    """Return the process numbers of each service, {unit: [pid]}."""
    found: dict[str, list[str]] = defaultdict(list)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            groups = CGROUP.findall(Path(f"/proc/{pid}/cgroup").read_text(encoding="ascii"))
        except OSError:
            continue
        names = [part for group in groups for part in group.split("/") if part.endswith(".service")]
        found[names[-1].removesuffix(".service") if names else OUTSIDE].append(pid)
    return dict(found)


def cpu_seconds() -> dict[str, float]:
    """Return the CPU seconds, user and system, that the living processes of each service have used."""
    used: dict[str, float] = {}
    for unit, pids in units().items():
        for pid in pids:
            try:
                fields = (
                    Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                )
            except OSError:
                continue
            used[unit] = used.get(unit, 0.0) + (int(fields[11]) + int(fields[12])) / TICKS
    return used


def busy_seconds() -> float:
    """Return the CPU seconds all work of the machine has used, other containers' included."""
    fields = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, _steal = fields
    return (user + nice + system + irq + softirq) / TICKS


def stolen_seconds() -> float:
    """Return the CPU seconds the hypervisor gave to others."""
    return int(Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[8]) / TICKS


def pss_mib() -> dict[str, float]:
    """Return the proportional memory (PSS) of each service, MiB."""
    memory: dict[str, float] = {}
    for unit, pids in units().items():
        for pid in pids:
            try:
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
            except OSError:
                continue
            match = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
            memory[unit] = memory.get(unit, 0.0) + (int(match[1]) / 1024 if match else 0.0)
    return memory


if __name__ == "__main__":
    print(json.dumps(pss_mib()))

# SPDX-License-Identifier: GPL-3.0-or-later
"""The Molecule scenarios: what there is, what each needs, what it leaves behind."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(sys.executable).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "n8n-platform"
TIMES = CACHE / "test-times.json"
NETWORK = "n8n-platform"

# Memory the hosts of a scenario use at their peak, MiB; the others stay below DEFAULT_MEMORY_MB.
DEFAULT_MEMORY_MB = 1500
MEMORY_MB = {
    "n8n": 4000,
    "site": 5000,
    "faults": 6000,
    "multi_host": 9500,
    "restore": 5000,
    "disaster": 4500,
    "observability": 6000,
    "pulsar": 2500,
    "pulsar_cluster": 5000,
    "bridge": 5000,
    "bridge_faults": 6000,
}
# Seconds a scenario is believed to take before the first measurement; only the order depends on it.
GUESSED_SECONDS = {
    "multi_host": 1400.0,
    "backup": 300.0,
    "restore": 900.0,
    "disaster": 900.0,
    "observability": 900.0,
    "prometheus": 240.0,
    "pulsar": 500.0,
    "pulsar_cluster": 800.0,
    "bridge": 420.0,
    "bridge_faults": 900.0,
    "loki": 420.0,
    "otel_collector": 360.0,
    "site": 800.0,
    "n8n": 600.0,
}
DEFAULT_SECONDS = 120.0


def names() -> list[str]:
    """Return the names of all scenarios."""
    return sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))


def environment() -> dict[str, str]:
    """Return the environment for tools of the project: theirs first in PATH, plain and unbuffered output."""
    return {
        **os.environ,
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}",
        "ANSIBLE_FORCE_COLOR": "0",
        "NO_COLOR": "1",
        "PY_COLORS": "0",
        "PYTHONUNBUFFERED": "1",
    }


def containers(scenario: str) -> list[str]:
    """Return the names of the containers a scenario makes."""
    settings: Any = yaml.safe_load((ROOT / "molecule" / scenario / "molecule.yml").read_text(encoding="utf-8")) or {}
    platforms = settings.get("platforms") or [{"name": f"n8n-platform-{scenario}"}]
    return [platform["name"].replace("${MOLECULE_SCENARIO_NAME}", scenario) for platform in platforms]


def remove(scenario: str) -> None:
    """Remove what an interrupted run of a scenario left: its containers and Molecule's memory of them."""
    subprocess.run(["docker", "rm", "--force", "--volumes", *containers(scenario)], capture_output=True, check=False)
    subprocess.run(
        ["molecule", "reset", "--scenario-name", scenario],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        check=False,
    )


def make_network() -> None:
    """Create the network of the test hosts, which two scenarios that start at once would create twice."""
    if subprocess.run(["docker", "network", "inspect", NETWORK], capture_output=True, check=False).returncode:
        subprocess.run(["docker", "network", "create", NETWORK], capture_output=True, check=False)


def lock(scenario: str) -> IO[str] | None:
    """Reserve a scenario, whose containers have fixed names, on this machine; None if another run holds it."""
    directory = CACHE / "locks"
    directory.mkdir(parents=True, exist_ok=True)
    stream = (directory / scenario).open("w", encoding="ascii")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


def read_times() -> dict[str, float]:
    """Return the seconds each job took in the last run on this machine."""
    try:
        return {str(name): float(seconds) for name, seconds in json.loads(TIMES.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def write_times(measured: dict[str, float]) -> None:
    """Remember the seconds jobs took, beside those of jobs that did not run now."""
    TIMES.parent.mkdir(parents=True, exist_ok=True)
    new = TIMES.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps({**read_times(), **measured}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    new.replace(TIMES)


def expected_seconds(scenario: str, times: dict[str, float]) -> float:
    """Return how long a scenario will take, as far as one can tell."""
    return times.get(scenario, GUESSED_SECONDS.get(scenario, DEFAULT_SECONDS))


def available_memory_mb() -> int:
    """Return the memory that programs could get now, MiB."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) // 1024
    return 0

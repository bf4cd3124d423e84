# SPDX-License-Identifier: GPL-3.0-or-later
"""The measured host: commands, units and files in the sandbox's container."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CONTAINER = "n8n-platform-sandbox"
WORK = "/run/n8n-bench"
RELEASE = "/opt/n8n-platform/n8n/current"
NODE = "/opt/n8n-platform/nodejs/current/bin"
CONTRACT = yaml.safe_load((ROOT / "roles/_platform/defaults/main.yml").read_text(encoding="utf-8"))
PORTS: dict[str, int] = CONTRACT["platform_ports"]


class CommandError(RuntimeError):
    """A command on the host failed; the message holds what it printed."""


def is_running() -> bool:
    """Return whether the sandbox's container runs."""
    command = ["docker", "inspect", "--format", "{{.State.Running}}", CONTAINER]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() == "true"


def run(*command: str, text: str = "", timeout: float = 180, check: bool = True) -> str:
    """Run a command in the host with ``text`` as its input and return what it prints."""
    done = subprocess.run(
        ["docker", "exec", "-i", CONTAINER, *command],
        input=text,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and done.returncode:
        raise CommandError(
            f"{' '.join(command[:6])}: exit code {done.returncode}: {(done.stderr or done.stdout).strip()[-800:]}"
        )
    return done.stdout


def shell(script: str, timeout: float = 180) -> str:
    """Run a short shell script in the host."""
    return run("sh", "-euc", script, timeout=timeout)


def write(path: str, text: str, mode: str = "0644", owner: str = "root") -> None:
    """Write a small file in the host."""
    run("sh", "-c", 'install -D -m "$2" -o "$3" /dev/null "$1" && cat > "$1"', "sh", path, mode, owner, text=text)


def install_driver() -> None:
    """Copy the driver into the host, to memory: it leaves nothing behind."""
    for source in sorted((ROOT / "tests/bench/inside").glob("*.py")):
        write(f"{WORK}/inside/{source.name}", source.read_text(encoding="utf-8"))


def drive(job: dict[str, Any]) -> dict[str, Any]:
    """Run the driver in the host and return what it counted."""
    limit = 120 + float(job.get("seconds", 20)) + float(job.get("warm_up", 5))
    printed = run("sh", "-c", f'cd {WORK} && exec python3 -m inside.load "$1"', "sh", json.dumps(job), timeout=limit)
    counted: dict[str, Any] = json.loads(printed)
    return counted


def memory_mib() -> dict[str, float]:
    """Return the proportional memory of each service, MiB."""
    memory: dict[str, float] = json.loads(run("sh", "-c", f"cd {WORK} && exec python3 -m inside.probe"))
    return memory


def service_units(*patterns: str) -> list[str]:
    """Return the running services whose names match shell patterns."""
    listed = run("systemctl", "list-units", "--type=service", "--state=running", "--plain", "--no-legend", *patterns)
    return [line.split()[0] for line in listed.splitlines()]


def properties(unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit."""
    shown = run("systemctl", "show", unit, *(f"--property={name}" for name in names))
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def signal(name: str, units: Iterable[str]) -> None:
    """Send a signal to every process of units, in their order."""
    run("systemctl", "kill", f"--signal={name}", "--kill-whom=all", *units)


def wait_for(addresses: Iterable[str], seconds: float, what: str) -> None:
    """Wait until all addresses answer 200; raise CommandError after so many seconds."""
    waiting = set(addresses)
    end = time.monotonic() + seconds
    while waiting:
        for address in sorted(waiting):
            code = run("curl", "-s", "-o", "/dev/null", "-m", "3", "-w", "%{http_code}", address, check=False)
            if code == "200":
                waiting.discard(address)
        if waiting and time.monotonic() > end:
            raise CommandError(f"{what} did not become ready within {seconds:g} s: {', '.join(sorted(waiting))}")
        if waiting:
            time.sleep(0.5)


def setting(name: str) -> str:
    """Return a variable of the platform's n8n, or an empty string."""
    for line in run("cat", "/etc/n8n-platform/n8n/n8n.env").splitlines():
        if line.startswith(f"{name}="):
            return line.split("=", 1)[1].strip('"')
    return ""


def machine() -> dict[str, Any]:
    """Return what identifies the machine for a reader: cores, memory, kernel, processor."""
    info = run("cat", "/proc/cpuinfo", "/proc/meminfo")
    lines = [line.split(":", 1) for line in info.splitlines() if ":" in line]
    fields = {key.strip(): value.strip() for key, value in lines}
    return {
        "cores": sum(1 for key, _ in lines if key.strip() == "processor"),
        "memory_gib": round(int(fields["MemTotal"].split()[0]) / 1024 / 1024, 1),
        "processor": fields.get("model name", "unknown"),
        "kernel": run("uname", "-r").strip(),
    }

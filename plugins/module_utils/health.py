# SPDX-License-Identifier: GPL-3.0-or-later
"""What the doctor knows of any host: memory, clock, disks, certificates, versions; and how it notes what it finds."""

from __future__ import annotations

import calendar
import contextlib
import json
import os
import re
import shutil
import socket
import ssl
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

PROC = Path("/proc")
REBOOT_REQUIRED = Path("/run/reboot-required")
UNLIMITED = 2**63
# What counts as too much, percent where not said otherwise.
MEMORY_HIGH = 92
DISK_LEVELS = (85, 95)
CERTIFICATE_WARNING_DAYS = 14
CERTIFICATE_ERROR_DAYS = 3
# The guard makes a pass every half minute; one that waits for PostgreSQL may take longer.
GUARD_SILENT_S = 300


class Health:
    """What was found on this host so far."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.findings: list[dict[str, str]] = []
        self.summary: dict[str, str] = {}
        # Numbers of one area that another one needs.
        self.jobs: dict[str, int] | None = None

    def find(self, severity: str, area: str, problem: str, advice: str) -> None:
        """Add a finding."""
        self.findings.append({"severity": severity, "area": area, "problem": problem, "advice": advice})

    def by_level(self, area: str, value: float, levels: tuple[float, float], problem: str, advice: str) -> None:
        """Add a finding if a value has reached the level of a warning or of an error."""
        if value >= levels[0]:
            self.find("error" if value >= levels[1] else "warning", area, problem, advice)

    def run(self, *command: str) -> str:
        """Run a program and return its output, or nothing if it fails."""
        code, out, _ = self.module.run_command(list(command))
        return "" if code else str(out)


def read(path: Path) -> str:
    """Return the text of a small file, or nothing if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def mebibytes(value: Any) -> int:
    """Return bytes, as systemd prints them, in MiB; 0 for unknown or unlimited."""
    number = int(value) if str(value).isdigit() else 0
    return 0 if number >= UNLIMITED else number // 2**20


def size(value_mb: int) -> str:
    """Return MiB for people."""
    return f"{value_mb / 1024:.1f} GiB" if value_mb >= 1024 else f"{value_mb} MiB"  # noqa: PLR2004


def percent(part: float, whole: float) -> float:
    """Return a share in percent; 0 of nothing is 0."""
    return 100 * part / whole if whole else 0.0


def check_host(health: Health, limits: str) -> None:
    """Look at memory, clock, kernel limits and pending reboots."""
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB", read(PROC / "meminfo"), re.MULTILINE))
    total, free = int(memory.get("MemTotal", 0)) // 1024, int(memory.get("MemAvailable", 0)) // 1024
    uptime = int(float(read(PROC / "uptime").split()[0] if read(PROC / "uptime") else 0))
    load = " ".join(read(PROC / "loadavg").split()[:3])
    health.summary["host"] = (
        f"{size(total - free)} of {size(total)} memory used, load {load}, up {uptime // 86400} days"
    )
    if percent(free, total) <= 100 - MEMORY_HIGH:
        advice = "Lower platform_n8n_workers, or add memory; systemd-cgtop -m shows who uses it."
        health.find("warning", "host", f"Only {free} of {total} MiB of memory are available.", advice)
    if health.run("timedatectl", "show", "--property=NTPSynchronized", "--value").strip() == "no":
        advice = "chronyc tracking; systemctl status chrony (a container has the clock of its host)"
        health.find("warning", "host", "The clock is not synchronised.", advice)
    if REBOOT_REQUIRED.exists():
        health.find("warning", "host", "Security updates wait for a reboot.", "Reboot in a quiet moment.")
    with contextlib.suppress(ValueError):
        for one in json.loads(read(Path(limits)) or "{}").get("findings", []):
            health.find("warning", "kernel", one["problem"], one["advice"])


def check_disks(health: Health, paths: list[str]) -> None:
    """Look at the file systems."""
    seen, texts = set(), []
    for path in map(Path, paths):
        while not path.exists():
            path = path.parent  # noqa: PLW2901
        while not path.is_mount():
            path = path.parent  # noqa: PLW2901
        if path in seen:
            continue
        seen.add(path)
        usage, status = shutil.disk_usage(path), os.statvfs(path)
        full = percent(usage.used, usage.used + usage.free)
        texts.append(f"{path} {full:.0f} % ({size(usage.free // 2**20)} free)")
        advice = f"du -xh --max-depth=2 {path} | sort -h | tail; prune executions, remove old releases, add space"
        health.by_level("disk", full, DISK_LEVELS, f"{path} is {full:.0f} % full.", advice)
        inodes = percent(status.f_files - status.f_ffree, status.f_files)
        health.by_level("disk", inodes, DISK_LEVELS, f"{path} has used {inodes:.0f} % of its inodes.", advice)
    health.summary["disk"] = ", ".join(texts)


def expiry(health: Health, source: str) -> float | None:
    """Return when a certificate ends, seconds since 1970, or None if there is no certificate."""
    command = ["openssl", "x509", "-noout", "-enddate"]
    if source.startswith("tls:"):
        host, port, name = source[4:].split(":")
        try:
            with (
                socket.create_connection((host, int(port)), timeout=5) as raw,
                ssl._create_unverified_context().wrap_socket(raw, server_hostname=name) as secure,  # noqa: S323
            ):
                certificate = ssl.DER_cert_to_PEM_cert(secure.getpeercert(binary_form=True) or b"")
        except OSError:
            return None
        _, out, _ = health.module.run_command(command, data=certificate)
    else:
        _, out, _ = health.module.run_command([*command, "-in", source])
    match = re.search(r"notAfter=(.+?) GMT", str(out))
    return calendar.timegm(time.strptime(match.group(1), "%b %d %H:%M:%S %Y")) if match else None


def check_certificates(health: Health, certificates: dict[str, str]) -> None:
    """Look how long the certificates last."""
    days = {}
    for name, source in certificates.items():
        end = expiry(health, source)
        if end is None:
            advice = "Run site.yml; systemctl status n8n-platform-pki.timer traefik"
            health.find("error", "certificates", f"The certificate of {name} cannot be read ({source}).", advice)
            continue
        days[name] = int((end - time.time()) // 86400)
        if days[name] <= CERTIFICATE_WARNING_DAYS:
            severity = "error" if days[name] <= CERTIFICATE_ERROR_DAYS else "warning"
            text = f"ends in {days[name]} days" if days[name] >= 0 else "has ended"
            advice = "It should have been renewed: journalctl -u n8n-platform-pki -u traefik; then run site.yml."
            text = f"The certificate of {name} {text}."
            health.find(severity, "certificates", text, advice)
    if days:
        health.summary["certificates"] = ", ".join(f"{name} {left} days" for name, left in days.items())


def check_versions(health: Health, versions: dict[str, dict[str, str]]) -> None:
    """Compare what is installed with what the inventory asks for."""
    found = {}
    for name, entry in versions.items():
        try:
            found[name] = Path(entry["link"]).readlink().name
        except OSError:
            found[name] = "missing"
        if found[name] != str(entry["wanted"]):
            text = f"{name} is {found[name]}, the inventory asks for {entry['wanted']}."
            health.find("warning", "versions", text, "Run site.yml.")
    if found:
        health.summary["versions"] = ", ".join(f"{name} {version}" for name, version in found.items())


def check_guard(health: Health, report: Path) -> None:
    """Look at what the guard of executions says, and whether it still says anything."""
    look = "systemctl status n8n-guard.timer; journalctl -u n8n-guard -n 20"
    try:
        said = json.loads(read(report))
    except ValueError:
        health.find("error", "guard", "The guard of executions has not run yet.", look)
        return
    age = int(time.time() - said["at"])
    if age > GUARD_SILENT_S:
        health.find("error", "guard", f"The guard of executions has not finished a pass for {age} s.", look)
    lost, gone = said["lost"], said["lost_without_payload"]
    health.summary["guard"] = f"{lost} lost, {said['rerunning']} running again, pass {age} s ago"
    if lost:
        payload = f", {gone} of them without their payload" if gone else ", with their payload"
        advice = "n8n-platform executions lost; then n8n-platform executions rerun --all (or dismiss ID)"
        health.find("error", "guard", f"{lost} accepted executions did not come to an end{payload}.", advice)
    if not said["payload_copy_active"]:
        text = "No copy of payloads is kept: an execution whose worker dies cannot be run again."
        health.find("warning", "guard", text, "Set guard_payload_copy and run site.yml.")
    for one in said["problems"]:
        health.find("warning", "guard", str(one), "n8n-platform guard status")

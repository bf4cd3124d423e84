#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find everything about a host that would stop the platform from being set up on it, before anything is changed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: preflight
short_description: Find everything about a host that would stop the platform
description:
  - Looks at the operating system, memory, disk space, ports, clock and name resolution, and returns all problems at
    once, each with what to do. Reads only; it never fails because of a problem, the caller decides.
options:
  groups:
    description: Inventory groups of the host. Entries of O(disk) and O(ports) count if they share one of these.
    type: list
    elements: str
    required: true
  memory_mb:
    description: Memory the platform was told it may count on, MiB.
    type: int
    required: true
  disk:
    description: What needs space.
    type: list
    elements: dict
    default: []
    suboptions:
      what: {description: Who needs it; stands in the message., type: str, required: true}
      groups: {description: Groups on whose hosts this counts., type: list, elements: str, required: true}
      path: {description: Directory it goes to; it need not exist., type: path, required: true}
      needs_mb: {description: "Free space, MiB.", type: int, required: true}
      needs_files: {description: Free inodes., type: int, default: 0}
      unless: {description: Glob of a path that exists when this has been set up already., type: str}
      data: {description: A database that must not lie on a network or Windows drive., type: bool, default: false}
  mount_points:
    description: Directories that must be file systems of their own.
    type: list
    elements: path
    default: []
  ports:
    description: TCP ports that must be free.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name of the port in the inventory., type: str, required: true}
      groups: {description: Groups on whose hosts this counts., type: list, elements: str, required: true}
      port: {description: The port., type: int, required: true}
      first: {description: Offset of the first instance., type: int, default: 0}
      count: {description: Number of instances; each has a port., type: int, default: 1}
      units: {description: Globs of the units that may hold it already., type: list, elements: str, required: true}
  domain:
    description: Public name that should resolve; empty to leave that out.
    type: str
    default: ''
  time:
    description: The controller's clock, seconds since 1970; 0 to leave the comparison out.
    type: float
    default: 0
  clock_tolerance:
    description: Seconds the host's clock may differ.
    type: int
    default: 30
author:
  - The dealscale.n8n_platform authors (@dealscale)
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Look for problems
  dealscale.n8n_platform.preflight:
    groups: "{{ group_names }}"
    memory_mb: "{{ platform_memory_mb }}"
    ports:
      - {name: postgres, groups: [postgres], port: 5432, units: ["postgresql@*.service"]}
"""

RETURN = r"""
problems:
  description: What was found, each with C(severity) (V(error) or V(warning)), C(problem) and C(advice).
  type: list
  elements: dict
  returned: always
"""

import fnmatch
import glob
import os
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

PROC = Path("/proc")
SYS = Path("/sys")
RUN = Path("/run")
OS_RELEASE = Path("/etc/os-release")

SUPPORTED = {"debian": ("13",), "ubuntu": ("24.04",)}
MACHINES = ("x86_64", "aarch64")
OLDEST_KERNEL = (5, 10)
CLOCK_WARNING = 5
LISTENING = "0A"
# File systems on which a database loses data or locks; 9p and drvfs are Windows drives below WSL2.
UNFIT = {
    "9p",
    "drvfs",
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "fuseblk",
    "vfat",
    "exfat",
    "ntfs",
    "ntfs3",
    "fuse.sshfs",
    "v9fs",
}

Problem = dict[str, str]


def error(problem: str, advice: str) -> Problem:
    """Return a problem that stops the play."""
    return {"severity": "error", "problem": problem, "advice": advice}


def warning(problem: str, advice: str) -> Problem:
    """Return a problem that is only shown."""
    return {**error(problem, advice), "severity": "warning"}


def read(path: Path) -> str:
    """Return the text of a small file, or nothing if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def is_wsl() -> bool:
    """Tell whether this is Windows' Linux."""
    return "microsoft" in read(PROC / "sys/kernel/osrelease").lower()


def system() -> list[Problem]:
    """Check what the host is: distribution, machine, kernel, systemd, memory controller."""
    found = []
    fields = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', read(OS_RELEASE), re.MULTILINE))
    name, version = fields.get("ID", "unknown"), fields.get("VERSION_ID", "")
    if version not in SUPPORTED.get(name, ()):
        known = ", ".join(f"{id_.capitalize()} {' and '.join(versions)}" for id_, versions in SUPPORTED.items())
        found.append(
            error(f"The operating system is {fields.get('PRETTY_NAME', name)}.", f"Use a host with one of {known}.")
        )
    if os.uname().machine not in MACHINES:
        found.append(error(f"The machine is {os.uname().machine}.", f"Use a host with one of {', '.join(MACHINES)}."))
    release = read(PROC / "sys/kernel/osrelease").strip()
    numbers = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    if numbers < OLDEST_KERNEL:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        advice = "Run wsl --update on Windows." if is_wsl() else f"Install a kernel from {oldest} and reboot."
        found.append(error(f"The kernel is {release}, older than {oldest}.", advice))
    if not (RUN / "systemd/system").is_dir() or read(PROC / "1/comm").strip() != "systemd":
        advice = "Boot the host with systemd as process 1."
        if is_wsl():
            advice = "Write [boot] systemd=true to /etc/wsl.conf and run wsl --shutdown on Windows."
        found.append(error("systemd does not run this host.", advice))
    controllers = read(SYS / "fs/cgroup/cgroup.controllers").split()
    if "memory" not in controllers and not (SYS / "fs/cgroup/memory").is_dir():
        found.append(
            error(
                "The kernel has no memory controller, so no service can be limited.",
                "Boot with cgroup_enable=memory, or give the container its cgroup tree.",
            )
        )
    if os.geteuid() != 0:
        found.append(error("The play does not run as root.", "Let ansible_user use sudo, or set ansible_become."))
    return found


def memory(promised_mb: int) -> list[Problem]:
    """Check that the host has the memory everything is sized for."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", read(PROC / "meminfo"), re.MULTILINE)
    real_mb = int(match.group(1)) // 1024 if match else 0
    if real_mb < promised_mb:
        return [
            error(
                f"platform_memory_mb is {promised_mb}, but the host has {real_mb} MiB.",
                "Leave platform_memory_mb unset, or set it to what the platform may use of this host.",
            )
        ]
    return []


def existing(path: Path) -> Path:
    """Return the path itself or the nearest directory above it that exists."""
    while not path.exists():
        path = path.parent
    return path


def mounts() -> dict[Path, str]:
    """Return the type of the file system mounted on each path."""
    found = {}
    for line in read(PROC / "mounts").splitlines():
        words = line.split()
        found[Path(words[1].encode().decode("unicode_escape"))] = words[2]
    return found


def disk(entries: list[dict[str, Any]], groups: set[str]) -> list[Problem]:
    """Check free space and inodes, added up by file system, and the kind of file system under databases."""
    found, by_device = [], {}  # type: ignore[var-annotated]
    types = mounts()
    for entry in entries:
        if not groups.intersection(entry["groups"]):
            continue
        place = existing(Path(entry["path"]))
        mount = next((path for path in (place, *place.parents) if path in types), Path("/"))
        kind = types.get(mount, "")
        if entry["data"] and kind in UNFIT:
            found.append(
                error(
                    f"{entry['path']} ({entry['what']}) would lie on {mount}, a {kind} file system.",
                    "Keep databases on a local Linux file system (ext4, xfs); on WSL2 not below /mnt.",
                )
            )
        if entry["unless"] and glob.glob(entry["unless"]):
            continue
        by_device.setdefault(place.stat().st_dev, []).append((entry, place, mount))
    for members in by_device.values():
        place, mount = members[0][1], members[0][2]
        free_mb = shutil.disk_usage(place).free // 2**20
        needed_mb = sum(entry["needs_mb"] for entry, _, _ in members)
        parts = ", ".join(f"{entry['what']}: {entry['needs_mb']}" for entry, _, _ in members)
        if free_mb < needed_mb:
            found.append(
                error(
                    f"{mount} has {free_mb} MiB free, {needed_mb} are needed ({parts}).",
                    "Free or add space there, or mount a larger volume on the directory.",
                )
            )
        files, status = sum(entry["needs_files"] for entry, _, _ in members), os.statvfs(place)
        if status.f_files and status.f_favail < files:
            found.append(
                error(
                    f"{mount} has {status.f_favail} inodes free, {files} are needed.",
                    "Make the file system with more inodes (mkfs.ext4 -i), or use xfs.",
                )
            )
    return found


def mounted(paths: list[str]) -> list[Problem]:
    """Check that directories the inventory declares as mount points are."""
    return [
        error(
            f"{path} is declared as a mount point (platform_mount_points), but nothing is mounted there.",
            "Mount the volume (and add it to /etc/fstab), or take the path out of platform_mount_points.",
        )
        for path in paths
        if not Path(path).is_mount()
    ]


def listeners() -> dict[int, set[str]]:
    """Return the socket inodes that listen, by TCP port."""
    found: dict[int, set[str]] = {}
    for name in ("tcp", "tcp6"):
        for line in read(PROC / "net" / name).splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING:
                found.setdefault(int(words[1].rsplit(":", 1)[1], 16), set()).add(words[9])
    return found


def owners(inodes: set[str]) -> dict[str, list[int]]:
    """Return the processes that hold each of the sockets."""
    found: dict[str, list[int]] = {}
    for process in PROC.glob("[0-9]*"):
        try:
            for descriptor in (process / "fd").iterdir():
                match = re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink()))
                if match and match.group(1) in inodes:
                    found.setdefault(match.group(1), []).append(int(process.name))
        except OSError:
            continue
    return found


def unit_of(pid: int) -> str:
    """Return the systemd unit a process belongs to, or nothing."""
    found = re.findall(r"([^/\n]+\.(?:service|scope))(?:/|$)", read(PROC / str(pid) / "cgroup"), re.MULTILINE)
    return str(found[-1]) if found else ""


def socket_units(module: AnsibleModule) -> dict[int, str]:
    """Return the socket units through which systemd itself listens, by port."""
    code, out, _ = module.run_command(["systemctl", "list-sockets", "--no-legend", "--plain"])
    found = {}
    for line in [] if code else out.splitlines():
        match = re.match(r"\S+:(\d+)\s+(\S+)", line)
        if match:
            found[int(match.group(1))] = match.group(2)
    return found


def wanted_ports(entries: list[dict[str, Any]], groups: set[str]) -> dict[int, list[dict[str, Any]]]:
    """Return who of the platform wants each port of this host."""
    found: dict[int, list[dict[str, Any]]] = {}
    for entry in entries:
        if groups.intersection(entry["groups"]):
            for offset in range(entry["count"]):
                found.setdefault(entry["port"] + entry["first"] + offset, []).append(entry)
    return found


def ports(module: AnsibleModule, groups: set[str]) -> list[Problem]:
    """Check that no two components want the same port and that no stranger holds one."""
    found = []
    wanted = wanted_ports(module.params["ports"], groups)
    listening = {port: inodes for port, inodes in listeners().items() if port in wanted}
    holders = owners(set().union(*listening.values())) if listening else {}
    by_systemd = socket_units(module) if any(1 in pids for pids in holders.values()) else {}
    for port, entries in sorted(wanted.items()):
        names = [entry["name"] for entry in entries]
        if len(names) > 1:
            found.append(
                error(
                    f"{' and '.join(names)} would both use port {port} on this host.",
                    "Give them different ports in platform_ports; instance i listens on its base + i.",
                )
            )
        allowed = [unit for entry in entries for unit in entry["units"]]
        for pid in sorted({pid for inode in listening.get(port, ()) for pid in holders.get(inode, [0])}):
            unit = by_systemd.get(port, "") if pid == 1 else unit_of(pid)
            if any(fnmatch.fnmatch(unit, pattern) for pattern in allowed):
                continue
            who = f"{read(PROC / str(pid) / 'comm').strip()} (process {pid}{', ' + unit if unit else ''})"
            found.append(
                error(
                    f"Port {port} ({names[0]}) is held by {who if pid else 'a process that cannot be seen from here'}.",
                    f"Stop it{' (systemctl disable --now ' + unit + ')' if unit.endswith('.service') else ''}, "
                    f"or set another {names[0]} in platform_ports.",
                )
            )
    return found


def clock(controller: float, tolerance: int) -> list[Problem]:
    """Compare the host's clock with the controller's."""
    difference = abs(time.time() - controller) if controller else 0.0
    if difference <= CLOCK_WARNING:
        return []
    found = f"The clock differs from the controller's by {difference:.0f} s."
    advice = "Set it (timedatectl set-ntp true; on WSL2 wsl --shutdown) and see which of the two is right."
    return [error(found, advice) if difference > tolerance else warning(found, advice)]


def resolution(domain: str) -> list[Problem]:
    """Check that the public name resolves."""
    if not domain:
        return []
    try:
        socket.getaddrinfo(domain, 443)
    except OSError as failed:
        return [
            warning(
                f"{domain} does not resolve on this host ({failed.strerror or failed}).",
                "Create its DNS record before people or webhooks use it; ACME needs it at once.",
            )
        ]
    return []


def main() -> None:
    """Entry point of the module."""
    names = {"type": "list", "elements": "str", "required": True}
    module = AnsibleModule(
        argument_spec={
            "groups": names,
            "memory_mb": {"type": "int", "required": True},
            "disk": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "what": {"type": "str", "required": True},
                    "groups": names,
                    "path": {"type": "path", "required": True},
                    "needs_mb": {"type": "int", "required": True},
                    "needs_files": {"type": "int", "default": 0},
                    "unless": {"type": "str"},
                    "data": {"type": "bool", "default": False},
                },
            },
            "mount_points": {"type": "list", "elements": "path", "default": []},
            "ports": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "groups": names,
                    "port": {"type": "int", "required": True},
                    "first": {"type": "int", "default": 0},
                    "count": {"type": "int", "default": 1},
                    "units": names,
                },
            },
            "domain": {"type": "str", "default": ""},
            "time": {"type": "float", "default": 0},
            "clock_tolerance": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    given, groups = module.params, set(module.params["groups"])
    problems = [
        *system(),
        *memory(given["memory_mb"]),
        *disk(given["disk"], groups),
        *mounted(given["mount_points"]),
        *ports(module, groups),
        *clock(given["time"], given["clock_tolerance"]),
        *resolution(given["domain"]),
    ]
    module.exit_json(changed=False, problems=problems)


if __name__ == "__main__":
    main()

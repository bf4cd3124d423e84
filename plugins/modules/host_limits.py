#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Apply kernel settings, read each one back, and report what the host does not allow."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_limits
short_description: Apply kernel settings, read each one back, and report what the host does not allow
description:
  - Writes the settings of O(sysctl) that differ to the running kernel and reads every one of them back.
  - On a V(server) a value that the kernel does not take is an error. In a V(container) and on V(wsl2) the kernel
    belongs to somebody else, so it becomes a finding.
  - Looks at transparent huge pages, the limit of open files, the memory controller and swap too.
  - Writes the result to O(report), which the platform's doctor reads.
options:
  kind:
    description: What the host is.
    type: str
    choices: [server, container, wsl2]
    required: true
  sysctl:
    description: Kernel settings by name, such as C(vm.swappiness).
    type: dict
    default: {}
  transparent_hugepages:
    description: Mode that was set by the caller; empty to leave the kernel's.
    type: str
    default: ''
  open_files:
    description: How many files a service must be able to open.
    type: int
    default: 0
  swap_below_mb:
    description: Hosts with less memory than this, in MiB, should have swap.
    type: int
    default: 0
  report:
    description: JSON file that gets the result.
    type: path
    required: true
author:
  - The dealscale.n8n_platform authors (@dealscale)
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Apply the kernel settings
  dealscale.n8n_platform.host_limits:
    kind: server
    sysctl: {vm.overcommit_memory: 1}
    report: /var/lib/n8n-platform/limits.json
"""

RETURN = r"""
applied: {description: Settings that were changed in the running kernel., type: list, elements: str, returned: always}
findings:
  description: What the host does not allow or lacks, each with C(name), C(problem) and C(advice).
  type: list
  elements: dict
  returned: always
"""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

PROC = Path("/proc")
SYS = Path("/sys")
OWNERS = {
    "container": "it belongs to the host of the container: set it there",
    "wsl2": "it belongs to Windows: set it by [wsl2] kernelCommandLine in %UserProfile%\\.wslconfig where possible",
}


def normal(value: object) -> str:
    """Return a kernel value with its white space reduced to single blanks, as text."""
    return " ".join(str(value).split())


def read(path: Path) -> str | None:
    """Return the first line or lines of a small kernel file, or None if there is no such file."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def write(path: Path, value: str) -> str:
    """Write a value to a kernel file; return why that failed, or nothing."""
    try:
        path.write_text(value + "\n", encoding="ascii")
    except OSError as error:
        reasons = {errno.EROFS: "read-only", errno.EACCES: "not permitted", errno.EPERM: "not permitted"}
        return reasons.get(error.errno or 0, str(error.strerror))
    return ""


def apply(wanted: dict[str, Any], check: bool) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Bring the running kernel to ``wanted``; return the names that changed and the state of each."""
    changed, states = [], {}
    for name, value in sorted(wanted.items()):
        path = PROC / "sys" / name.replace(".", "/")
        before, target = read(path), normal(value)
        state = {"wanted": target, "actual": "" if before is None else normal(before), "reason": ""}
        if before is None:
            state["reason"] = "unknown to this kernel"
        elif normal(before) != target and check:
            if os.access(path, os.W_OK):
                changed.append(name)
            else:
                state["reason"] = "read-only"
        elif normal(before) != target:
            failed = write(path, target)
            state["actual"] = normal(read(path))
            if state["actual"] != target:
                state["reason"] = failed or "the kernel kept another value"
            if state["actual"] != normal(before):
                changed.append(name)
        states[name] = state
    return changed, states


def swap_and_memory() -> tuple[int, int]:
    """Return the sizes of memory and swap in MiB."""
    found = dict(re.findall(r"^(MemTotal|SwapTotal):\s+(\d+) kB$", read(PROC / "meminfo") or "", re.MULTILINE))
    return int(found.get("MemTotal", 0)) // 1024, int(found.get("SwapTotal", 0)) // 1024


def open_files_limit() -> int:
    """Return how many files the services of PID 1 may open at most."""
    found = re.search(r"^Max open files\s+\d+\s+(\d+)", read(PROC / "1/limits") or "", re.MULTILINE)
    return int(found.group(1)) if found else 0


def memory_controller() -> bool:
    """Tell whether this kernel can limit the memory of services."""
    unified = read(SYS / "fs/cgroup/cgroup.controllers")
    return "memory" in (unified or "").split() or (SYS / "fs/cgroup/memory").is_dir()


def finding(name: str, problem: str, advice: str) -> dict[str, str]:
    """Return one finding."""
    return {"name": name, "problem": problem, "advice": advice}


def survey(module: AnsibleModule, states: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return the report: the settings, what else was measured, and the findings."""
    kind, wanted = module.params["kind"], module.params
    findings = [
        finding(
            name,
            f"The kernel has {name} = {state['actual'] or 'nothing'} instead of {state['wanted']} ({state['reason']}).",
            OWNERS.get(kind, "look into the kernel's log, or take the setting out of baseline_sysctl") + ".",
        )
        for name, state in states.items()
        if state["reason"]
    ]
    pages = re.search(r"\[(\w+)\]", read(SYS / "kernel/mm/transparent_hugepage/enabled") or "")
    mode = pages.group(1) if pages else "absent"
    if wanted["transparent_hugepages"] and mode not in (wanted["transparent_hugepages"], "absent", "never"):
        advice = OWNERS.get(kind, "see systemctl status n8n-platform-hugepages.service") + "."
        problem = f"Transparent huge pages are '{mode}': Redis answers late and takes more memory after each save."
        findings.append(finding("transparent_hugepages", problem, advice))
    open_files = open_files_limit()
    if open_files < wanted["open_files"]:
        problem = f"A service may open {open_files} files at most, {wanted['open_files']} are wanted."
        findings.append(finding("open_files", problem, "Raise the hard limit of the init process (ulimit -H -n)."))
    if not memory_controller():
        problem = "The kernel has no memory controller: MemoryMax of the services has no effect."
        advice = "Boot with cgroup_enable=memory, or give the container its cgroup tree."
        findings.append(finding("memory_controller", problem, advice))
    memory_mb, swap_mb = swap_and_memory()
    if memory_mb < wanted["swap_below_mb"] and not swap_mb:
        problem = f"{memory_mb} MiB of memory and no swap: one large execution can end other services."
        advice = "Add 2 to 4 GiB of swap (on WSL2: swap=4GB in .wslconfig)."
        findings.append(finding("swap", problem, advice))
    return {
        "kind": kind,
        "kernel": read(PROC / "sys/kernel/osrelease"),
        "sysctl": states,
        "transparent_hugepages": mode,
        "open_files": open_files,
        "memory_controller": memory_controller(),
        "memory_mb": memory_mb,
        "swap_mb": swap_mb,
        "findings": findings,
    }


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "kind": {"type": "str", "choices": ["server", "container", "wsl2"], "required": True},
            "sysctl": {"type": "dict", "default": {}},
            "transparent_hugepages": {"type": "str", "default": ""},
            "open_files": {"type": "int", "default": 0},
            "swap_below_mb": {"type": "int", "default": 0},
            "report": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    path = Path(module.params["report"])
    applied, states = apply(module.params["sysctl"], module.check_mode)
    report = survey(module, states)
    text = json.dumps(report, indent=2, sort_keys=True) + "\n"
    outdated = read(path) != text.strip()
    if outdated and not module.check_mode:
        new = path.with_name(f".{path.name}.new")
        new.write_text(text, encoding="utf-8")
        new.chmod(0o644)
        new.replace(path)
    refused = [name for name, state in states.items() if state["reason"]]
    if refused and module.params["kind"] == "server":
        listed = " ".join(item["problem"] for item in report["findings"] if item["name"] in refused)
        module.fail_json(
            msg=f"{listed} Take them out of baseline_sysctl or, if this is a container whose host owns the kernel, set"
            " baseline_host_kind: container.",
            findings=report["findings"],
        )
    module.exit_json(changed=bool(applied or outdated), applied=applied, findings=report["findings"])


if __name__ == "__main__":
    main()

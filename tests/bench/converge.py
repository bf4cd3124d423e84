# SPDX-License-Identifier: GPL-3.0-or-later
"""What the sandbox cost: the first `make sandbox`, and a second run of site.yml."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

from tests.bench import host

# Ansible does these on the controller; nothing is sent to the host.
LOCAL_ACTIONS = frozenset(
    (
        "add_host",
        "assert",
        "debug",
        "fail",
        "group_by",
        "import_role",
        "include_role",
        "include_tasks",
        "include_vars",
        "meta",
        "set_fact",
        "set_stats",
        "validate_argument_spec",
    )
)
WATCHED = ("n8n-*", "postgresql@*", "redis-*", "traefik*")
GOALS_S = {"total": 720, "converge and verify": 300, "second run": 60}


def starts() -> dict[str, str]:
    """Return when each unit of the platform became active, monotonic microseconds."""
    listed = host.run(
        "systemctl", "list-units", "--type=service,timer,socket,path", "--plain", "--no-legend", "--all", *WATCHED
    )
    units = [line.split()[0] for line in listed.splitlines()]
    # A one-shot service that a timer starts comes and goes by itself.
    active = [unit for unit in units if host.properties(unit, "ActiveState")["ActiveState"] == "active"]
    return {
        unit: host.properties(unit, "ActiveEnterTimestampMonotonic")["ActiveEnterTimestampMonotonic"] for unit in active
    }


def module_calls(plays: list[dict[str, Any]]) -> tuple[Counter[str], int]:
    """Return the calls that went to a host for each role, and how many changed something."""
    calls: Counter[str] = Counter()
    changed = 0
    for task in (task for play in plays for task in play["tasks"]):
        role = task["task"]["name"].split(" : ")[0].split(".")[-1] if " : " in task["task"]["name"] else "(playbooks)"
        for outcome in task["hosts"].values():
            if outcome.get("skipped") or outcome.get("action", "").split(".")[-1] in LOCAL_ACTIONS:
                continue
            # The items of a loop are calls of their own; censored ones cannot be told apart and count as one.
            items = [
                item for item in outcome.get("results", [{}]) if isinstance(item, dict) and not item.get("skipped")
            ]
            calls[role] += len(items) or 1
            changed += bool(outcome.get("changed"))
    return calls, changed


def first_run() -> dict[str, Any] | str:
    """Return the timings of the last `make sandbox` if it was the one that made the container."""
    path = host.ROOT / ".sandbox/summary.json"
    if not path.is_file():
        return "no summary of `make sandbox` was found"
    timings: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["timings_s"]
    inspected = subprocess.run(
        ["docker", "inspect", "--format", "{{.Created}}", host.CONTAINER], capture_output=True, text=True, check=True
    ).stdout.strip()
    created = datetime.fromisoformat(inspected[:19] + "+00:00").timestamp()
    began = path.stat().st_mtime - timings["total"]
    if created < began - 60:
        return "the last `make sandbox` was a later run than the one that made the container"
    both = timings.get("converge", 0) + timings.get("verify", 0)
    return {
        "timings_s": timings,
        "goals": [
            {
                "goal": "first run in all, s",
                "wanted": GOALS_S["total"],
                "reached": timings["total"],
                "met": timings["total"] <= GOALS_S["total"],
            },
            {
                "goal": "converge and verify, s",
                "wanted": GOALS_S["converge and verify"],
                "reached": round(both, 1),
                "met": both <= GOALS_S["converge and verify"],
            },
        ],
    }


def converge() -> dict[str, Any]:
    """Run site.yml once and count what it did."""
    before = starts()
    environment = {
        **os.environ,
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        # In place of the task timing of ansible.cfg, which prints between the lines of JSON.
        "ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.timer",
        "ANSIBLE_FORCE_COLOR": "0",
    }
    began = time.monotonic()
    done = subprocess.run(
        [str(host.ROOT / ".venv/bin/ansible-playbook"), "-i", "inventories/sandbox", "site.yml"],
        cwd=host.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    wall = round(time.monotonic() - began, 1)
    after = starts()
    start = done.stdout.find("{")
    if start < 0:
        raise host.CommandError(f"site.yml printed no result: {(done.stderr or done.stdout)[-800:]}")
    printed = json.JSONDecoder().raw_decode(done.stdout[start:])[0]
    calls, changed = module_calls(printed["plays"])
    return {
        "exit_code": done.returncode,
        "wall_s": wall,
        "changed": changed,
        "stats": printed.get("stats", {}),
        "units_watched": len(before),
        "restarted": sorted(unit for unit, at in before.items() if after.get(unit) != at),
        "module_calls": dict(calls.most_common()),
        "module_calls_total": sum(calls.values()),
    }


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """Run site.yml again; when the first of these runs had something to do, once more."""
    for _ in range(2):
        run = converge()
        say(
            f"  {run['wall_s']} s, changed={run['changed']}, restarted: {', '.join(run['restarted']) or 'none'},"
            f" {run['module_calls_total']} module calls, exit code {run['exit_code']}"
        )
        if not run["changed"] or run["exit_code"]:
            break
    wall, changed, restarted = run["wall_s"], run["changed"], run["restarted"]
    run["goals"] = [
        {
            "goal": "second run, s",
            "wanted": GOALS_S["second run"],
            "reached": wall,
            "met": wall <= GOALS_S["second run"],
        },
        {"goal": "changed", "wanted": 0, "reached": changed, "met": changed == 0},
        {"goal": "units restarted", "wanted": 0, "reached": len(restarted), "met": not restarted},
    ]
    return {"first_run": first_run(), "second_run": run}

# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure the sandbox's platform, write bench/results/<date>-<machine>.json and docs/benchmarks.md.

    make bench                                            everything
    .venv/bin/python tests/bench/run.py memory spread     some parts; the others keep what was measured last
    .venv/bin/python tests/bench/run.py restore           after a kill: continue, undo and remove what the bench made

Needs the sandbox (`make sandbox`). Nothing else should use the machine; what did is in the result.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from tests.bench import backup, bridge, converge, host, report, resources, sites, throughput  # noqa: E402

RESULTS = ROOT / "bench" / "results"
Timing = dict[str, float]
# Everything but `sandbox` and `throughput`, whose measurements take more than a platform and a timing.
SIMPLE: dict[str, Callable[[sites.Site, Timing, Callable[[str], None]], Any]] = {
    "memory": resources.memory,
    "spread": resources.spread,
    "guard-cost": throughput.guard_cost,
    "backup": backup.measure,
    "bridge": lambda ours, timing, say: bridge.measure(say),
}
PARTS = ("sandbox", "memory", "spread", "throughput", "guard-cost", "backup", "bridge")
TIMERS = ("n8n-guard.timer", "n8n-watchdog.timer")


def say(line: str) -> None:
    """Print a line at once, with the time."""
    print(f"{datetime.now(UTC):%H:%M:%S} {line}", flush=True)


def wait_until_quiet(limit: float, seconds: float) -> None:
    """Wait, for so long at most, until the load average of the last minute is below a limit."""
    end = time.monotonic() + seconds
    while os.getloadavg()[0] > limit and time.monotonic() < end:
        time.sleep(5)


def stop_timers() -> list[str]:
    """Stop and return the timers of guard and watchdog, which would restart a platform that is stopped on purpose."""
    running = [unit for unit in TIMERS if host.properties(unit, "ActiveState")["ActiveState"] == "active"]
    if running:
        host.run("systemctl", "stop", *running)
    return running


def restore(timers: list[str]) -> None:
    """Leave the host as it was: all runs, workers have their own settings, n8n by hand and our workflows are gone."""
    ours = sites.platform()
    ours.resume()
    sites.remove_by_hand()
    if host.shell("test -e /run/systemd/system/n8n-worker@.service.d && echo yes || true").strip():
        sites.switch_workers({})
    identifiers = ", ".join(f"'bench{kind}'" for kind in sites.WORKFLOWS)
    for table in ("webhook_entity", "workflow_published_version"):
        ours.sql(f'DELETE FROM {table} WHERE "workflowId" IN ({identifiers})')
    ours.sql(f"DELETE FROM workflow_entity WHERE id IN ({identifiers})")
    if timers:
        host.run("systemctl", "start", *timers)
    host.run("rm", "-rf", host.WORK)


class Result:
    """The file of the day; written after each step."""

    def __init__(self, machine: dict[str, Any]) -> None:
        name = f"{datetime.now(UTC):%Y-%m-%d}-{machine['cores']}-cores-{machine['memory_gib']:.0f}-gib"
        self.path = RESULTS / f"{name}.json"
        self.data: dict[str, Any] = {"machine": machine, "parts": {}}
        # What is not measured today stands as it was measured last on such a machine.
        if earlier := sorted(RESULTS.glob(f"????-??-??-{name.split('-', 3)[3]}.json")):
            self.data["parts"] = json.loads(earlier[-1].read_text(encoding="utf-8"))["parts"]
        self.data["versions"] = {
            "n8n": host.run("sh", "-c", f"readlink -f {host.RELEASE} | xargs basename").strip(),
            "nodejs": host.run(f"{host.NODE}/node", "--version").strip().lstrip("v"),
            "postgresql": host.run("/usr/lib/postgresql/17/bin/postgres", "--version").split()[2],
            "redis": host.run("redis-server", "--version").split("v=")[1].split()[0],
        }

    def note(self, part: str, began: dict[str, Any], value: Any) -> None:
        """Keep the result of a part."""
        self.data["parts"][part] = {**began, "result": value}
        RESULTS.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")
        (ROOT / "docs/benchmarks.md").write_text(report.page(self.data, self.path.name), encoding="utf-8")


def measure(parts: list[str], timing: Timing, short: bool, result: Result, quiet: Callable[[], None]) -> None:
    """Measure parts one after the other."""
    ours = sites.platform()
    if set(parts) - {"sandbox"}:
        # An earlier run that was killed may have left it stopped.
        ours.resume()
        sites.install_workflows(ours, ["n8n"], "/srv/n8n/exports")
    for part in parts:
        quiet()
        began = {"at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", "load_before": round(os.getloadavg()[0], 1)}
        say(f"== {part} (load {began['load_before']}) ==")
        if part == "sandbox":
            result.note(part, began, converge.measure(say))
        elif part in SIMPLE:
            result.note(part, began, SIMPLE[part](ours, timing, say))
        else:
            say("setting n8n up by hand")
            pair = throughput.Pair(ours, sites.set_up_by_hand())
            throughput.measure(pair, timing, short, say, partial(result.note, part, began))
            pair.both()
            sites.remove_by_hand()
            sites.switch_workers({})


def main() -> None:
    """Run the parts the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all) or restore")
    parser.add_argument("--seconds", type=float, default=20, help="length of one measurement")
    parser.add_argument("--warm-up", type=float, default=5, help="seconds before it that do not count")
    parser.add_argument("--hold", type=int, default=60, help="executions the driver keeps unfinished")
    parser.add_argument("--drain", type=float, default=40, help="most seconds to wait for them after a measurement")
    parser.add_argument("--short", action="store_true", help="fewer turns of throughput and no fixed rates")
    parser.add_argument("--load", type=float, default=1.5, help="start a part when the load average is below this")
    parser.add_argument("--wait", type=float, default=60, help="seconds to wait for that, then measure anyway")
    options = parser.parse_args()
    if unknown := set(options.part) - {*PARTS, "restore"}:
        parser.error(f"unknown part: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not host.is_running():
        sys.exit("The sandbox does not run: `make sandbox` first.")
    if options.part == ["restore"]:
        restore([unit for unit in TIMERS if host.properties(unit, "LoadState")["LoadState"] == "loaded"])
        return
    parts = [part for part in PARTS if part in options.part or not options.part]
    result = Result(host.machine())
    timers = [] if parts == ["sandbox"] else stop_timers()
    host.install_driver()
    try:
        timing = {"seconds": options.seconds, "warm_up": options.warm_up, "hold": options.hold, "drain": options.drain}
        measure(parts, timing, options.short, result, lambda: wait_until_quiet(options.load, options.wait))
    finally:
        if parts != ["sandbox"]:
            restore(timers)
    say(f"written: {result.path.relative_to(ROOT)} and docs/benchmarks.md")


if __name__ == "__main__":
    main()

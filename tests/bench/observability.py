# SPDX-License-Identifier: GPL-3.0-or-later
"""What monitoring costs and how fast it is, in a full sandbox (`make sandbox FULL=1`).

    .venv/bin/python tests/bench/observability.py                       everything
    .venv/bin/python tests/bench/observability.py memory throughput     some parts; the others keep what the file has

Writes bench/results/observability-<date>-<machine>.json. Parts: memory, page, fresh, ingest, throughput.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)

from tests.bench import host, resources, sites, throughput  # noqa: E402

MONITORING = ("prometheus", "alertmanager", "loki", "otel", "jaeger", "n8n-metrics")
TIMERS = ("n8n-guard.timer", "n8n-watchdog.timer")
GOAL_MIB = 600
GOAL_RATIO = 0.95
# On: as the platform sets it. Off: n8n without metrics and traces, and nothing of monitoring runs.
OFF = {"N8N_METRICS": "false", "N8N_OTEL_ENABLED": "false"}
ORDER = "ABBAABBA"
RATES = (500, 1000, 2000, 4000)
INGEST_S = 20
# journald takes an interval of 0 for "as usual".
UNLIMITED = ("-p", "LogRateLimitIntervalSec=1s", "-p", "LogRateLimitBurst=1000000000")
WINDOW_S = 30.0
Say = Callable[[str], None]


def say(line: str) -> None:
    """Print a line at once, with the time."""
    print(f"{datetime.now(UTC):%H:%M:%S} {line}", flush=True)


def ours(values: dict[str, float]) -> dict[str, float]:
    """Return the units of monitoring."""
    return {unit: round(value, 2) for unit, value in sorted(values.items()) if unit.startswith(MONITORING)}


def cpu() -> dict[str, float]:
    """Return the CPU seconds each unit of monitoring has used."""
    code = "import json; from inside import probe; print(json.dumps(probe.cpu_seconds()))"
    return ours(json.loads(host.run("sh", "-c", f"cd {host.WORK} && exec python3 -c '{code}'")))


def ask(address: str, **parameters: str) -> Any:
    """Return what an address on the host answers, as JSON."""
    words = [word for key, value in parameters.items() for word in ("--data-urlencode", f"{key}={value}")]
    return json.loads(host.run("curl", "-sfG", *words, address))


def lines(query: str, seconds: int) -> int:
    """Return how many lines Loki has for a query."""
    address = f"http://127.0.0.1:{host.PORTS['loki']}/loki/api/v1/query"
    found = ask(address, query=f"sum(count_over_time({query} [{seconds}s]))")["data"]["result"]
    return int(float(found[0]["value"][1])) if found else 0


def wait(condition: Callable[[], bool], seconds: float, every: float) -> float | None:
    """Return how long it took until a condition held; None if it did not within so many seconds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            return None
        time.sleep(every)
    return time.monotonic() - began


def memory(timing: dict[str, float]) -> dict[str, Any]:
    """Measure memory and CPU of monitoring, idle for a minute and under the core's load."""
    before = cpu()
    idle = ours(host.memory_mib())
    time.sleep(60)
    idle_cpu = {unit: round(used - before.get(unit, 0.0), 2) for unit, used in cpu().items()}
    run = host.drive(sites.platform().job("expression", memory_samples=3, **timing))
    samples = [ours(sample) for sample in run["memory_mib"]]
    most = {unit: max(sample.get(unit, 0.0) for sample in samples) for unit in samples[0]}
    core = resources.core(host.memory_mib())
    result = {
        "idle_mib": idle,
        "idle_total_mib": round(sum(idle.values())),
        "idle_cores": round(sum(idle_cpu.values()) / 60, 3),
        "idle_cpu_s_per_minute": idle_cpu,
        "load_mib": most,
        "load_total_mib": round(max(sum(sample.values()) for sample in samples)),
        "load_cpu_s": ours(run["cpu_s"]),
        "load_cores": round(sum(ours(run["cpu_s"]).values()) / run["window_s"], 3),
        "load_completions_per_s": run["completions_per_s"],
        "core_mib": round(sum(core.values())),
        "goal": {"wanted_mib": GOAL_MIB},
    }
    result["goal"] |= {"reached_mib": result["load_total_mib"], "met": result["load_total_mib"] <= GOAL_MIB}
    say(f"  idle {result['idle_total_mib']} MiB, {result['idle_cores']} cores; load {result['load_total_mib']} MiB")
    return result


def page(_: dict[str, float]) -> dict[str, Any]:
    """Stop all workers and count the seconds until Alertmanager has the page."""
    units = host.service_units("n8n-worker@*")
    address = f"http://127.0.0.1:{host.PORTS['alertmanager']}/api/v2/alerts"
    host.run("systemctl", "stop", *units, timeout=400)
    try:
        took = wait(lambda: any(one["labels"]["alertname"] == "N8nWorkersDown" for one in ask(address)), 300, 1)
    finally:
        host.run("systemctl", "start", *units, timeout=400)
    host.wait_for(sites.platform().ready, 120, "platform")
    say(f"  all workers stopped to page: {took and round(took)} s")
    return {"alert": "N8nWorkersDown", "for_s": 120, "seconds": took and round(took, 1)}


def fresh(_: dict[str, float]) -> dict[str, Any]:
    """Count the seconds from writing a line to the journal until Loki finds it."""
    found = []
    for number in range(20):
        text = f"bench-fresh-{number}-{time.time_ns()}"
        began = time.monotonic()
        host.shell(f"echo {text} | systemd-cat -t bench")
        query = f'{{service_name="system"}} |= "{text}"'
        if wait(lambda query=query: lines(query, 300) > 0, 60, 0.1) is not None:  # type: ignore[misc]
            found.append(time.monotonic() - began)
    say(f"  log line to queryable: {median(found):.2f} s ({len(found)} of 20 found)")
    return {"lines": 20, "found": len(found), "median_s": round(median(found), 2), "most_s": round(max(found), 2)}


def ingest(_: dict[str, float]) -> dict[str, Any]:
    """Write lines at growing rates and count what arrives: the highest rate that keeps up and loses nothing."""
    runs: list[dict[str, Any]] = []
    for rate in RATES:
        prefix = f"bench-ingest-{time.time_ns()}"
        code = (
            "import sys,time\n"
            "began = time.monotonic()\n"
            f"for i in range({rate * INGEST_S}):\n"
            f"    ahead = i / {rate} - (time.monotonic() - began)\n"
            "    if ahead > 0.01: sys.stdout.flush(); time.sleep(ahead)\n"
            f"    print('{prefix} %08d a line as long as many lines of a program are, with a number in it' % i)\n"
        )
        host.write(f"{host.WORK}/lines.py", code)
        began, used = time.monotonic(), cpu()
        options = ("--wait", "--quiet", "--collect", *UNLIMITED, "--unit=n8n-bench-lines")
        host.run("systemd-run", *options, "python3", f"{host.WORK}/lines.py", timeout=300)
        wrote = time.monotonic() - began
        query = f'{{service_name="platform"}} |= "{prefix}"'
        late = wait(lambda query=query, rate=rate: lines(query, 900) >= rate * INGEST_S, 120, 1)  # type: ignore[misc]
        arrived = lines(query, 900)
        spent = {unit: round(value - used.get(unit, 0.0), 2) for unit, value in cpu().items()}
        runs.append(
            {
                "lines_per_s": rate,
                "written_in_s": round(wrote, 1),
                "written": rate * INGEST_S,
                "arrived": arrived,
                "all_there_after_s": late and round(late, 1),
                "cpu_s": {unit: value for unit, value in spent.items() if value > 0.1},
            }
        )
        say(f"  {rate} lines/s: {arrived} of {rate * INGEST_S}, all there {late and round(late, 1)} s after the last")
        if arrived < rate * INGEST_S:
            break
    held = [run["lines_per_s"] for run in runs if run["arrived"] >= run["written"]]
    return {"runs": runs, "held_lines_per_s": max(held, default=0)}


def switch(off: bool) -> None:
    """Restart n8n with or without metrics and traces, and start or stop all of monitoring."""
    kinds = ("n8n-main.service", "n8n-webhook@.service", "n8n-worker@.service")
    for kind in kinds:
        if off:
            host.write(f"{host.WORK}/off.env", "".join(f'{name}="{value}"\n' for name, value in OFF.items()))
            drop_in = f"[Service]\nEnvironmentFile={host.WORK}/off.env\n"
            host.write(f"/run/systemd/system/{kind}.d/90-bench.conf", drop_in)
        else:
            host.run("rm", "-rf", f"/run/systemd/system/{kind}.d")
    monitoring = " ".join(f"'{name}*.service'" for name in MONITORING)
    if off:
        host.shell(f"systemctl stop {monitoring}", timeout=300)
    else:
        # Patterns match only what runs, so what stopped is started by its unit files.
        names = " ".join(f"'{name}*.service'" for name in MONITORING)
        listed = f"systemctl list-unit-files --state=enabled --no-legend {names} | cut -d' ' -f1"
        host.shell(f"systemctl daemon-reload; systemctl start $({listed})", timeout=300)
    units = " ".join(host.service_units("n8n-main*", "n8n-webhook@*", "n8n-worker@*"))
    host.shell(f"systemctl daemon-reload; systemctl restart {units}", timeout=600)
    host.wait_for(sites.platform().ready, 180, "platform")


def cost(timing: dict[str, float]) -> dict[str, Any]:
    """Measure executions a second with and without monitoring, in turn; each turn begins with uncounted work."""
    runs: list[dict[str, Any]] = []
    state = ""
    for letter in ORDER:
        if letter != state:
            switch(letter == "B")
            state = letter
            host.drive(sites.platform().job("plain", **{**timing, "seconds": 20, "warm_up": 0}))
        run = host.drive(sites.platform().job("plain", **timing))
        cpu_ms = round(1000 * sum(run["cpu_s"].values()) / max(run["completed_in_window"], 1), 2)
        runs.append({"letter": letter, "cpu_ms_per_execution": cpu_ms, **run})
        say(f"  {'off' if letter == 'B' else 'on '} {run['completions_per_s']:6.1f}/s, {cpu_ms} ms CPU an execution")
    if state == "B":
        switch(False)
    on, off = throughput.rates(runs, "A"), throughput.rates(runs, "B")
    compared = throughput.ratio(on, off)
    cpu_of = {letter: median(run["cpu_ms_per_execution"] for run in runs if run["letter"] == letter) for letter in "AB"}
    return {
        "on_per_s": throughput.spread(on),
        "off_per_s": throughput.spread(off),
        "ratio": compared,
        "cpu_ms_per_execution": {"on": cpu_of["A"], "off": cpu_of["B"]},
        "goal": {"wanted": GOAL_RATIO, "reached": compared["median"], "met": compared["median"] >= GOAL_RATIO},
        "runs": runs,
    }


PARTS: dict[str, Callable[[dict[str, float]], dict[str, Any]]] = {
    "memory": memory,
    "page": page,
    "fresh": fresh,
    "ingest": ingest,
    "throughput": cost,
}


def main() -> None:
    """Run the parts the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--seconds", type=float, default=WINDOW_S, help="length of one measurement")
    options = parser.parse_args()
    if unknown := set(options.part) - set(PARTS):
        parser.error(f"unknown part: {', '.join(sorted(unknown))}")
    if not host.is_running() or not host.service_units("loki*"):
        sys.exit("No full sandbox runs: `make sandbox FULL=1` first.")
    machine = host.machine()
    name = f"observability-{datetime.now(UTC):%Y-%m-%d}-{machine['cores']}-cores-{machine['memory_gib']:.0f}-gib.json"
    path = ROOT / "bench" / "results" / name
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"machine": machine, "parts": {}}
    timing = {"seconds": options.seconds, "warm_up": 5.0, "hold": 60, "drain": 40.0}
    host.install_driver()
    timers = [unit for unit in TIMERS if host.properties(unit, "ActiveState")["ActiveState"] == "active"]
    try:
        sites.install_workflows(sites.platform(), ["n8n"], "/srv/n8n/exports")
        for part in [part for part in PARTS if part in options.part or not options.part]:
            say(f"== {part} ==")
            # The guard would restart what is stopped on purpose.
            if part in ("page", "throughput") and timers:
                host.run("systemctl", "stop", *timers)
            data["parts"][part] = {"at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}", **PARTS[part](timing)}
            path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    finally:
        if timers:
            host.run("systemctl", "start", *timers)
        host.run("rm", "-rf", host.WORK)
    say(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

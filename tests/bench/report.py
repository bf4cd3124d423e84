# SPDX-License-Identifier: GPL-3.0-or-later
"""Render docs/benchmarks.md from a result: only what was measured."""

from __future__ import annotations

from typing import Any

from tests.bench import bridge_report
from tests.bench.sites import WORKFLOWS

NOT_YET = "Not measured yet.\n"
Table = list[tuple[Any, ...]]


def table(head: tuple[str, ...], rows: Table) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines) + "\n"


def goals(found: list[dict[str, Any]]) -> str:
    """Return a table of goals and what was reached."""
    return table(
        ("goal", "wanted", "measured", "reached"),
        [(g["goal"], g["wanted"], g["reached"], "yes" if g["met"] else "**no**") for g in found],
    )


def span(value: dict[str, float] | None) -> str:
    """Return a median with its range."""
    return f"{value['median']:g} ({value['min']:g} to {value['max']:g})" if value else "-"


def when(part: dict[str, Any]) -> str:
    """Return the line that says when a part was measured and how busy the machine was."""
    load = f"load average before it, from other work on the machine: {part['load_before']:g}"
    return f"Measured {part['at']} UTC; {load}.\n\n"


def sandbox(part: dict[str, Any]) -> str:
    """Return the section on the sandbox."""
    first, second = part["result"]["first_run"], part["result"]["second_run"]
    if isinstance(first, str):
        text = f"First run: not measured yet ({first}).\n\n"
    else:
        text = (
            "First run, seconds: "
            + ", ".join(f"{step} {seconds:g}" for step, seconds in first["timings_s"].items())
            + (f" ({first['note']})" if first.get("note") else "")
            + ".\n\n"
            + goals(first["goals"])
        )
    calls = ", ".join(f"{role} {count}" for role, count in second["module_calls"].items())
    restarted = ", ".join(second["restarted"]) or "none"
    return (
        f"{text}Second run of `site.yml` ({second['units_watched']} units watched; restarted: {restarted};"
        f" exit code {second['exit_code']}):\n\n"
        f"{goals(second['goals'])}Module calls by role ({second['module_calls_total']} in all): {calls}.\n"
    )


QUIET_CORES = 0.2
LEGACY_GOAL = "legacy against n8n's default engine"
# name, comparison, engine of n8n by hand, least ratio
GOALS = (
    ("same engine, vm", "vm", "same", 1.2),
    ("same engine, legacy", "legacy", "same", 1.2),
    (LEGACY_GOAL, "legacy", "vm", 3.0),
    ("workflow without expressions", "vm_plain", "same", 1.5),
)


def cpu_groups(runs: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """Return CPU milliseconds for each completed execution by kind of unit, most first."""
    used: dict[str, float] = {}
    for run in runs:
        for unit, seconds in run["cpu_s"].items():
            kind = unit.split("@")[0].removeprefix("n8n-bench-")
            used[kind] = used.get(kind, 0.0) + seconds
    done = sum(run["completed_in_window"] for run in runs) or 1
    return sorted(
        ((kind, round(1000 * seconds / done, 1)) for kind, seconds in used.items()), key=lambda pair: -pair[1]
    )


def cpu_ms(found: dict[str, Any], site: str) -> float:
    """Return the CPU milliseconds a completed execution of a site cost, the driver left out; 0 when nothing was run."""
    runs = [run for run in found.get("runs", []) if run["site"] == site]
    return round(sum(ms for kind, ms in cpu_groups(runs) if kind != "driver"), 1)


def cpu_line(name: str, runs: list[dict[str, Any]]) -> str:
    """Return where the CPU time of one execution goes."""
    groups = [f"{kind} {ms:g}" for kind, ms in cpu_groups(runs) if ms >= 0.1]
    other = sum(run["cpu_other_s"] for run in runs) / sum(run["window_s"] for run in runs)
    return f"- {name}: {', '.join(groups)}. Work outside the measured host used {other:.2f} cores meanwhile.\n"


COMPARISONS = (
    ("vm", "vm, n8n's default"),
    ("vm_plain", "vm"),
    ("vm_plain_lazy", "vm, lazy acquire"),
    ("legacy", "legacy"),
)


def cpu_table(result: dict[str, Any]) -> str:
    """Return the table of CPU time, which other work on the machine disturbs far less than it disturbs rates."""
    base = cpu_ms(result.get("vm", {}), "by hand")
    rows: Table = []
    for key, engine in COMPARISONS:
        found = result.get(key, {})
        ours, theirs = cpu_ms(found, "platform"), cpu_ms(found, "by hand")
        if ours:
            ratios = [f"{other / ours:.2f}" if other else "-" for other in (theirs, base)]
            rows.append((engine, WORKFLOWS[found["workflow"]], ours, theirs or "-", *ratios))
    head = (
        "expression engine",
        "workflow",
        "platform",
        "n8n by hand",
        "by hand / platform",
        "by hand with vm / platform",
    )
    return (
        "CPU milliseconds for each completed execution, all services together. Where the cores are full this decides"
        " how much a machine does, and other work on the machine disturbs it far less than the rates above:\n\n"
        + table(head, rows)
    )


def foreign_cores(result: dict[str, Any]) -> float:
    """Return how many cores work outside the measured host used on average during the measurements."""
    runs = [run for key, _ in COMPARISONS for run in result.get(key, {}).get("runs", [])]
    seconds = sum(run["window_s"] for run in runs)
    return sum(run["cpu_other_s"] for run in runs) / seconds if seconds else 0.0


def verdict(result: dict[str, Any]) -> str:
    """Return the goals, judged by rates on a quiet machine and by CPU time on a busy one."""
    busy = foreign_cores(result)
    quiet = busy < QUIET_CORES
    text = f"Other work on the machine used {busy:.2f} cores on average meanwhile. "
    text += (
        "Goals are judged by the rates.\n\n"
        if quiet
        else (
            "**That disturbs rates and answer times too much to compare them** (more processes get a larger share of a"
            " contended machine), so the goals are judged by CPU time. Measure again on a quiet machine.\n\n"
        )
    )
    base = cpu_ms(result.get("vm", {}), "by hand")
    rows: Table = []
    for name, key, reference, wanted in GOALS:
        found = result.get(key)
        ours = cpu_ms(found, "platform") if found else 0
        theirs = base if reference == "vm" else cpu_ms(found or {}, "by hand")
        if not found or not ours or not theirs:
            rows.append((name, wanted, "-", "-", "not measured yet"))
            continue
        by_rate = (found["ratio_to_default"] if name == LEGACY_GOAL else found["ratio"])["median"]
        by_cpu = round(theirs / ours, 2)
        rows.append((name, wanted, by_rate, by_cpu, "yes" if (by_rate if quiet else by_cpu) >= wanted else "**no**"))
    return text + table(("goal: platform / n8n by hand", "wanted", "by rates", "by CPU time", "reached"), rows)


def throughput(part: dict[str, Any]) -> str:
    """Return the section on throughput."""
    result = part["result"]
    rows: Table = []
    for key, engine in COMPARISONS:
        if found := result.get(key):
            what = WORKFLOWS[found["workflow"]]
            by_hand, ratio = span(found.get("by_hand_per_s")), span(found.get("ratio"))
            rows.append((engine, what, span(found["platform_per_s"]), by_hand, ratio, span(found.get("control_ratio"))))
    lazy = "on" if result["lazy_acquire"] == "true" else "off"
    text = (
        f"The platform has {result['workers']} workers; lazy acquire is {lazy} unless said otherwise."
        f" Windows of {result['seconds']:g} s after {result['warm_up_s']:g} s of warm-up,"
        f" {result['hold']} executions kept unfinished."
        " Completed executions a second, median (least to most), and their ratio:\n\n"
    )
    text += table(
        ("expression engine", "workflow", "platform", "n8n by hand", "ratio", "control: platform / platform"), rows
    )
    if legacy := result.get("legacy", {}).get("ratio_to_default"):
        text += f"The platform with `legacy` against n8n by hand with its default engine: {span(legacy)}.\n\n"
    if rates := result.get("fixed_rates"):
        text += (
            "Acknowledgement and completion at fixed rates, milliseconds (open loop, vm engine, one expression):\n\n"
        )
        lines: Table = []
        for run in rates:
            answer, done = run["acknowledgement_ms"], run["until_done_ms"]
            cells = [
                f"{values.get('p50', 0):g} / {values.get('p95', 0):g} / {values.get('p99', 0):g}"
                for values in (answer, done)
            ]
            lines.append(
                (run["rate_per_s"], run["site"], run["completions_per_s"], *cells, sum(run["errors"].values()))
            )
        text += table(
            (
                "offered/s",
                "",
                "completed/s",
                "acknowledged p50 / p95 / p99",
                "stored as done p50 / p95 / p99",
                "errors",
            ),
            lines,
        )
    text += cpu_table(result) + verdict(result)
    text += "Where the time goes, CPU milliseconds for each completed execution:\n\n"
    for key, engine in COMPARISONS:
        for site in ("platform", "by hand"):
            if runs := [run for run in result.get(key, {}).get("runs", []) if run["site"] == site]:
                text += cpu_line(f"{site}, {engine}, {result[key]['workflow']}", runs)
    return text


def memory(part: dict[str, Any]) -> str:
    """Return the section on memory."""
    result = part["result"]
    loads = result["load"]
    text = goals(result["goals"]) + "MiB of each unit (PSS, largest of three samples under load):\n\n"
    rows: Table = []
    for unit, idle in result["idle_mib"].items():
        under = [loads[kind]["mib"].get(unit, 0) for kind in loads]
        limit = result["limits_mib"].get(unit)
        rows.append((unit, idle, *under, limit or "-", f"{limit - max(idle, *under):.0f}" if limit else "-"))
    rows.append(("all, GiB", result["idle_gib"], *(loads[kind]["gib"] for kind in loads), "", ""))
    text += table(("unit", "idle", *(f"load: {kind}" for kind in loads), "MemoryMax", "headroom"), rows)
    loaded = ", ".join(f"{kind} {load['run']['completions_per_s']:g}/s" for kind, load in loads.items())
    text += f"Loads: enough unfinished executions that each worker has its ten; {loaded}.\n"
    if peaks := result["worker_slice_peak_mib"]:
        text += "The most the kernel has ever charged a worker with its runner (file cache included, limit 512 MiB): "
        text += f"{max(peaks.values()):g} MiB.\n"
    return text


def spread(part: dict[str, Any]) -> str:
    """Return the section on the spread over workers."""
    result = part["result"]
    rows: Table = list(result["executions"].items())
    verdict = "Every worker executed work" if result["met"] else "**Not every worker executed work**"
    return (
        table(("worker", "executions"), rows)
        + f"{verdict}; {result['acknowledged']} acknowledged, {result['succeeded']} succeeded.\n"
    )


def guard_cost(part: dict[str, Any]) -> str:
    """Return the section on the price of the payload copy."""
    result = part["result"]
    if isinstance(result, str):
        return f"Not measured yet: {result}.\n"
    return (
        table(
            ("payload copy", "completed/s"),
            [("on", span(result["on_per_s"])), ("off", span(result["off_per_s"])), ("ratio", span(result["ratio"]))],
        )
        + f"Switched off and on in turn (triggers: {', '.join(result['triggers'])}); engine as the platform sets it.\n"
    )


def backup(part: dict[str, Any]) -> str:
    """Return the section on backups and restores."""
    result = part["result"]
    wall, meanwhile, drill = result["wall"], result["meanwhile"], result["restores"]["drill"]
    slower = wall["ratio"]["local set"]["median"]
    kept = meanwhile["ratio"]["median"]
    found = [
        {
            "goal": "set / pg_dump with zstd in a pipe, wall time",
            "wanted": "<= 1.2",
            "reached": slower,
            "met": slower <= 1.2,
        },
        {"goal": "workflows during backups / without", "wanted": ">= 0.9", "reached": kept, "met": kept >= 0.9},
    ]
    rows: Table = [(name, span(seconds), span(wall["ratio"].get(name))) for name, seconds in wall["seconds"].items()]
    restore = result["restores"]["restore"]
    return (
        f"A database of {result['database_mib']} MiB.\n\n"
        + goals(found)
        + table(("the database's part of a set", "seconds", "ratio"), rows)
        + f"Workflows completed a second: {span(meanwhile['per_s']['without'])} without,"
        f" {span(meanwhile['per_s']['with'])} with backups running all the time.\n"
        f"Largest process of a run: {result['peak_mib']:g} MiB.\n"
        f"Drill: RTO {drill['rto_seconds']:g} s, RPO {drill['rpo_seconds']:g} s."
        f" Restore in place: RTO {restore['rto_seconds']:g} s, RPO {restore['rpo_seconds'] or 0:g} s.\n"
    )


SECTIONS = (
    ("sandbox", "Setting up: first and second run", sandbox),
    ("throughput", "Throughput", throughput),
    ("memory", "Memory", memory),
    ("spread", "Spread over the workers", spread),
    ("guard-cost", "What the payload copy costs", guard_cost),
    ("backup", "Backups and restores", backup),
    ("bridge", "The bridge beside Pulsar's own client", bridge_report.section),
)

METHOD = """## Method

- Everything, the driver included, shares the machine's cores: the sandbox's container has no limits of its own.
  Numbers of a machine with more cores, or with the driver elsewhere, are higher; the ratios are what to compare.
- The webhook answers at once (`onReceived`), carries 1 kB, and every execution is saved. Counted are executions
  stored as succeeded in PostgreSQL inside the window, not acknowledgements. The driver keeps a number of
  executions unfinished without waiting for answers: what is counted is what can be sustained. Fixed rates are an
  open loop: a latency counts from when its request was due.
- *Platform*: as `make sandbox` sets it up, called over TLS through Traefik, with the certificate checked. *n8n by
  hand*: the same n8n, Node.js, PostgreSQL and Redis releases as n8n's queue mode documentation starts them: one
  main process that also takes the webhooks, one worker with the default concurrency of 10, a PostgreSQL cluster
  with Debian's settings, Redis with its own settings (no append-only file), plain HTTP without a proxy, `NODE_ENV`
  unset. So it does less: no TLS, no proxy, no durable queue, no sandboxed units.
- Both run in the same host; the processes of the one that is not measured are stopped. Order: platform, by hand,
  platform, by hand. The control compares the platform with itself, one half of its turns with the other: a ratio
  inside the control's range says nothing.
- Ratios are of medians; the range is the least and the most that any two turns give.
- Memory is PSS (shared pages counted once), from the kernel.

## Limits

One machine, short windows, one after the other; other work on the machine is stated, not removed. A container
shares its kernel with the driver. Each Node.js process compiles n8n's code for itself while it works: the
platform's seven processes need several times as many executions to get warm as the two of n8n by hand, so short
windows, and those just after a restart (legacy), show the platform worse than a long run would. Part of it stays:
after 2000 executions five workers needed 12.3 ms of CPU for one (legacy engine), a single worker on the same host
7.3 ms, so on two cores fewer workers do more. Nothing here says how large payloads, binary data or long workflows
behave.

The goal for backups is that of a set on this host. With the copy in the sandbox's own object store a run waits for
that store: it has every 32 kB on disk before it takes the next, and writes the parts of an object once more when it
puts them together, because it must not lose what it has acknowledged (roles/object_store/README.md). That was 15 to
25 MB/s on a busy machine.
"""


def page(data: dict[str, Any], name: str) -> str:
    """Return docs/benchmarks.md for a result file."""
    machine, versions = data["machine"], data["versions"]
    text = (
        "# Measured numbers\n\n`make bench` writes this page and the raw numbers "
        f"([bench/results/{name}](../bench/results/{name})). Other results: [bench/results/](../bench/results).\n\n"
        f"Machine: {machine['cores']} cores ({machine['processor']}), {machine['memory_gib']:g} GiB of memory,"
        f" Linux {machine['kernel']}.\n"
        f"Versions: n8n {versions['n8n']}, Node.js {versions['nodejs']}, PostgreSQL {versions['postgresql']},"
        f" Redis {versions['redis']}.\n\n"
    )
    for part, title, section in SECTIONS:
        measured = data["parts"].get(part)
        text += f"## {title}\n\n" + (when(measured) + section(measured) if measured else NOT_YET) + "\n"
    return text + METHOD

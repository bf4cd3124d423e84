# SPDX-License-Identifier: GPL-3.0-or-later
"""The section of docs/benchmarks.md about the bridge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = tuple[str, ...]


def table(head: Row, rows: Sequence[Row]) -> str:
    """Return a table in Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n"


def span(value: dict[str, float]) -> str:
    """Return a median with its range."""
    return f"{value['median']:g} ({value['min']:g} to {value['max']:g})"


def goals(result: dict[str, Any]) -> list[tuple[str, str, float, bool]]:
    """Return goal, what is wanted, what was reached, whether that meets it."""
    batch, single = result["batch_ratio"]["median"], result["single_ratio"]["median"]
    added = result["latency"]["added_p99_ms"]
    # The time of n8n's answer is known on average only, so the p99 is given with it.
    own = round(result["end_to_end"]["ms"]["p50"] - result["end_to_end"]["n8n_answers_in_ms"], 1)
    p99 = result["end_to_end"]["ms"]["p99"]
    again = result["outage"]["rate_over_arrivals"]
    traced = result["tracing"]["ratio"]["median"]
    return [
        ("events in batches / direct, batched", ">= 0.5", batch, batch >= 0.5),
        ("single events / direct, one blocking send at a time", ">= 1", single, single >= 1),
        ("p99 added at half of the maximum rate, ms", "<= 15", added, added <= 15),
        ("HTTP in to n8n's answer, less the time n8n took on average, p50, ms", "<= 25", own, own <= 25),
        ("HTTP in to n8n's answer, p99, ms", "<= 100", p99, p99 <= 100),
        ("single events, with traces / without", ">= 0.9", traced, traced >= 0.9),
        ("rate after a killed broker / arrivals", ">= 2", again, again >= 2),
    ]


def section(part: dict[str, Any]) -> str:
    """Return the section for a result."""
    result = part["result"]
    if isinstance(result, str):
        return f"Not measured yet: {result}.\n"
    rows = [(name, wanted, f"{reached:g}", "yes" if met else "**no**") for name, wanted, reached, met in goals(result)]
    latency, end, outage, worked = (result[name] for name in ("latency", "end_to_end", "outage", "worked_off"))
    memory = result["memory_mib"]
    processes = {name: size for name, size in memory.items() if name.startswith("n8n-bridge-")}
    return (
        table(("goal", "wanted", "reached", "met"), rows)
        + table(("publishing 1 kB, consumers stopped", "a second"), [(n, span(v)) for n, v in result["per_s"].items()])
        + f"Consumers settled {worked['events']} events that call nobody at {worked['per_s']:g}/s.\n"
        + f"Latencies were measured at {latency['rate_per_s']:g}/s, half of what goes through while consumers and"
        " monitoring are at work on the same cores.\n"
        + f"At light load n8n itself took {end['n8n_answers_in_ms']:g} ms of the time to its answer, on average.\n"
        + f"Broker killed with {outage['arrivals_per_s']:g} events/s arriving: answers {outage['answers']},"
        f" at most {outage['longest_queue']} messages waited, published again after"
        f" {outage['published_again_after_s']:g} s, worked off in {outage['worked_off_in_s']:g} s.\n"
        + f"Memory of the bridge's processes: {sum(processes.values()):.0f} MiB ({len(processes)} units).\n"
    )

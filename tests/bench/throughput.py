# SPDX-License-Identifier: GPL-3.0-or-later
"""Executions a second of the platform and of n8n by hand, in turn, on the same cores."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from tests.bench import host, sites

PRIME_S = 8.0
LAZY = "N8N_EXPRESSION_ENGINE_LAZY_ACQUIRE"
# A: platform, B: by hand, C: the platform again, compared with A to show what the method itself scatters.
LONG = "ABCBABCB"
SHORT = "ABCB"
Say = Callable[[str], None]


class Pair:
    """The two platforms; only one of them runs at a time."""

    def __init__(self, ours: sites.Site, theirs: sites.Site) -> None:
        self.ours, self.theirs = ours, theirs
        self.running: set[str] = {ours.name, theirs.name}

    def use(self, wanted: sites.Site) -> None:
        """Let one run and stop the other."""
        other = self.theirs if wanted is self.ours else self.ours
        if other.name in self.running:
            other.pause()
            self.running.discard(other.name)
        if wanted.name not in self.running:
            wanted.resume()
            self.running.add(wanted.name)

    def both(self) -> None:
        """Let both run."""
        for site in (self.ours, self.theirs):
            if site.name not in self.running:
                site.resume()
                self.running.add(site.name)


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": round(median(values), 2), "min": min(values), "max": max(values)}


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Return the ratio of the medians, and the least and the most any two values give."""
    return {
        "median": round(median(over) / median(under), 2),
        "min": round(min(over) / max(under), 2),
        "max": round(max(over) / min(under), 2),
    }


def rates(runs: list[dict[str, Any]], letters: str) -> list[float]:
    """Return the completions a second of the runs with these letters."""
    return [run["completions_per_s"] for run in runs if run["letter"] in letters]


def compare(pair: Pair, kind: str, order: str, timing: dict[str, float], say: Say) -> dict[str, Any]:
    """Measure one workflow in the given order."""
    runs = []
    for letter in order:
        site = pair.theirs if letter == "B" else pair.ours
        pair.use(site)
        run = host.drive(site.job(kind, **timing))
        runs.append({"letter": letter, "site": site.name, **run})
        say(
            f"  {letter} {site.name:9} {kind:10} {run['completions_per_s']:6.1f} completions/s,"
            f" p95 {run['acknowledgement_ms'].get('p95')} ms {run['errors'] or ''}"
        )
    ours, theirs = rates(runs, "AC"), rates(runs, "B")
    result: dict[str, Any] = {"workflow": kind, "runs": runs, "platform_per_s": spread(ours)}
    if theirs:
        result |= {"by_hand_per_s": spread(theirs), "ratio": ratio(ours, theirs)}
    if first := rates(runs, "A"):
        result["control_ratio"] = ratio(first, rates(runs, "C")) if "C" in order else None
    return result


def prime(pair: Pair, kind: str, timing: dict[str, float]) -> None:
    """Let both run for a while uncounted, so that every process has compiled what it needs."""
    for site in (pair.ours, pair.theirs):
        pair.use(site)
        host.drive(site.job(kind, **{**timing, "seconds": PRIME_S, "warm_up": 0}))


def latency(pair: Pair, requested: list[float], timing: dict[str, float], say: Say) -> list[dict[str, Any]]:
    """Measure the answer times at fixed rates, the same for both."""
    found = []
    for rate in requested:
        for site in (pair.ours, pair.theirs):
            pair.use(site)
            run = host.drive(site.job("expression", rate=rate, **timing))
            found.append({"site": site.name, "rate_per_s": rate, **run})
            say(
                f"  {site.name:9} offered {rate:5.1f}/s, completed {run['completions_per_s']:5.1f}/s,"
                f" acknowledged in {run['acknowledgement_ms']} ms"
            )
    return found


def measure(
    pair: Pair, timing: dict[str, float], short: bool, say: Say, note: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Measure everything; ``note`` gets the result so far after each step, so that an end in between loses little."""
    result: dict[str, Any] = {
        "engine": host.setting("N8N_EXPRESSION_ENGINE") or "vm",
        "lazy_acquire": host.setting(LAZY) or "false",
        "workers": len(host.service_units("n8n-worker@*")),
        "seconds": timing["seconds"],
        "warm_up_s": timing["warm_up"],
        "hold": timing["hold"],
    }

    def done(name: str, value: Any) -> None:
        result[name] = value
        note(result)

    prime(pair, "expression", timing)
    say("vm engine, one expression")
    done("vm", compare(pair, "expression", SHORT if short else LONG, timing, say))
    say("vm engine, no expression")
    done("vm_plain", compare(pair, "plain", SHORT, timing, say))
    if not short:
        base = result["vm"]["by_hand_per_s"]["median"]
        say("answer times at fixed rates, vm engine")
        brief = {"seconds": min(15.0, timing["seconds"]), "warm_up": 3.0, "drain": timing["drain"]}
        done("fixed_rates", latency(pair, [round(base * share, 1) for share in (0.5, 0.8)], brief, say))
    pair.both()
    if result["lazy_acquire"] != "true":
        say(f"vm engine, no expression, workers with {LAZY}=true")
        sites.switch_workers({LAZY: "true"})
        pair.theirs.pause()
        pair.running.discard(pair.theirs.name)
        done("vm_plain_lazy", compare(pair, "plain", "AA", timing, say))
        pair.both()
    say("legacy engine, one expression")
    sites.switch_workers({"N8N_EXPRESSION_ENGINE": "legacy"})
    sites.start_n8n({"N8N_EXPRESSION_ENGINE": "legacy"})
    prime(pair, "expression", timing)
    legacy = compare(pair, "expression", SHORT, timing, say)
    legacy["ratio_to_default"] = ratio(rates(legacy["runs"], "AC"), rates(result["vm"]["runs"], "B"))
    done("legacy", legacy)
    pair.both()
    return result


def guard_cost(ours: sites.Site, timing: dict[str, float], say: Say) -> dict[str, Any] | str:
    """Measure what the copy of each payload costs, by switching its trigger off and on."""
    rows = ours.sql("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgrelid = 'execution_data'::regclass")
    if not rows:
        return "the platform has no trigger on execution_data"
    names = rows.splitlines()
    runs: list[dict[str, Any]] = []
    try:
        for letter in "NFNF":
            verb = "ENABLE" if letter == "N" else "DISABLE"
            ours.sql(";".join(f'ALTER TABLE execution_data {verb} TRIGGER "{name}"' for name in names) + ";")
            run = host.drive(ours.job("expression", **timing))
            runs.append({"letter": letter, **run})
            say(f"  copy {'on ' if letter == 'N' else 'off'} {run['completions_per_s']:6.1f} completions/s")
    finally:
        ours.sql(";".join(f'ALTER TABLE execution_data ENABLE TRIGGER "{name}"' for name in names) + ";")
    on, off = rates(runs, "N"), rates(runs, "F")
    return {"triggers": names, "runs": runs, "on_per_s": spread(on), "off_per_s": spread(off), "ratio": ratio(on, off)}

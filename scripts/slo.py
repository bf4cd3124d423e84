# SPDX-License-Identifier: GPL-3.0-or-later
"""Write files/alerts/slo.yml: recording rules and burn-rate alerts from the one table of goals below.

python scripts/slo.py [--check]      --check writes nothing and fails if the file is out of date

Each goal is a share of good events. Its errors and its total are recorded as rates over five minutes; every longer
window is their average over that window, which weighs events, not minutes. A page means that the budget of 30 days
would be gone within two days (14.4 x) or five (6 x), a ticket within ten days (3 x) or thirty (1 x).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "files" / "alerts" / "slo.yml"
RUNBOOK = "https://github.com/dealscale/n8n_platform/blob/main/docs/runbooks/slo.md"
HEADER = "---\n# Written by `make dashboards` from scripts/slo.py; do not edit.\n"
PERIOD = "30d"

# Routers behind which n8n answers people and senders; refusals by rule (denied, too-large) are no answers of n8n.
_EDITOR = "api|editor|login|public"
_ROUTERS = f"hooks|{_EDITOR}"
_SERVER_ERROR = ',code=~"5.."'


def _router(names: str, more: str = "") -> str:
    """Return the labels of plain HTTP requests of some routers; event streams and web sockets last as they like."""
    return f'{{router=~"({names})@file",protocol="http"{more}}}'


def _within(names: str, seconds: str) -> str:
    """Return the rate of requests that took longer than ``seconds``, a bound of Traefik's histogram."""
    name = "traefik_router_request_duration_seconds"
    bound = f',le="{seconds}"'
    slow = f"sum(rate({name}_bucket{_router(names, bound)}[5m]))"
    return f"sum(rate({name}_count{_router(names)}[5m]))\n- {slow}"


@dataclass(frozen=True)
class Goal:
    """A goal: the share of good events, and where errors and total are measured (events a second).

    ``minimum`` is how many events the longer window must hold before anybody is told: one failure of three is no trend.
    ``alert`` is the beginning of the alerts' names; without it others watch the same thing.
    """

    name: str
    objective: float
    errors: str
    total: str
    what: str
    means: str
    service: str = "n8n"
    alert: str = ""
    minimum: int = 0


GOALS = (
    Goal(
        name="availability",
        objective=0.9995,
        errors=f"sum(rate(traefik_router_requests_total{_router(_ROUTERS, _SERVER_ERROR)}[5m]))",
        total=f"sum(rate(traefik_router_requests_total{_router(_ROUTERS)}[5m]))",
        what="of all requests ended with a server error",
        means="Senders of webhooks and people at the editor get errors.",
        alert="N8nAvailability",
        minimum=50,
    ),
    Goal(
        name="webhook-latency",
        objective=0.95,
        errors=_within("hooks", "0.5"),
        total=f"sum(rate(traefik_router_request_duration_seconds_count{_router('hooks')}[5m]))",
        what="of webhook calls were answered after more than 500 ms",
        means="Workflows that answer only when they are done count with all their time: let slow ones answer at once.",
        alert="N8nWebhookLatency",
        minimum=50,
    ),
    Goal(
        name="editor-latency",
        objective=0.95,
        errors=_within(_EDITOR, "0.2"),
        total=f"sum(rate(traefik_router_request_duration_seconds_count{_router(_EDITOR)}[5m]))",
        what="of requests of the editor and the API took more than 200 ms",
        means="People wait for the editor, programs for the API.",
        alert="N8nEditorLatency",
        minimum=100,
    ),
    Goal(
        name="execution-success",
        objective=0.99,
        errors='sum(rate(n8n_workflow_execution_duration_seconds_count{status="failed",'
        'mode!~"manual|integrated|error|evaluation"}[5m]))',
        total='sum(rate(n8n_workflow_execution_duration_seconds_count{mode!~"manual|integrated|error|evaluation"}[5m]))',
        what="of executions in production failed",
        means="Either a workflow or a service it calls is broken, or the platform is; the table of workflows tells.",
        alert="N8nExecutions",
        minimum=20,
    ),
    # A request that no workflow answers: its time is the platform's own, from the edge to the database and back.
    Goal(
        name="platform-overhead",
        objective=0.95,
        errors='sum(probe_duration_seconds{job="blackbox",probe="webhook"} > bool 0.15)',
        total='count(probe_duration_seconds{job="blackbox",probe="webhook"})',
        what="of requests without a workflow took more than 150 ms",
        means="N8nPlatformOverheadHigh tells of time lost within executions.",
    ),
    Goal(
        name="backup-freshness",
        objective=0.99,
        errors="max(time() - n8n_backup_last_success_timestamp_seconds > bool 26 * 3600)",
        total="count(n8n_backup_last_success_timestamp_seconds) > bool 0",
        what="of the time a backup was older than 26 hours",
        means="N8nBackupTooOld tells of it.",
        service="backup",
    ),
)


@dataclass(frozen=True)
class Speed:
    """How fast a budget may burn: pairs of windows with a factor of the budget, the longer window first."""

    suffix: str
    severity: str
    windows: tuple[tuple[str, str, float], ...]
    within: str


SPEEDS = (
    Speed("BurnsFast", "page", (("1h", "5m", 14.4), ("6h", "30m", 6)), "2 days"),
    Speed("BurnsSlowly", "ticket", (("1d", "2h", 3), ("3d", "6h", 1)), "10 to 30 days"),
)


def _ratio(window: str) -> str:
    """Return the expression of the share of errors over a window, for all goals at once."""
    if window == "5m":
        return "slo:sli_errors:rate5m / (slo:sli_total:rate5m > 0)"
    return f"avg_over_time(slo:sli_errors:rate5m[{window}]) / (avg_over_time(slo:sli_total:rate5m[{window}]) > 0)"


def recordings() -> list[dict[str, Any]]:
    """Return the groups of recording rules. Long windows are reckoned less often: they change slowly and cost most."""
    base: list[dict[str, Any]] = []
    for goal in GOALS:
        label = {"slo": goal.name}
        base.append({"record": "slo:objective:ratio", "expr": f"vector({goal.objective})", "labels": label})
        base.append({"record": "slo:sli_total:rate5m", "expr": goal.total, "labels": label})
        # No error has happened yet: there is no series of errors, but there is one of the total.
        base.append(
            {"record": "slo:sli_errors:rate5m", "expr": f"{goal.errors}\nor 0 * ({goal.total})\n", "labels": label}
        )
    short = [{"record": f"slo:sli_error:ratio_rate{w}", "expr": _ratio(w)} for w in ("5m", "30m", "1h", "2h", "6h")]
    long = [{"record": f"slo:sli_error:ratio_rate{w}", "expr": _ratio(w)} for w in ("1d", "3d", PERIOD)]
    left = f"1 - slo:sli_error:ratio_rate{PERIOD} / on (slo) (1 - slo:objective:ratio)"
    return [
        {"name": "n8n-slo", "interval": "30s", "rules": base + short},
        {
            "name": "n8n-slo-long",
            "interval": "2m",
            "rules": [*long, {"record": "slo:error_budget:remaining", "expr": left}],
        },
    ]


def _burns(goal: Goal, long: str, short: str, factor: float) -> str:
    """Return the condition of one pair of windows."""
    limit, label = f"{factor:g} * {round(1 - goal.objective, 6):g}", f'{{slo="{goal.name}"}}'
    condition = f"slo:sli_error:ratio_rate{long}{label} > {limit}\nand slo:sli_error:ratio_rate{short}{label} > {limit}"
    if goal.minimum:
        events = goal.total.replace("rate(", "increase(").replace("[5m]", f"[{long}]")
        condition += f"\nand on () {events} > {goal.minimum}"
    return condition


def alerts() -> dict[str, Any]:
    """Return the group of burn-rate alerts."""
    rules = []
    for goal in GOALS:
        for speed in SPEEDS if goal.alert else ():
            name = goal.alert + speed.suffix
            summary = (
                f"{{{{ $value | humanizePercentage }}}} {goal.what}; the goal allows {100 * (1 - goal.objective):g} %, "
                f"and the budget of 30 days would be gone within {speed.within}."
            )
            rules.append(
                {
                    "alert": name,
                    "expr": "\nor ".join(_burns(goal, *pair) for pair in speed.windows) + "\n",
                    "labels": {"severity": speed.severity, "service": goal.service},
                    "annotations": {
                        "summary": summary,
                        "description": goal.means,
                        "runbook_url": f"{RUNBOOK}#{name.lower()}",
                        "dashboard": "n8n-platform-home",
                    },
                }
            )
    return {"name": "n8n-slo-alerts", "rules": rules}


class Dumper(yaml.SafeDumper):
    """YAML as the rest of the repository is written: lists are indented, texts of several lines stay so."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists below their key."""
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        """Write what occurs twice twice."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


Dumper.add_representer(str, _text)


def render() -> str:
    """Return the file as a whole."""
    groups = {"groups": [*recordings(), alerts()]}
    return HEADER + yaml.dump(groups, Dumper=Dumper, sort_keys=False, width=150)


def main(arguments: Sequence[str]) -> int:
    """Write the file, or compare it."""
    wanted = render()
    if "--check" not in arguments:
        TARGET.write_text(wanted, encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != wanted:
        print(f"{TARGET.relative_to(ROOT)} is out of date; run: make dashboards", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

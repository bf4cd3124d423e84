# SPDX-License-Identifier: GPL-3.0-or-later
"""What queries ask for, and what there is: PromQL is parsed, metrics are those that real programs exposed."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import promql_parser as promql

from scripts.expositions import TARGET as EXPOSITIONS
from scripts.expositions import read
from tests.policy.repository import ROOT, load

# Labels that targets get, whatever they expose.
TARGET_LABELS = {"job", "instance", "process", "redis", "probe", "unit", "environment"}
# Metrics that a program exposes only after something happened that no recording waited for.
ON_DEMAND = {
    "n8n_audit_user_login_failed_total",
    "n8n_queue_job_stalled_total",
    "otelcol_exporter_enqueue_failed_log_records_total",
    "otelcol_exporter_enqueue_failed_spans_total",
    "loki_discarded_samples_total",
    "bridge_signature_failures_total",
    "up",
    "ALERTS",
}
GRAFANA = {"$__rate_interval": "5m", "$__range": "6h", "$__interval": "1m"}


def plain(expr: str) -> str:
    """Return a query as Grafana would send it."""
    for name, value in GRAFANA.items():
        expr = expr.replace(name, value)
    return re.sub(r"\$\{?\w+\}?", ".*", expr)


def selectors(expr: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield metric and labels of each selector of a query. Raises ValueError if it is no PromQL."""
    found: list[promql.VectorSelector] = []

    def visit(node: promql.Expr) -> bool:
        if isinstance(node, promql.VectorSelector):
            found.append(node)
        elif isinstance(node, promql.MatrixSelector):
            found.append(node.vector_selector)
        return True

    promql.walk(promql.parse(plain(expr)), visit)
    for selector in found:
        yield selector.name or "", {matcher.name: matcher.value for matcher in selector.matchers.matchers}


@functools.cache
def metrics() -> dict[str, set[str]]:
    """Return every metric that was recorded from a program or is recorded by a rule, and its labels."""
    known: dict[str, set[str]] = {}
    for path in sorted(EXPOSITIONS.glob("*.txt")):
        for name, labels in read(path).items():
            known.setdefault(name, set()).update(labels)
    for path in (ROOT / "files" / "alerts").glob("*.yml"):
        for rule in (rule for group in load(path)["groups"] for rule in group["rules"]):
            recorded = known.setdefault(rule.get("record", "ALERTS"), set())
            recorded |= set(rule.get("labels", {}))
            if "record" in rule:
                recorded |= set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", rule["expr"]))))
    known["ALERTS"] |= {"alertname", "alertstate"}
    # Recorded ratios keep the label of what they are made of.
    for name in known:
        known[name] |= {"slo"} if name.startswith("slo:") else set()
    return known


def wrong(expr: str) -> list[str]:
    """Return what is wrong with a query: its grammar, metrics or labels nobody exposes."""
    try:
        asked = list(selectors(expr))
    except ValueError as error:
        return [f"is no PromQL: {error}: {expr}"]
    problems = []
    for name, labels in asked:
        if not name and any(re.fullmatch(labels.get("__name__", ""), metric) for metric in metrics()):
            continue
        if name not in metrics():
            problems += [] if name in ON_DEMAND else [f"asks for {name}, which nothing exposes"]
        elif unknown := set(labels) - metrics()[name] - TARGET_LABELS:
            problems.append(f"asks for {name} by {', '.join(sorted(unknown))}, which it does not have")
    return problems

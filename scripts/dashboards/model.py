# SPDX-License-Identifier: GPL-3.0-or-later
"""What dashboards are made of: queries, panels, rows, variables; and how they become Grafana's JSON.

Panels flow from left to right in rows of 24 columns; ids and places follow from the order, so rendering is deterministic.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Json = dict[str, Any]

TAG = "n8n-platform"
# Grafana's classic model; newer servers migrate it when they load it.
SCHEMA_VERSION = 42
COLUMNS = 24
SOURCES = {"prometheus": "Prometheus", "loki": "Loki", "jaeger": "Jaeger"}
DURATIONS = ("ms", "s", "dtdurations")


def source(kind: str) -> Json:
    """Return the reference to a data source, which a variable of each dashboard holds."""
    return {"type": kind, "uid": f"${{{kind}}}"}


@dataclass(frozen=True)
class Query:
    """A question to a data source. ``legend`` names its series; ``instant`` asks for the newest value only."""

    expr: str
    legend: str = ""
    instant: bool = False
    kind: str = "prometheus"
    more: Json = field(default_factory=dict)

    def render(self, ref: str) -> Json:
        """Return it as Grafana stores it; tables get their values as a table."""
        target: Json = {"refId": ref, "datasource": source(self.kind), **self.more}
        if self.kind == "prometheus":
            target |= {"expr": self.expr, "editorMode": "code", "range": not self.instant, "instant": self.instant}
            target |= {
                "format": self.more.get("format", "table" if self.instant and self.legend == "" else "time_series")
            }
        elif self.kind == "loki":
            target |= {"expr": self.expr, "editorMode": "code", "queryType": "instant" if self.instant else "range"}
        if self.legend:
            target["legendFormat"] = self.legend
        return target


def loki(expr: str, legend: str = "") -> Query:
    """Return a question in LogQL."""
    return Query(expr, legend, kind="loki")


def jaeger(service: str, tags: str = "", limit: int = 20, minimum: str = "") -> Query:
    """Return a search for traces of a service by tags in Jaeger's spelling (logfmt)."""
    search: Json = {"queryType": "search", "service": service, "limit": limit}
    search |= {"tags": tags} if tags else {}
    search |= {"minDuration": minimum} if minimum else {}
    return Query("", kind="jaeger", more=search)


@dataclass(frozen=True)
class Step:
    """A colour from a value on; None: from below."""

    colour: str
    value: float | None = None


GREEN = (Step("green"),)


def above(warn: float, bad: float) -> tuple[Step, ...]:
    """Return colours for a value that should be low."""
    return (Step("green"), Step("orange", warn), Step("red", bad))


def below(bad: float, warn: float) -> tuple[Step, ...]:
    """Return colours for a value that should be high."""
    return (Step("red"), Step("orange", bad), Step("green", warn))


@dataclass(frozen=True)
class Panel:
    """A panel: what it shows, why that matters (``text``), and how."""

    kind: str
    title: str
    text: str
    queries: tuple[Query, ...]
    unit: str = "short"
    width: int = 8
    height: int = 8
    steps: tuple[Step, ...] = GREEN
    options: Json = field(default_factory=dict)
    custom: Json = field(default_factory=dict)
    defaults: Json = field(default_factory=dict)
    overrides: tuple[Json, ...] = ()
    transformations: tuple[Json, ...] = ()
    links: tuple[Json, ...] = ()

    def render(self, number: int, place: Json) -> Json:
        """Return it as Grafana stores it."""
        thresholds = {"mode": "absolute", "steps": [{"color": s.colour, "value": s.value} for s in self.steps]}
        defaults: Json = {
            "unit": self.unit,
            "thresholds": thresholds,
            "custom": self.custom,
            "mappings": [],
            **self.defaults,
        }
        if self.links:
            defaults["links"] = list(self.links)
        panel: Json = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.text,
            "gridPos": place,
            "datasource": source(self.queries[0].kind),
            "targets": [q.render(ref) for q, ref in zip(self.queries, string.ascii_uppercase, strict=False)],
            "fieldConfig": {"defaults": defaults, "overrides": list(self.overrides)},
            "options": self.options,
        }
        if self.transformations:
            panel["transformations"] = list(self.transformations)
        return panel


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice above the dashboard; ``query`` gives its values. Several can be chosen, and all of them at first."""

    name: str
    label: str
    query: str
    kind: str = "prometheus"

    def render(self) -> Json:
        """Return it as Grafana stores it."""
        query: Any = {"query": self.query, "refId": self.name}
        if self.kind == "loki":
            label, stream = self.query.split("|", 1)
            query = {"label": label, "stream": stream, "type": 1, "refId": self.name}
        return {
            "name": self.name,
            "label": self.label,
            "type": "query",
            "datasource": source(self.kind),
            "query": query,
            "definition": self.query,
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            # Loki takes no expression that matches the empty text alone.
            "allValue": ".+" if self.kind == "loki" else ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        }


@dataclass(frozen=True)
class Text:
    """A field above the dashboard that people type into."""

    name: str
    label: str
    default: str = ""

    def render(self) -> Json:
        """Return it as Grafana stores it."""
        chosen = {"selected": True, "text": self.default, "value": self.default}
        return {"name": self.name, "label": self.label, "type": "textbox", "query": self.default, "current": chosen}


@dataclass(frozen=True)
class Dashboard:
    """A dashboard; ``name`` gives its file and, with the tag before it, its uid."""

    name: str
    title: str
    text: str
    rows: tuple[Row, ...]
    variables: tuple[Variable | Text, ...] = ()
    annotations: tuple[Json, ...] = ()
    since: str = "now-6h"
    refresh: str = "1m"

    @property
    def uid(self) -> str:
        """The name by which others link to it."""
        return f"{TAG}-{self.name}"

    def render(self) -> Json:
        """Return the dashboard as Grafana stores it."""
        panels = place(self.rows)
        kinds = {target["datasource"]["type"] for panel in panels for target in panel.get("targets", [])}
        kinds |= {note["datasource"]["type"] for note in self.annotations}
        kinds |= {variable.kind for variable in self.variables if isinstance(variable, Variable)}
        choices = [_choice(kind) for kind in SOURCES if kind in kinds]
        built_in = {
            "name": "Notes",
            "builtIn": 1,
            "type": "dashboard",
            "datasource": {"type": "grafana", "uid": "-- Grafana --"},
            "enable": True,
            "hide": True,
            "iconColor": "blue",
        }
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.text,
            "tags": [TAG],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "timezone": "browser",
            "time": {"from": self.since, "to": "now"},
            "refresh": self.refresh,
            "links": [_menu()],
            "annotations": {"list": [built_in, *self.annotations]},
            "templating": {"list": [*choices, *(variable.render() for variable in self.variables)]},
            "panels": panels,
        }


def _choice(kind: str) -> Json:
    """Return the variable that holds a data source."""
    return {
        "name": kind,
        "label": SOURCES[kind],
        "type": "datasource",
        "query": kind,
        "hide": 2,
        "current": {"selected": True, "text": SOURCES[kind], "value": kind},
    }


def _menu() -> Json:
    """Return the menu of all dashboards of the platform."""
    return {
        "type": "dashboards",
        "title": "n8n platform",
        "tags": [TAG],
        "asDropdown": True,
        "keepTime": True,
        "includeVars": False,
        "targetBlank": False,
    }


def place(rows: Iterable[Row]) -> list[Json]:
    """Return the panels of all rows with numbers and places."""
    found: list[Json] = []
    top = 0
    for row in rows:
        at: Json = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        found.append(
            {"id": len(found) + 1, "type": "row", "title": row.title, "collapsed": False, "gridPos": at, "panels": []}
        )
        top, left, tall = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left, tall = top + tall, 0, 0
            at = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            found.append(panel.render(len(found) + 1, at))
            left, tall = left + panel.width, max(tall, panel.height)
        top += tall
    return found


def wide(panels: Sequence[Panel], width: int) -> tuple[Panel, ...]:
    """Return panels of one width."""
    return tuple(replace(panel, width=width) for panel in panels)

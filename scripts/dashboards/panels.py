# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of panels the dashboards use, the links between dashboards, and the annotations they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from scripts.dashboards.model import GREEN, TAG, Json, Panel, Query, Step, loki, source

Lines = Sequence[tuple[str, str]]


def lines(pairs: Lines) -> tuple[Query, ...]:
    """Return questions from pairs of expression and legend."""
    return tuple(Query(expr, legend) for expr, legend in pairs)


def number(
    title: str,
    text: str,
    expr: str,
    unit: str = "short",
    steps: tuple[Step, ...] = GREEN,
    width: int = 4,
    links: tuple[Json, ...] = (),
) -> Panel:
    """Return one number, coloured by its value."""
    options: Json = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background" if len(steps) > 1 else "value",
        "graphMode": "none",
        "textMode": "auto",
        "justifyMode": "auto",
    }
    query = Query(expr, "value", instant=True)
    return Panel("stat", title, text, (query,), unit, width, 4, steps, options, links=links)


def words(title: str, text: str, expr: str, legend: str, width: int = 4) -> Panel:
    """Return the labels of series as text."""
    options: Json = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "none",
        "graphMode": "none",
        "textMode": "name",
        "justifyMode": "auto",
    }
    return Panel("stat", title, text, (Query(expr, legend, instant=True),), "short", width, 4, GREEN, options)


def graph(
    title: str,
    text: str,
    pairs: Lines,
    unit: str = "short",
    width: int = 8,
    stacked: bool = False,
    steps: tuple[Step, ...] = GREEN,
    links: tuple[Json, ...] = (),
    logs: bool = False,
) -> Panel:
    """Return lines over time; with steps, limits are drawn as dashed lines. ``logs``: the questions are LogQL."""
    queries = tuple(loki(expr, legend) for expr, legend in pairs) if logs else lines(pairs)
    custom: Json = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 40 if stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if len(steps) > 1 else "off"},
    }
    options: Json = {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "calcs": ["mean", "max", "lastNotNull"],
            "showLegend": True,
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return Panel("timeseries", title, text, queries, unit, width, 8, steps, options, custom, {"min": 0}, links=links)


def heat(title: str, text: str, expr: str, unit: str = "s", width: int = 8) -> Panel:
    """Return a heat map of a histogram (rates by le)."""
    options: Json = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5},
        "yAxis": {"unit": unit},
        "tooltip": {"mode": "single", "yHistogram": False},
        "legend": {"show": False},
    }
    query = Query(expr, "{{le}}", more={"format": "heatmap"})
    return Panel("heatmap", title, text, (query,), unit, width, 8, GREEN, options)


def table(
    title: str,
    text: str,
    columns: Sequence[tuple[str, str, str]],
    labels: dict[str, str],
    width: int = 24,
    height: int = 9,
    links: Mapping[str, tuple[Json, ...]] | None = None,
) -> Panel:
    """Return a table of newest values: ``columns`` are (heading, expression, unit), ``labels`` {label: heading}.

    ``links`` are given by heading. Rows are joined by all labels that the answers share.
    """
    queries = tuple(Query(expr, instant=True) for _, expr, _ in columns)
    many = len(columns) > 1
    values = {(f"Value #{chr(65 + i)}" if many else "Value"): heading for i, (heading, _, _) in enumerate(columns)}
    names = [*labels.values(), *values.values()]
    shown = {**{label: position for position, label in enumerate(labels)}}
    shown |= {value: len(labels) + position for position, value in enumerate(values)}
    organize: Json = {
        "id": "organize",
        "options": {"excludeByName": {"Time": True}, "indexByName": shown, "renameByName": {**labels, **values}},
    }
    merge: list[Json] = [{"id": "merge", "options": {}}] if many else []
    keep: Json = {"id": "filterFieldsByName", "options": {"include": {"names": names}}}
    overrides = [
        {"matcher": {"id": "byName", "options": heading}, "properties": [{"id": "unit", "value": unit}]}
        for heading, _, unit in columns
    ]
    for heading, targets in (links or {}).items():
        properties = [{"id": "links", "value": list(targets)}]
        overrides.append({"matcher": {"id": "byName", "options": heading}, "properties": properties})
    options: Json = {"showHeader": True, "cellHeight": "sm", "sortBy": [{"displayName": columns[0][0], "desc": True}]}
    return Panel(
        "table",
        title,
        text,
        queries,
        "short",
        width,
        height,
        GREEN,
        options,
        {"filterable": True, "align": "auto"},
        overrides=tuple(overrides),
        transformations=(*merge, organize, keep),
    )


def bars(
    title: str,
    text: str,
    expr: str,
    legend: str,
    unit: str,
    steps: tuple[Step, ...],
    width: int = 8,
    most: float | None = None,
) -> Panel:
    """Return one bar for each series."""
    options: Json = {
        "orientation": "horizontal",
        "displayMode": "basic",
        "valueMode": "color",
        "showUnfilled": True,
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    defaults: Json = {"min": 0} if most is None else {"min": 0, "max": most}
    return Panel(
        "bargauge", title, text, (Query(expr, legend, instant=True),), unit, width, 8, steps, options, defaults=defaults
    )


def states(title: str, text: str, expr: str, legend: str, width: int = 12, height: int = 8) -> Panel:
    """Return what was up (1) and down (0) over time."""
    up_down: Json = {
        "type": "value",
        "options": {
            "0": {"text": "down", "color": "red", "index": 0},
            "1": {"text": "up", "color": "green", "index": 1},
        },
    }
    options: Json = {"showValue": "never", "mergeValues": True, "rowHeight": 0.8, "legend": {"showLegend": False}}
    query = (Query(expr, legend),)
    custom: Json = {"fillOpacity": 80, "lineWidth": 0}
    return Panel(
        "state-timeline", title, text, query, "short", width, height, GREEN, options, custom, {"mappings": [up_down]}
    )


def log_lines(title: str, text: str, expr: str, width: int = 24, height: int = 12) -> Panel:
    """Return log lines, newest first."""
    options: Json = {
        "showTime": True,
        "wrapLogMessage": True,
        "enableLogDetails": True,
        "sortOrder": "Descending",
        "dedupStrategy": "none",
        "prettifyLogMessage": False,
    }
    return Panel("logs", title, text, (loki(expr),), "short", width, height, GREEN, options)


def trace_list(title: str, text: str, query: Query, width: int = 12) -> Panel:
    """Return traces that a search finds; a click opens one."""
    return Panel("table", title, text, (query,), "short", width, 10, GREEN, {"showHeader": True, "cellHeight": "sm"})


def to(name: str, title: str, parameters: str = "") -> Json:
    """Return a link to another dashboard for the same time."""
    return {"title": title, "url": f"/d/{TAG}-{name}?${{__url_time_range}}{parameters}", "targetBlank": False}


def _note(name: str, expr: str, colour: str, title: str, text: str, at_value: bool) -> Json:
    """Return annotations from a metric; ``at_value``: its value is the moment, in milliseconds."""
    return {
        "name": name,
        "datasource": source("prometheus"),
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "expr": expr,
        "step": "60s",
        "titleFormat": title,
        "textFormat": text,
        "tagKeys": "instance,process,severity",
        "useValueForTime": at_value,
    }


DEPLOYS = _note(
    "Deployments", "n8n_platform_deploy_timestamp_seconds * 1000", "purple", "Deployment", "{{instance}}", True
)
RESTARTS = _note(
    "Restarts of n8n", "n8n_process_start_time_seconds * 1000", "orange", "Start", "{{process}} on {{instance}}", True
)
BACKUPS = _note(
    "Backups", "n8n_backup_last_run_timestamp_seconds * 1000", "blue", "Backup", "{{kind}} of {{instance}}", True
)
PAGES = _note(
    "Alerts", 'ALERTS{alertstate="firing",severity="page"}', "red", "{{alertname}}", "{{service}} {{instance}}", False
)
SHARED = (DEPLOYS, RESTARTS, BACKUPS, PAGES)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Every query of the dashboards and rules, ready to be asked: variables replaced, metric names found."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = sorted((ROOT / "files" / "dashboards").glob("*.json"))
# What this scenario's host does not run.
ABSENT = {"automation", "bridge", "pulsar"}
RULES = [path for path in sorted((ROOT / "files" / "alerts").glob("*.yml")) if path.stem not in ABSENT]
BUILT_IN = {
    "__rate_interval": "5m",
    "__interval": "1m",
    "__interval_ms": "60000",
    "__range": "30m",
    "__range_s": "1800",
    "__range_ms": "1800000",
    "__auto": "1m",
}
VARIABLE = re.compile(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)|\[\[(\w+)\]\]")
# Words of PromQL that look like metric names.
WORDS = {
    *("and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset", "inf"),
    *("nan", "atan2", "start", "end", "e", "Inf", "NaN"),
}


@dataclass(frozen=True)
class Query:
    """One query and where it stands."""

    page: str
    panel: str
    source: str
    text: str
    # What is sent besides the text, for Jaeger.
    fields: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        """Where it is, and the query."""
        return f"{self.page} / {self.panel} ({self.source}): {self.text or dict(self.fields)}"


def panels(page: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Return the panels of a page, those in closed rows too."""
    for panel in page.get("panels", []):
        yield panel
        yield from panels(panel)


def source_of(*holders: Mapping[str, Any]) -> str:
    """Return the kind of data source of the first holder that names one."""
    for holder in holders:
        source = holder.get("datasource")
        if isinstance(source, dict) and source.get("type") in ("prometheus", "loki", "jaeger", "alertmanager"):
            return str(source["type"])
    return "prometheus"


def values_of(page: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """Return a value for each variable of a page: what a person would type (given), its own, or everything."""
    found = dict(BUILT_IN)
    for variable in page.get("templating", {}).get("list", []):
        name, kind = variable["name"], variable["type"]
        current = (variable.get("current") or {}).get("value", "")
        if isinstance(current, list):
            current = "|".join(current)
        if kind == "textbox":
            found[name] = given.get(name, str(current))
        elif kind == "constant":
            found[name] = str(variable.get("query", ""))
        elif kind in ("custom", "interval") and current and current != "$__all":
            found[name] = str(current)
        else:
            found[name] = str(variable.get("allValue") or ".*")
    return found


def expand(text: str, values: Mapping[str, str]) -> str:
    """Return a query with its variables replaced."""
    return VARIABLE.sub(lambda match: values.get(match[1] or match[2] or match[3], ".*"), text)


def of_page(path: Path, given: Mapping[str, str]) -> Iterator[Query]:
    """Return the queries of a dashboard: panels, annotations and the lists of its variables."""
    page = json.loads(path.read_text(encoding="utf-8"))
    values = values_of(page, given)
    for panel in panels(page):
        for target in panel.get("targets", []):
            source = source_of(target, panel)
            text = expand(str(target.get("expr") or target.get("query") or ""), values)
            names = ("service", "operation", "tags", "queryType")
            fields = tuple((name, expand(str(target[name]), values)) for name in names if target.get(name))
            if text or fields:
                yield Query(path.stem, panel.get("title", ""), source, text, fields if source == "jaeger" else ())
    for annotation in page.get("annotations", {}).get("list", []):
        text = annotation.get("expr") or (annotation.get("target") or {}).get("expr") or ""
        if text:
            name = f"annotation {annotation['name']}"
            yield Query(path.stem, name, source_of(annotation), expand(text, values))


def of_pages(given: Mapping[str, str]) -> list[Query]:
    """Return the queries of all dashboards about something that is there."""
    return [query for path in DASHBOARDS if path.stem not in ABSENT for query in of_page(path, given)]


def rules() -> list[dict[str, Any]]:
    """Return all rules about something that is there."""
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in RULES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def metric_names(text: str) -> set[str]:
    """Return the names of metrics in a PromQL query."""
    text = re.sub(r"#[^\n]*", "", text)
    text = re.sub(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'', '""', text)
    named = set(re.findall(r'__name__\s*=\s*"(\w+)"', text))
    text = re.sub(r"\{[^}]*\}", " ", text)
    text = re.sub(r"\[[^\]]*\]", " ", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    words = re.findall(r"(?<![\w.:])([A-Za-z_:][\w:]*)(?!\w*\s*\()", text)
    return named | {word for word in words if word not in WORDS and not re.fullmatch(r"\d.*", word)}


def links(page: Mapping[str, Any]) -> Iterator[str]:
    """Return every address a page leads to."""
    for key, value in page.items():
        if key == "url" and isinstance(value, str):
            yield value
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict):
                yield from links(entry)

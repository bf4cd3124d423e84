# SPDX-License-Identifier: GPL-3.0-or-later
"""Dashboards are what their code says, ask for what there is, explain themselves and lead somewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import slo
from scripts.dashboards.__main__ import ALL, render
from scripts.expositions import TARGET as EXPOSITIONS
from scripts.expositions import read
from tests.policy.promql import selectors, wrong
from tests.policy.repository import ROOT, load, report

FILES = sorted((ROOT / "files" / "dashboards").glob("*.json"))
NAMES = {
    *("home", "executions", "workers-queue", "automation", "bridge", "pulsar", "postgres", "redis", "traefik", "host"),
    *("logs", "traces", "backups"),
}
KINDS = ("prometheus", "loki", "jaeger")


def board(path: Path) -> Any:
    """Return a dashboard."""
    return json.loads(path.read_text(encoding="utf-8"))


def panels(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the panels of a dashboard that ask something."""
    for panel in board(path)["panels"]:
        if panel["type"] != "row":
            yield panel


def expressions(path: Path) -> Iterator[tuple[str, str]]:
    """Yield every PromQL query of a dashboard and where it is."""
    content = board(path)
    for panel in panels(path):
        for target in panel["targets"]:
            if target["datasource"]["type"] == "prometheus":
                yield panel["title"], target["expr"]
    for note in content["annotations"]["list"]:
        if not note.get("builtIn"):
            yield f"annotation {note['name']}", note["expr"]
    for variable in content["templating"]["list"]:
        if variable["type"] == "query" and variable["datasource"]["type"] == "prometheus":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert match, variable["name"]
            yield f"variable {variable['name']}", f"count by ({match[2]}) ({match[1]})"


def test_files_are_what_the_code_says() -> None:
    there = {path.name: path.read_text(encoding="utf-8") for path in FILES}
    assert there == render(), "run: make dashboards"
    assert slo.TARGET.read_text(encoding="utf-8") == slo.render(), "run: make dashboards"


def test_all_dashboards_are_there() -> None:
    assert {path.stem for path in FILES} == NAMES
    assert len({dashboard.title for dashboard in ALL}) == len(ALL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dashboards_introduce_themselves(path: Path) -> None:
    content = board(path)
    assert content["uid"] == f"n8n-platform-{path.stem}"
    assert content["tags"] == ["n8n-platform"]
    assert content["description"].endswith(".")
    assert content["links"][0]["tags"] == ["n8n-platform"]
    assert not content["editable"]
    notes = [note["name"] for note in content["annotations"]["list"]]
    assert notes[1:] == ["Deployments", "Restarts of n8n", "Backups", "Alerts"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_explain_themselves(path: Path) -> None:
    problems = []
    ids = [panel["id"] for panel in board(path)["panels"]]
    if len(ids) != len(set(ids)):
        problems.append("ids occur twice")
    for panel in panels(path):
        if not panel["title"] or not re.search(r"[.)]$", panel["description"]):
            problems.append(f"{panel['title']}: needs a title and a description of whole sentences")
        if not panel["fieldConfig"]["defaults"]["unit"]:
            problems.append(f"{panel['title']}: has no unit")
        if not panel["targets"]:
            problems.append(f"{panel['title']}: asks nothing")
        for target in panel["targets"]:
            kind = target["datasource"]["type"]
            if kind not in KINDS or target["datasource"]["uid"] != f"${{{kind}}}":
                problems.append(f"{panel['title']}: its data source is no variable")
    report(problems)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_do_not_overlap(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    problems = []
    for panel in board(path)["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        if cells & taken or place["x"] + place["w"] > 24:
            problems.append(f"{panel['title']}: lies on another panel or beside the page")
        taken |= cells
    report(problems)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dashboards_ask_for_what_there_is(path: Path) -> None:
    report([f"{where}: {problem}" for where, expr in expressions(path) for problem in wrong(expr)])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_lines_follow_the_chosen_time(path: Path) -> None:
    """A rate drawn as a line uses Grafana's interval, or it misses what happens between two points."""
    problems = []
    for panel in panels(path):
        for target in panel["targets"]:
            if panel["type"] in ("timeseries", "heatmap") and target["datasource"]["type"] == "prometheus":
                windows = re.findall(r"\brate\((?:[^][]|\[(?!\$))*?\[(\d\w+)\]", target["expr"])
                problems += [f"{panel['title']}: a rate over {window}" for window in windows]
            if (
                panel["type"] == "timeseries"
                and target["datasource"]["type"] == "loki"
                and "$__auto" not in target["expr"]
            ):
                problems.append(f"{panel['title']}: a window of its own")
    report(problems)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_variables_are_defined(path: Path) -> None:
    content = board(path)
    known = {variable["name"] for variable in content["templating"]["list"]}
    used = set(re.findall(r"\$\{?(?!__)([a-z]\w*)", json.dumps(content["panels"])))
    assert used <= known, f"not defined: {used - known}"
    plain = {name for name in known - set(KINDS) if not re.search(rf"\${{?{name}\b", json.dumps(content))}
    assert not plain, f"not used: {plain}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_links_lead_to_dashboards(path: Path) -> None:
    problems = []
    for uid, rest in re.findall(r'"/d/([\w-]+)\?([^"]*)"', path.read_text(encoding="utf-8")):
        target = ROOT / "files" / "dashboards" / f"{uid.removeprefix('n8n-platform-')}.json"
        if not target.is_file():
            problems.append(f"there is no dashboard {uid}")
            continue
        known = {variable["name"] for variable in board(target)["templating"]["list"]}
        problems += [f"{uid} has no variable {name}" for name in re.findall(r"var-(\w+)=", rest) if name not in known]
    report(problems)


@pytest.mark.parametrize("path", sorted((ROOT / "files" / "alerts").glob("*.yml")), ids=lambda path: path.stem)
def test_rules_ask_for_what_there_is(path: Path) -> None:
    rules = [rule for group in load(path)["groups"] for rule in group["rules"]]
    report([f"{rule.get('alert', rule.get('record'))}: {problem}" for rule in rules for problem in wrong(rule["expr"])])


def test_nothing_asks_for_what_is_not_kept() -> None:
    """Prometheus drops series that nobody asks for; it must not drop others."""
    dropped = load(ROOT / "roles" / "prometheus" / "defaults" / "main.yml")["prometheus_dropped_metrics"]
    asked = {name for path in FILES for _, expr in expressions(path) for name, _ in selectors(expr)}
    for path in (ROOT / "files" / "alerts").glob("*.yml"):
        rules = [rule for group in load(path)["groups"] for rule in group["rules"]]
        asked |= {name for rule in rules for name, _ in selectors(rule["expr"])}
    exposed = {job: set(read(EXPOSITIONS / f"{job}.txt")) for job in dropped}
    assert all(exposed.values())
    report(
        [
            f"{name} of {job} is dropped"
            for job, names in dropped.items()
            for name in asked & exposed[job]
            if re.fullmatch(names, name)
        ]
    )


@pytest.mark.parametrize(
    ("expr", "problem"),
    [
        ("sum(rate(pg_up[5m])", "is no PromQL"),
        ("pg_upp", "which nothing exposes"),
        ('pg_up{host="a"}', "which it does not have"),
        ('sum(rate(redis_commands_total{cmd="get",redis="queue"}[$__rate_interval]))', ""),
    ],
)
def test_wrong_queries_are_noticed(expr: str, problem: str) -> None:
    assert problem in " ".join(wrong(expr))
    assert bool(wrong(expr)) == bool(problem)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what dashboards are made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.dashboards import __main__ as program
from scripts.dashboards.model import (
    Dashboard,
    Panel,
    Query,
    Row,
    Step,
    Text,
    Variable,
    above,
    below,
    jaeger,
    loki,
    place,
)
from scripts.dashboards.panels import graph, number, table, to


def panel(title: str, width: int, height: int = 4) -> Panel:
    return Panel("stat", title, "What it is.", (Query("up"),), width=width, height=height)


def test_panels_flow_from_left_to_right() -> None:
    rows = (Row("First", (panel("a", 12, 4), panel("b", 12, 8), panel("c", 6))), Row("Second", (panel("d", 24),)))
    places = {p["title"]: tuple(p["gridPos"][key] for key in "xywh") for p in place(rows)}
    assert places == {
        "First": (0, 0, 24, 1),
        "a": (0, 1, 12, 4),
        "b": (12, 1, 12, 8),
        "c": (0, 9, 6, 4),
        "Second": (0, 13, 24, 1),
        "d": (0, 14, 24, 4),
    }
    assert [p["id"] for p in place(rows)] == [1, 2, 3, 4, 5, 6]


def test_colours_follow_values() -> None:
    assert above(1, 5) == (Step("green"), Step("orange", 1), Step("red", 5))
    assert below(1, 5) == (Step("red"), Step("orange", 1), Step("green", 5))


def test_queries_name_their_source_by_variable() -> None:
    assert Query("up", "{{job}}").render("A") == {
        "refId": "A",
        "datasource": {"type": "prometheus", "uid": "${prometheus}"},
        "expr": "up",
        "editorMode": "code",
        "range": True,
        "instant": False,
        "format": "time_series",
        "legendFormat": "{{job}}",
    }
    assert Query("up", instant=True).render("B")["format"] == "table"
    assert loki("{a=~`.+`}").render("A")["queryType"] == "range"
    search = jaeger("n8n", "error=true", minimum="5s").render("A")
    assert (search["queryType"], search["service"], search["tags"], search["minDuration"]) == (
        "search",
        "n8n",
        "error=true",
        "5s",
    )


def test_variables_ask_their_source() -> None:
    prometheus = Variable("instance", "Host", "label_values(up, instance)").render()
    assert (prometheus["query"]["query"], prometheus["allValue"]) == ("label_values(up, instance)", ".*")
    streams = Variable("service", "Service", 'service_name|{service_name=~".+"}', "loki").render()
    assert (streams["query"]["label"], streams["query"]["stream"]) == ("service_name", '{service_name=~".+"}')
    assert streams["allValue"] == ".+"
    assert Text("search", "Search", "x").render()["current"]["value"] == "x"


def test_a_dashboard_chooses_the_sources_it_uses() -> None:
    board = Dashboard("a", "A", "It is.", (Row("R", (panel("p", 4),)),), (Variable("s", "S", "a|{}", "loki"),)).render()
    assert board["uid"] == "n8n-platform-a"
    assert [v["name"] for v in board["templating"]["list"]] == ["prometheus", "loki", "s"]


def test_tables_give_their_columns_names() -> None:
    columns = (("Runs", "sum by (a) (x)", "short"), ("Time", "sum by (a) (y)", "s"))
    drawn = table("T", "What.", columns, {"a": "Name"}, links={"Name": (to("logs", "Logs"),)})
    names = {t["id"]: t["options"] for t in drawn.transformations}
    assert names["organize"]["renameByName"] == {"a": "Name", "Value #A": "Runs", "Value #B": "Time"}
    assert names["filterFieldsByName"] == {"include": {"names": ["Name", "Runs", "Time"]}}
    assert [o["matcher"]["options"] for o in drawn.overrides] == ["Runs", "Time", "Name"]
    one = table("T", "What.", columns[:1], {"a": "Name"})
    assert one.transformations[0]["options"]["renameByName"] == {"a": "Name", "Value": "Runs"}


def test_limits_are_drawn_and_numbers_coloured() -> None:
    assert graph("G", "What.", (("up", "x"),), steps=above(1, 2)).custom["thresholdsStyle"] == {"mode": "dashed"}
    assert graph("G", "What.", (("up", "x"),)).custom["thresholdsStyle"] == {"mode": "off"}
    assert number("N", "What.", "up", steps=above(1, 2)).options["colorMode"] == "background"


def test_the_program_writes_removes_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "TARGET", tmp_path / "dashboards")
    assert program.main([]) == 0
    (tmp_path / "dashboards" / "old.json").write_text("{}", encoding="utf-8")
    assert program.main(["--check"]) == 1
    assert "old.json is out of date" in capsys.readouterr().err
    assert program.main([]) == 0
    assert program.main(["--check"]) == 0
    assert json.loads((tmp_path / "dashboards" / "home.json").read_text(encoding="utf-8"))["uid"] == "n8n-platform-home"

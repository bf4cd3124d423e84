"""Every page, rule and name is asked against live data: a panel that shows nothing fails unless it is listed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest

from molecule.observability import queries
from molecule.observability.driver import JAEGER, LOKI, PROMETHEUS, Stack
from molecule.observability.queries import Query
from molecule.observability.tests.conftest import Runs
from molecule.observability.tests.empty import EMPTY_PANELS, MISSING_METRICS
from molecule.waiting import until


@pytest.fixture(scope="module")
def asked(stack: Stack, runs: Runs) -> dict[Query, tuple[int, str, bool]]:
    """Return each query of all pages with status, answer and whether there was anything in it."""
    given = {"execution": str(runs.good[-1]), "workflow": "Observability good", "search": ""}
    todo = queries.of_pages(given)
    now = int(stack.run("date +%s"))
    questions: list[tuple[str, dict[str, object]]] = []
    for query in todo:
        window = {"start": now - 1800, "end": now}
        if query.source == "loki":
            questions.append((f"{LOKI}/query_range", {"query": query.text, "step": 60, "limit": 20, **window}))
        elif query.source == "jaeger":
            questions.append((f"{JAEGER}/traces", {**jaeger(query), "lookback": "1h", "limit": 20}))
        else:
            questions.append((f"{PROMETHEUS}/query_range", {"query": query.text, "step": 15, **window}))
    answers = stack.ask(*questions)
    return {
        query: (answer.status, answer.body, answer.status == 200 and something(query, answer.body))
        for query, answer in zip(todo, answers, strict=True)
    }


def jaeger(query: Query) -> dict[str, str]:
    """Return what Jaeger is asked for a target of a panel; its tags are written as key=value."""
    fields = {key: value for key, value in query.fields if key in ("service", "operation") and value != ".*"}
    tags = dict(query.fields).get("tags", "")
    pairs = {key: quoted or plain for key, quoted, plain in re.findall(r'([\w.]+)=(?:"([^"]*)"|(\S+))', tags)}
    return {"service": "n8n", **fields, **({"tags": json.dumps(pairs)} if pairs else {})}


def something(query: Query, body: str) -> bool:
    """Tell whether an answer holds data: a series with a number, a line, a trace."""
    data = json.loads(body)["data"]
    if query.source == "jaeger":
        return bool(data)
    series = data["result"]
    if data["resultType"] == "streams":
        return bool(series)
    return any(value != "NaN" for one in series for _, value in one["values"])


def test_there_are_pages_and_rules() -> None:
    assert {path.stem for path in queries.DASHBOARDS} >= {
        *("home", "executions", "workers-queue", "postgres", "redis", "traefik", "host", "logs", "traces", "backups")
    }
    assert len(queries.rules()) > 50


def test_every_query_is_understood(asked: dict[Query, tuple[int, str, bool]]) -> None:
    wrong = [f"{query}\n      {status}: {body[:200]}" for query, (status, body, _) in asked.items() if status != 200]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_panel_shows_something(asked: dict[Query, tuple[int, str, bool]]) -> None:
    """A panel with several queries shows something if one of them does."""
    shown: dict[tuple[str, str], bool] = {}
    for query, (_, _, found) in asked.items():
        key = (query.page, query.panel)
        shown[key] = shown.get(key, False) or found
    empty = {key for key, found in shown.items() if not found}
    unexpected = [str(query) for query in asked if (query.page, query.panel) in empty - set(EMPTY_PANELS)]
    assert not unexpected, "\n" + "\n".join(unexpected)
    known = set(shown)
    assert not set(EMPTY_PANELS) - known, f"listed but not there: {set(EMPTY_PANELS) - known}"


def test_every_rule_works(stack: Stack) -> None:
    until(lambda: all(rule["health"] != "unknown" for rule in loaded(stack)), 120, "every rule was worked out once")
    found = list(loaded(stack))
    assert [f"{rule['name']}: {rule.get('lastError')}" for rule in found if rule["health"] != "ok"] == []
    names = {rule["name"] for rule in found}
    wanted = {rule.get("alert") or rule["record"] for rule in queries.rules()}
    assert wanted - names == set()
    # The expectation of the inventory.
    assert any("obsGood000000001" in rule["query"] for rule in found)


def loaded(stack: Stack) -> Iterator[dict[str, str]]:
    """Return the rules Prometheus has."""
    for group in stack.ask((f"{PROMETHEUS}/rules", {}))[0].data["data"]["groups"]:
        yield from group["rules"]


def test_every_metric_exists(stack: Stack, asked: dict[Query, tuple[int, str, bool]]) -> None:
    used: dict[str, set[str]] = {}
    for query in asked:
        for name in queries.metric_names(query.text) if query.source == "prometheus" else ():
            used.setdefault(name, set()).add(f"{query.page} / {query.panel}")
    for rule in queries.rules():
        for name in queries.metric_names(rule["expr"]):
            used.setdefault(name, set()).add(str(rule.get("alert") or rule["record"]))
    existing = set(stack.ask((f"{PROMETHEUS}/label/__name__/values", {}))[0].data["data"])
    existing |= {"ALERTS", "ALERTS_FOR_STATE"}
    missing = {name: sorted(where)[:3] for name, where in used.items() if name not in existing}
    unexpected = [f"{name}: {', '.join(where)}" for name, where in missing.items() if name not in MISSING_METRICS]
    assert not unexpected, "\n" + "\n".join(sorted(unexpected))
    assert not MISSING_METRICS.keys() - used.keys(), "listed but not used"


def test_links_lead_to_pages_that_exist() -> None:
    pages = {json.loads(path.read_text(encoding="utf-8"))["uid"] for path in queries.DASHBOARDS}
    wrong = []
    for path in queries.DASHBOARDS:
        for address in queries.links(json.loads(path.read_text(encoding="utf-8"))):
            if (found := re.match(r"/?d/([\w-]+)", address)) and found[1] not in pages:
                wrong.append(f"{path.stem}: {address}")
    assert wrong == []
    for rule in queries.rules():
        if "alert" in rule:
            assert rule["annotations"]["dashboard"] in pages, rule["alert"]


def test_pages_are_what_grafana_gets(stack: Stack, show: Callable[[str], None]) -> None:
    directory = "/etc/n8n-platform/grafana/dashboards"
    for path in queries.DASHBOARDS:
        assert stack.run(f"cat {directory}/{path.name}") == path.read_text(encoding="utf-8")
    show(f"{len(queries.DASHBOARDS)} pages, {len(queries.rules())} rules")

# SPDX-License-Identifier: GPL-3.0-or-later
"""Routing: which route takes an event, what the file may hold, and how it is replaced while all runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from n8n_platform.bridge.ids import dead_letter_topic, pulsar_topic
from n8n_platform.bridge.routes_file import RouteFile, load, parse
from n8n_platform.bridge.routing import (
    Backoff,
    NoRouteError,
    Pattern,
    Route,
    Routes,
    RoutesError,
    topic_name,
)

EXAMPLE = Path(__file__).resolve().parents[3] / "bridge" / "routes.example.yml"
NAMES = st.text(st.sampled_from("abz09-_"), min_size=1, max_size=12)
GOOD = """\
version: 1
defaults: {timeout_seconds: 10}
routes:
  - name: one
    match: {type: "a.*", tenant: [acme, "b*"]}
    topic: dealscale.workflow.short
    webhook: /webhook/one
  - name: rest
    webhook: /webhook/rest
"""


def problems(text: str) -> list[tuple[int, str]]:
    with pytest.raises(RoutesError) as caught:
        parse(text)
    return caught.value.problems


def problems_of(text: str) -> list[tuple[int, str]]:
    """Return the problems of a text that may also be right."""
    try:
        parse(text)
    except RoutesError as error:
        return error.problems
    return []


def problem(text: str) -> str:
    """Return the only problem of the text of one route that is otherwise right."""
    found = problems("version: 1\nroutes:\n  - " + text.replace("\n", "\n    "))
    assert len(found) == 1, found
    return found[0][1]


def test_the_example_is_right() -> None:
    routes = load(EXAMPLE)
    assert routes.decide("acme", "order.created").name == "orders"
    report = routes.decide("acme", "report.daily", "sales-report")
    assert (report.name, report.path("acme", "report.daily", "sales-report")) == ("reports", "/webhook/sales-report")
    assert report.retry_statuses == {404}
    assert routes.decide("acme", "direct.x").backoff == Backoff(5, 2, 600)
    assert routes.decide("acme", "analytics.view").webhook is None
    assert routes.topics == [
        "dealscale.ai.inference",
        "dealscale.analytics.events",
        "dealscale.workflow.long",
        "dealscale.workflow.short",
    ]
    with pytest.raises(NoRouteError, match=r"no route takes type 'direct.x', workflow None of tenant 'other'"):
        routes.decide("other", "direct.x")


def test_the_first_route_that_matches_wins() -> None:
    routes = parse(GOOD)
    one, rest = routes.routes
    assert (one.via, rest.via) == ("topic", "queue")
    assert one.timeout_s == rest.timeout_s == 10
    assert routes.decide("bob", "a.b") is one
    assert routes.decide("carl", "a.b") is rest
    assert routes.decide("acme", "A.b") is rest
    assert routes.by_name["rest"] is rest


@given(tenant=st.text(max_size=9), kind=st.text(max_size=9), workflow=st.none() | st.text(max_size=9))
def test_any_event_finds_the_first_that_takes_it(tenant: str, kind: str, workflow: str | None) -> None:
    routes = parse(GOOD)
    decided = routes.decide(tenant, kind, workflow)
    assert decided == next(route for route in routes.routes if route.takes(tenant, kind, workflow))


@given(st.lists(NAMES, unique=True, max_size=6), st.integers(1, 1000), st.floats(0.1, 3600))
def test_what_is_written_is_read(names: list[str], attempts: int, timeout: float) -> None:
    entries: list[dict[str, Any]] = [
        {
            "name": name,
            "match": {"type": f"{name}.*"},
            "webhook": f"/webhook/{name}",
            "max_attempts": attempts,
            "timeout_seconds": timeout,
        }
        for name in names
    ]
    routes = parse(yaml.safe_dump({"version": 1, "routes": entries}))
    assert [route.name for route in routes.routes] == names
    assert all((route.max_attempts, route.timeout_s) == (attempts, timeout) for route in routes.routes)


@given(st.text(max_size=200))
def test_no_text_is_worse_than_an_error_with_lines(text: str) -> None:
    found = problems_of(text)
    assert all(line >= 1 and sentence for line, sentence in found)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.sampled_from(["name", "via"]), inner),
    max_leaves=8,
)


@given(JSON, st.sampled_from(["name", "match", "via", "topic", "webhook", "backoff", "retry_statuses", "concurrency"]))
def test_no_value_of_a_key_is_worse_than_an_error(value: Any, key: str) -> None:
    route = {"name": "x", "webhook": "/webhook/x", key: value}
    found = problems_of(yaml.safe_dump({"version": 1, "routes": [route]}))
    assert all(line >= 1 and sentence for line, sentence in found)


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("", 1, "the file is empty; it needs version and routes"),
        ("[]", 1, "the file must be a mapping of keys to values"),
        ("version: 2\nroutes: []", 1, "version must be 1"),
        ("version: 1\nroutes:\n  - name: a\n   x: 1", 4, "not YAML: expected <block end>, but found"),
        ("version: 1\nroutes: 7", 2, "routes must be a list"),
        ("version: 1\nroutes:\n\n  - 7", 4, "a route must be a mapping of keys to values"),
        ("version: 1\ndefaults:\n  topic: x\nroutes: []", 3, "topic is not a key of defaults; there are: timeout_"),
        ("version: 1\nroutes: []\nversion: 1", 3, "version is there twice"),
        (GOOD + "  - name: last\n    webhook: /webhook/x", 10, "route last is never reached: rest above it"),
    ],
)
def test_mistakes_of_the_file_have_lines(text: str, line: int, sentence: str) -> None:
    found = problems(text)
    assert any(number == line and problem.startswith(sentence[:40]) for number, problem in found), found


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("webhook: /x", "the route has no name"),
        ("name: [a]\nwebhook: /x", "name must be a text"),
        ("name: 7\nwebhook: /x", "name must be a text, not 7"),
        ("name: A b\nwebhook: /x", "name 'A b': only a-z, 0-9, - and _ are allowed"),
        ("name: a", "route a goes by the queue and needs a webhook; only a topic can do without"),
        ("name: a\nvia: topic\nwebhook: /x", "route a goes by a topic and names none"),
        ("name: a\nvia: mail\nwebhook: /x", "via must be topic or queue"),
        ("name: a\nvia: queue\ntopic: a.b.c\nwebhook: /x", "route a goes by the queue and cannot have a topic"),
        ("name: a\ntopic: a.b\nwebhook: /x", "topic 'a.b': write tenant.namespace.name"),
        ("name: a\nwebhook: orders", "webhook must be a path as n8n shows it, such as /webhook/orders"),
        ("name: a\nwebhook: //evil/x", "webhook must be a path as n8n shows it, such as /webhook/orders"),
        ("name: a\nwebhook: /a/../b", "webhook must be a path as n8n shows it, such as /webhook/orders"),
        ("name: a\nwebhook: /{who}", "{who} is not known; there are: tenant, type, workflow"),
        ("name: a\nwebhook: /x\ntimeout_seconds: soon", "timeout_seconds must be a number"),
        ("name: a\nwebhook: /x\ntimeout_seconds: .nan", "timeout_seconds must be from 0.1 to 3600, not nan"),
        ("name: a\nwebhook: /x\nmax_attempts: 1.5", "max_attempts must be a whole number"),
        ("name: a\nwebhook: /x\nmax_attempts: true", "max_attempts must be a whole number"),
        ("name: a\nwebhook: /x\nconcurrency: 0", "concurrency must be from 1 to 1000, not 0"),
        ("name: a\nwebhook: /x\nretry_statuses: 404", "retry_statuses must be a list of status codes from 400 to 499"),
        ("name: a\nwebhook: /x\nretry_statuses: [500]", "a status code must be from 400 to 499, not 500"),
        ("name: a\nwebhook: /x\nbackoff: {first_seconds: 700}", "first_seconds of backoff is longer than max_seconds"),
        ("name: a\nwebhook: /x\nbackoff: {last: 1}", "last is not a key of backoff; there are: first_seconds, factor"),
        ("name: a\nwebhook: /x\nmatch: {type: []}", "type is an empty list; leave it out to match everything"),
        ("name: a\nwebhook: /x\nmatch: {kind: b}", "kind is not a key of match; there are: type, tenant, workflow"),
        ("name: a\nwebhook: /x\ntimeout: 1", "timeout is not a key of a route; there are: name, match, via, topic,"),
    ],
)
def test_mistakes_of_a_route_are_explained(text: str, sentence: str) -> None:
    assert problem(text).startswith(sentence)


def test_two_routes_need_two_names() -> None:
    text = "version: 1\nroutes:\n" + 2 * "  - {name: a, match: {type: x}, webhook: /x}\n"
    assert problems(text) == [(4, "there are two routes named a")]


def test_all_problems_come_at_once_in_order() -> None:
    text = "version: 1\nroutes:\n  - name: A\n    webhook: x\n  - name: b\n    concurrency: 0\n    webhook: /x"
    assert [line for line, _ in problems(text)] == [3, 4, 5, 6]


@pytest.mark.parametrize("content", [b"version: 1\n\xff", b"#" * 1_000_001, b"- " * 5000])
def test_files_that_are_no_routes_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "routes.yml"
    path.write_bytes(content)
    with pytest.raises(RoutesError, match=r"routes\.yml:\d+: "):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RoutesError, match=r"routes\.yml:1: cannot be read: No such file"):
        load(tmp_path / "routes.yml")


@given(st.lists(NAMES, min_size=3, max_size=5))
def test_names_of_topics_go_both_ways(words: list[str]) -> None:
    name = ".".join(words)
    assert topic_name(pulsar_topic(name)) == name
    assert topic_name(pulsar_topic(dead_letter_topic(name)) + "-partition-3") == dead_letter_topic(name)


@given(st.text(max_size=30))
def test_no_workflow_leaves_its_segment_of_the_path(workflow: str) -> None:
    route = Route("a", "queue", webhook="/webhook/{workflow}/run")
    try:
        path = route.path("acme", "t", workflow)
    except ValueError:
        assert not workflow.strip(".")
        return
    assert path.count("/") == 3
    assert not set(path) & set("?#\\ ")
    assert ".." not in path.split("/")


def test_a_path_that_needs_a_workflow_does_not_take_events_without() -> None:
    routes = Routes((Route("a", "queue", webhook="/webhook/{workflow}"),))
    assert routes.decide("acme", "t", "w").name == "a"
    with pytest.raises(NoRouteError, match="route a: workflow '' cannot be part of the path"):
        routes.decide("acme", "t")


@given(
    st.floats(0.05, 3600),
    st.floats(1, 10),
    st.floats(0.05, 86400),
    st.integers(-5, 10**9),
    st.floats(0, 1, exclude_max=True),
)
def test_waits_stay_within_their_bounds(first: float, factor: float, most: float, attempt: int, chance: float) -> None:
    backoff = Backoff(first, factor, most)
    assert 0 <= backoff.delay(attempt, lambda: chance) <= most
    assert backoff.ceiling(attempt) <= backoff.ceiling(attempt + 1)


def test_waits_grow_by_the_factor() -> None:
    assert [Backoff(1, 2, 10).ceiling(attempt) for attempt in range(1, 6)] == [1, 2, 4, 8, 10]


def test_patterns_are_shell_patterns() -> None:
    assert Pattern(["order.*", "x?"]).matches("order.created")
    assert Pattern(["order.*", "x?"]).matches("xy")
    assert not Pattern(["order.*"]).matches("reorder.x")
    assert Pattern().matches(None)
    assert not Pattern(["a*"]).matches(None)
    assert Pattern(["a"]) == Pattern(["a"])
    assert len({Pattern(["a"]), Pattern(["a"]), Pattern(["b"])}) == 2


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, path)


def test_a_good_new_file_counts_and_a_bad_one_does_not(tmp_path: Path) -> None:
    path, clock = tmp_path / "routes.yml", Clock()
    told: list[RoutesError | None] = []
    path.write_text(GOOD)
    file = RouteFile(path, told.append, clock)
    before = file.current
    replace(path, GOOD.replace("/webhook/rest", "/webhook/other"))
    assert file.current is before
    clock.now = 1
    assert file.current.by_name["rest"].webhook == "/webhook/other"
    kept = file.current
    replace(path, GOOD.replace("version: 1", "version: 3"))
    clock.now = 2
    assert file.current is kept
    path.unlink()
    clock.now = 3
    assert file.current is kept
    clock.now = 4
    assert file.current is kept
    replace(path, GOOD)
    clock.now = 5
    assert file.current.by_name["rest"].webhook == "/webhook/rest"
    assert [error and error.problems[0] for error in told] == [
        None,
        None,
        (1, "version must be 1"),
        (1, "cannot be read: No such file or directory"),
        None,
    ]


def test_a_bad_file_at_the_start_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "routes.yml").write_text("routes: []")
    with pytest.raises(RoutesError, match="version is missing"):
        RouteFile(tmp_path / "routes.yml")

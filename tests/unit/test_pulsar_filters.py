# SPDX-License-Identifier: GPL-3.0-or-later
"""Quorums, and what a list of topics needs."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from plugins.filter.pulsar import FilterModule, content, quorum
from tests.policy.repository import ROOT, load

DEFAULTS = load(ROOT / "roles/pulsar/defaults/main.yml")


def settings(**others: Any) -> dict[str, Any]:
    """Return settings as the role passes them."""
    return {
        "dead_letter_namespace": "deadletter",
        "dead_letter_subscription": "inspect",
        "policies": {"retention_minutes": 60},
        "namespaces": {},
        "permissions": {},
        **others,
    }


@given(st.integers(0, 50))
def test_one_bookie_of_three_or_more_may_be_away(bookies: int) -> None:
    found = quorum(bookies)
    assert max(bookies, 1) >= found["ensemble"] >= found["write"] >= found["ack"] >= 1
    if bookies >= 3:
        assert found["ensemble"] < bookies
        assert found["ack"] >= 2


def test_quorums_by_number_of_bookies() -> None:
    assert quorum(1) == {"ensemble": 1, "write": 1, "ack": 1}
    assert quorum(2) == quorum(3) == {"ensemble": 2, "write": 2, "ack": 2}
    assert quorum(5) == {"ensemble": 3, "write": 3, "ack": 2}
    assert quorum(5, {"ack": 3, "write": None})["ack"] == 3


@pytest.mark.parametrize(
    ("given_one", "text"),
    [({"ensemble": 4}, "must hold"), ({"ack": 3}, "must hold"), ({"acks": 1}, "not acks"), ({"ack": 0}, "must hold")],
)
def test_quorums_that_cannot_work_are_refused(given_one: dict[str, int], text: str) -> None:
    with pytest.raises(AnsibleFilterError, match=text):
        quorum(3, given_one)


def test_the_defaults_give_the_topics_of_the_bridge() -> None:
    found = content(
        DEFAULTS["pulsar_topology"],
        settings(
            policies=DEFAULTS["pulsar_namespace_policies"],
            namespaces=DEFAULTS["pulsar_namespaces"],
            permissions=DEFAULTS["pulsar_permissions"],
        ),
    )
    topics = {topic["name"]: topic for topic in found["topics"]}
    assert sorted(topics) == [
        "dealscale/ai/inference",
        "dealscale/analytics/events",
        "dealscale/deadletter/ai.inference",
        "dealscale/deadletter/analytics.events",
        "dealscale/deadletter/workflow.long",
        "dealscale/deadletter/workflow.short",
        "dealscale/workflow/long",
        "dealscale/workflow/short",
    ]
    assert topics["dealscale/deadletter/workflow.short"]["subscriptions"] == ["inspect"]
    assert found["tenants"] == [{"name": "dealscale", "admin_roles": ["admin"]}]
    spaces = {space["name"]: space for space in found["namespaces"]}
    assert spaces["dealscale/deadletter"]["retention_minutes"] == 20160
    assert spaces["dealscale/workflow"]["deduplication"] is False
    assert spaces["dealscale/workflow"]["permissions"] == {
        "bridge-consumer": ["consume"],
        "bridge-publisher": ["produce"],
    }
    assert spaces["dealscale/deadletter"]["permissions"]["bridge-consumer"] == ["consume", "produce"]
    assert spaces["dealscale/workflow"]["subscription_roles"] == {"n8n-bridge": ["bridge-consumer"]}
    assert spaces["dealscale/deadletter"]["subscription_roles"] == {"inspect": ["bridge-consumer"]}


def test_a_topic_that_is_named_itself_keeps_its_own_settings() -> None:
    names = ["a.b.c", "a.deadletter.b.c", "a.x.y"]
    found = content([{"name": name, "partitions": 3, "dead_letter": name != "a.x.y"} for name in names], settings())
    topics = {topic["name"]: topic["partitions"] for topic in found["topics"]}
    assert topics == {"a/b/c": 3, "a/deadletter/b.c": 3, "a/x/y": 3}


def test_partitions_default_to_one() -> None:
    found = content([{"name": "a.b.c", "dead_letter": False}], settings())
    assert found["topics"] == [{"name": "a/b/c", "partitions": 1, "subscriptions": []}]


@pytest.mark.parametrize(
    ("topology", "others", "text"),
    [
        ([{"name": "a.b"}], {}, "must be tenant.namespace.topic"),
        ([{"name": "a.b.c d"}], {}, "must be tenant.namespace.topic"),
        ([{"name": "a.b.c-partition-0"}], {}, "ends like a partition"),
        ([{"name": "a.b.c", "partition": 1}], {}, "unknown partition"),
        ([{"name": "a.b.c"}, {"name": "a.b.c"}], {}, "listed twice"),
        ([{"name": "a.b.c"}], {"namespaces": {"a.d": {}}}, "is in a.d"),
        ([{"name": "a.b.c"}], {"permissions": {"r": {"produce": ["x.*"]}}}, "matches no namespace"),
        ([{"name": "a.b.c"}], {"permissions": {"r": {"write": ["a.b"]}}}, "unknown write"),
    ],
)
def test_mistakes_are_named(topology: list[dict[str, Any]], others: dict[str, Any], text: str) -> None:
    with pytest.raises(AnsibleFilterError, match=text):
        content(topology, settings(**others))


def test_filters_are_registered() -> None:
    assert set(FilterModule().filters()) == {"pulsar_quorum", "pulsar_content"}

# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules that administer Pulsar, against a broker that keeps what it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from plugins.module_utils import pulsar_admin
from plugins.modules import pulsar_namespace, pulsar_tenant, pulsar_topic
from tests.unit.fake_pulsar import TOKEN, FakePulsar

Run = Callable[..., dict[str, Any]]
SPACE = {
    "name": "dealscale/workflow",
    "retention_minutes": 60,
    "retention_mb": 512,
    "backlog_mb": 256,
    "backlog_policy": "producer_exception",
    "ttl_seconds": 0,
    "deduplication": False,
    "permissions": {"publisher": ["produce"], "reader": ["consume"]},
    "subscription_roles": {"n8n-bridge": ["reader"]},
}


@pytest.fixture
def broker() -> Iterator[FakePulsar]:
    with FakePulsar() as fake:
        yield fake


@pytest.fixture
def run(broker: FakePulsar, tmp_path: Path, run_module: Run) -> Run:
    """Return `run(module, check=False, **options)`."""
    (tmp_path / "token").write_text(f"{TOKEN}\n", encoding="utf-8")

    def call(module: ModuleType, check: bool = False, **options: Any) -> dict[str, Any]:
        given = {"url": broker.url, "token_file": str(tmp_path / "token"), "timeout": 5}
        return run_module(module, {**given, **options}, check=check)

    return call


def tenants(**others: Any) -> dict[str, Any]:
    return {"tenants": [{"name": "dealscale", "admin_roles": ["admin"], **others}], "clusters": ["trial"]}


def test_tenants_are_made_corrected_and_left_alone(broker: FakePulsar, run: Run) -> None:
    assert run(pulsar_tenant, check=True, **tenants())["changed"]
    assert not broker.writes
    assert run(pulsar_tenant, **tenants())["changes"] == ["tenant dealscale"]
    assert broker.tenants["dealscale"] == {"adminRoles": ["admin"], "allowedClusters": ["trial"]}
    assert not run(pulsar_tenant, **tenants())["changed"]
    result = run(pulsar_tenant, **tenants(admin_roles=["admin", "ops"]))
    assert result["changed"]
    assert '"ops"' in result["diff"]["after"]
    assert '"ops"' not in result["diff"]["before"]
    assert broker.writes == ["PUT tenants/dealscale", "POST tenants/dealscale"]


def test_namespaces_are_made_with_all_policies_at_once(broker: FakePulsar, run: Run) -> None:
    assert run(pulsar_namespace, check=True, namespaces=[SPACE])["changes"] == ["dealscale/workflow: new"]
    assert not broker.writes
    assert run(pulsar_namespace, namespaces=[SPACE])["changed"]
    policies = broker.namespaces["dealscale/workflow"]
    assert policies["retention_policies"] == {"retentionTimeInMinutes": 60, "retentionSizeInMB": 512}
    assert policies["backlog_quota_map"]["destination_storage"]["limitSize"] == 256 * 2**20
    assert policies["deduplicationEnabled"] is False
    assert policies["auth_policies"]["subscription_auth_roles"] == {"n8n-bridge": ["reader"]}
    before = list(broker.writes)
    result = run(pulsar_namespace, namespaces=[SPACE])
    assert not result["changed"]
    assert result["diff"] == {}
    assert broker.writes == before


def test_only_what_differs_is_written(broker: FakePulsar, run: Run) -> None:
    run(pulsar_namespace, namespaces=[SPACE])
    broker.writes.clear()
    changed = {**SPACE, "ttl_seconds": 600, "publish_rate": 100, "max_unacked_per_consumer": 50}
    result = run(pulsar_namespace, namespaces=[changed])
    assert result["changes"] == ["dealscale/workflow: max_unacked_per_consumer, publish_rate, ttl_seconds"]
    assert sorted(word.rsplit("/", 1)[1] for word in broker.writes) == [
        "maxUnackedMessagesPerConsumer",
        "messageTTL",
        "publishRate",
    ]
    # What is not given is left alone.
    assert not run(pulsar_namespace, namespaces=[{"name": "dealscale/workflow"}])["changed"]


@pytest.mark.parametrize(("size", "backlog"), [(64, 32), (2048, 1024)])
def test_retention_stays_above_the_backlog_on_the_way(run: Run, size: int, backlog: int) -> None:
    run(pulsar_namespace, namespaces=[SPACE])
    changed = {**SPACE, "retention_mb": size, "backlog_mb": backlog}
    assert run(pulsar_namespace, namespaces=[changed])["changed"]
    assert not run(pulsar_namespace, namespaces=[changed])["changed"]


def test_what_the_broker_refuses_is_told(run: Run) -> None:
    result = run(pulsar_namespace, namespaces=[{**SPACE, "retention_mb": 100}])
    assert result["failed"]
    assert "must exceed configured backlog quota" in result["msg"]


def test_no_limit_is_a_value(broker: FakePulsar, run: Run) -> None:
    wanted = {**SPACE, "backlog_mb": -1, "retention_mb": -1}
    run(pulsar_namespace, namespaces=[wanted])
    assert broker.namespaces["dealscale/workflow"]["backlog_quota_map"]["destination_storage"]["limitSize"] == -1
    assert not run(pulsar_namespace, namespaces=[wanted])["changed"]


def test_rights_that_are_not_wished_are_taken_away(broker: FakePulsar, run: Run) -> None:
    run(pulsar_namespace, namespaces=[SPACE])
    wanted = {**SPACE, "permissions": {"publisher": ["consume", "produce"]}, "subscription_roles": {"audit": ["x"]}}
    assert run(pulsar_namespace, namespaces=[wanted])["changed"]
    rights = broker.namespaces["dealscale/workflow"]["auth_policies"]
    assert rights["namespace_auth"] == {"publisher": ["consume", "produce"]}
    assert rights["subscription_auth_roles"] == {"n8n-bridge": [], "audit": ["x"]}
    assert not run(pulsar_namespace, namespaces=[wanted])["changed"]
    replaced = {**wanted, "subscription_roles": {"audit": ["y"]}}
    assert run(pulsar_namespace, namespaces=[replaced])["changed"]
    assert rights["subscription_auth_roles"]["audit"] == ["y"]


TOPICS: list[dict[str, Any]] = [
    {"name": "dealscale/workflow/short", "partitions": 2, "subscriptions": ["n8n-bridge"]},
    {"name": "dealscale/deadletter/workflow.short", "subscriptions": ["inspect"]},
]


def test_topics_are_made_with_their_subscriptions(broker: FakePulsar, run: Run) -> None:
    assert run(pulsar_topic, check=True, topics=TOPICS)["changed"]
    assert not broker.writes
    assert len(run(pulsar_topic, topics=TOPICS)["changes"]) == 2
    assert broker.topics == {
        "dealscale/workflow/short": {"partitions": 2, "subscriptions": ["n8n-bridge"]},
        "dealscale/deadletter/workflow.short": {"partitions": 0, "subscriptions": ["inspect"]},
    }
    assert not run(pulsar_topic, topics=TOPICS)["changed"]


def test_topics_grow_and_keep_what_others_made(broker: FakePulsar, run: Run) -> None:
    run(pulsar_topic, topics=TOPICS)
    broker.topics["dealscale/workflow/short"]["subscriptions"].append("theirs")
    wanted = [{**TOPICS[0], "partitions": 4, "subscriptions": ["n8n-bridge", "audit"]}]
    assert run(pulsar_topic, topics=wanted)["changed"]
    topic = broker.topics["dealscale/workflow/short"]
    assert topic == {"partitions": 4, "subscriptions": ["n8n-bridge", "theirs", "audit"]}


@pytest.mark.parametrize(
    ("name", "partitions", "text"),
    [
        ("dealscale/workflow/short", 1, "Pulsar cannot take any away"),
        ("dealscale/deadletter/workflow.short", 2, "cannot get any"),
    ],
)
def test_partitions_that_cannot_be_had_are_refused(run: Run, name: str, partitions: int, text: str) -> None:
    run(pulsar_topic, topics=TOPICS)
    result = run(pulsar_topic, topics=[{"name": name, "partitions": partitions}])
    assert result["failed"]
    assert text in result["msg"]


def test_a_topic_with_messages_is_deleted_only_when_confirmed(broker: FakePulsar, run: Run) -> None:
    run(pulsar_topic, topics=TOPICS)
    broker.stats["dealscale/workflow/short"] = {"storageSize": 10, "subscriptions": {"n8n-bridge": {"msgBacklog": 3}}}
    absent = ["dealscale.workflow.short", "dealscale/deadletter/workflow.short", "dealscale.workflow.never"]
    refused = run(pulsar_topic, absent=absent)
    assert refused["failed"]
    assert "10 bytes, 3 messages" in refused["msg"]
    assert run(pulsar_topic, check=True, absent=absent, confirmed=True)["changed"]
    assert len(broker.topics) == 2
    assert len(run(pulsar_topic, absent=absent, confirmed=True)["changes"]) == 2
    assert broker.topics == {}
    assert not run(pulsar_topic, absent=absent)["changed"]


def test_a_topic_cannot_be_wished_and_deleted(run: Run) -> None:
    assert run(pulsar_topic, topics=TOPICS, absent=["dealscale.workflow.short"])["failed"]


ALL: list[tuple[ModuleType, dict[str, Any]]] = [
    (pulsar_tenant, tenants()),
    (pulsar_namespace, {"namespaces": [SPACE]}),
    (pulsar_topic, {"topics": TOPICS}),
]


@pytest.mark.parametrize(("module", "options"), ALL)
def test_a_wrong_token_is_told(run: Run, tmp_path: Path, module: ModuleType, options: dict[str, Any]) -> None:
    (tmp_path / "token").write_text("wrong", encoding="utf-8")
    result = run(module, **options)
    assert "HTTP 401" in result["msg"]
    assert "wrong" not in result["msg"]


@pytest.mark.parametrize(("module", "options"), ALL)
def test_without_a_broker_check_mode_promises_and_a_run_fails(
    run: Run, module: ModuleType, options: dict[str, Any]
) -> None:
    gone = {"url": "http://127.0.0.1:9", **options}
    assert run(module, check=True, **gone)["changed"]
    assert run(module, **gone)["failed"]
    unreadable = {"token_file": "/nonexistent", **options}
    assert run(module, check=True, **unreadable)["changed"]
    assert "Cannot read the token" in run(module, **unreadable)["msg"]


def test_a_broker_that_starts_is_asked_again(broker: FakePulsar, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    broker.failures += [503, 500]
    assert run(pulsar_tenant, **tenants())["changed"]
    broker.failures += [503, 503]
    result = run(pulsar_tenant, timeout=0, **tenants())
    assert "HTTP 503 not json" in result["msg"]


def test_the_broker_that_serves_a_topic_is_asked_instead(broker: FakePulsar) -> None:
    with FakePulsar() as other:
        other.failures += [307, 307]
        other.owner = broker.url
        admin = pulsar_admin.Admin(other.url, TOKEN, timeout=0)
        admin.put("tenants/x", {"adminRoles": []})
        assert admin.get("tenants/x") == {"adminRoles": []}
        assert broker.writes == ["PUT tenants/x"]
        other.failures += [307] * 9
        other.owner = other.url
        with pytest.raises(pulsar_admin.PulsarError, match="307"):
            admin.put("tenants/y")


def test_what_is_there_or_gone_already_is_as_good(broker: FakePulsar) -> None:
    admin = pulsar_admin.Admin(broker.url, TOKEN, timeout=0)
    broker.failures += [409, 404]
    admin.put("tenants/x", {})
    admin.delete("tenants/x")
    broker.failures += [412, 412]
    with pytest.raises(pulsar_admin.PulsarError):
        admin.put("tenants/x", {})
    with pytest.raises(pulsar_admin.PulsarError):
        admin.delete("tenants/x")
    broker.failures.append(412)
    with pytest.raises(pulsar_admin.PulsarError):
        admin.get("tenants/x")


def test_an_answer_may_be_plain_text(broker: FakePulsar) -> None:
    broker.failures.append(200)
    assert pulsar_admin.Admin(broker.url, TOKEN).get("brokers/health") == "not json"


def test_names_are_quoted() -> None:
    assert pulsar_admin.quoted("a/b c/d?") == "a/b%20c/d%3F"

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the doctor says of Pulsar."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from plugins.filter import health as health_filters
from plugins.module_utils import health_pulsar
from plugins.module_utils.health import Health
from tests.policy.repository import ROOT, load
from tests.unit.fake_pulsar import TOKEN, FakePulsar

PORTS = load(ROOT / "roles/_platform/defaults/main.yml")["platform_ports"]


@pytest.fixture
def health() -> Health:
    return Health(None)


def problems(health: Health) -> list[tuple[str, str]]:
    return [(one["severity"], one["problem"]) for one in health.findings]


def watch(directory: Path, outcome: str) -> str:
    path = directory / "watch.json"
    path.write_text(json.dumps({"outcome": outcome, "restarts": 0}), encoding="utf-8")
    return str(path)


def test_a_bookie_that_is_well(health: Health, tmp_path: Path) -> None:
    health_pulsar.check_pulsar(health, {"watch": watch(tmp_path, "well")})
    assert health.summary["pulsar"] == "bookie registered"
    assert problems(health) == []


@pytest.mark.parametrize(("outcome", "severity"), [("lost", "error"), ("missing", "error"), ("unknown", "warning")])
def test_a_bookie_that_is_not(health: Health, tmp_path: Path, outcome: str, severity: str) -> None:
    health_pulsar.check_pulsar(health, {"watch": watch(tmp_path, outcome)})
    assert problems(health)[0][0] == severity


def test_a_watch_that_is_silent(health: Health, tmp_path: Path) -> None:
    path = watch(tmp_path, "well")
    os.utime(path, (1, 1))
    health_pulsar.check_pulsar(health, {"watch": path})
    assert "has not looked for" in problems(health)[0][1]
    health_pulsar.check_pulsar(health, {"watch": str(tmp_path / "never")})
    assert "has not run yet" in problems(health)[1][1]


def asked(broker: FakePulsar, directory: Path) -> dict[str, Any]:
    (directory / "token").write_text(TOKEN, encoding="utf-8")
    return {"url": broker.url, "token_file": str(directory / "token"), "ca_file": "", "dead_letters": "deadletter"}


def test_what_waits_and_what_is_dead(health: Health, tmp_path: Path) -> None:
    with FakePulsar() as broker:
        broker.tenants = {"shop": {}, "pulsar": {}}
        broker.namespaces = {"shop/orders": {}, "shop/deadletter": {}}
        broker.topics = {
            "shop/orders/new": {"partitions": 2, "subscriptions": ["s"]},
            "shop/deadletter/orders.new": {"partitions": 0, "subscriptions": ["inspect"]},
        }
        broker.stats = {
            "shop/orders/new": {"storageSize": 5 * 2**20, "subscriptions": {"s": {"msgBacklog": 7}}},
            "shop/deadletter/orders.new": {"subscriptions": {"inspect": {"msgBacklog": 2}}},
        }
        health_pulsar.check_pulsar(health, asked(broker, tmp_path))
    assert health.summary["pulsar"].startswith("broker stores, 7 messages wait, 5 M")
    assert problems(health) == [("warning", "2 dead letters wait for somebody to look at them.")]


def test_a_broker_that_cannot_store(health: Health, tmp_path: Path) -> None:
    with FakePulsar() as broker:
        broker.failures.append(500)
        health_pulsar.check_pulsar(health, asked(broker, tmp_path))
    assert problems(health)[0][0] == "error"
    assert health.summary["pulsar"] == "broker ill"


def plan(**others: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "group_names": ["pulsar_zookeeper", "pulsar_bookie", "pulsar_broker", "bridge"],
        "ports": PORTS,
        "multi_host": False,
        "address": "10.0.0.1",
        "versions": {"pulsar": "4.0.8"},
        "bridge_processes": {"api": 2, "consumer": "1"},
        "pulsar_dead_letters": "deadletter",
        **{name: f"/{name}" for name in ("install_dir", "config_dir", "secrets_dir", "tls_dir", "state_dir")},
        **others,
    }
    return health_filters.health_plan(settings)


def test_the_plan_of_a_single_host() -> None:
    found = plan()
    probes = {unit["name"]: unit.get("probe") for unit in found["units"]}
    assert probes == {
        "n8n-pulsar-zookeeper.service": "tcp:127.0.0.1:2181",
        "n8n-pulsar-bookie.service": "tcp:127.0.0.1:3181",
        "n8n-pulsar-broker.service": "http://127.0.0.1:8081/status.html",
        "n8n-pulsar-bookie-watch.timer": None,
        "n8n-bridge-api@1.service": "http://127.0.0.1:8621/health/ready",
        "n8n-bridge-api@2.service": "http://127.0.0.1:8622/health/ready",
        "n8n-bridge-consumer@1.service": "http://127.0.0.1:8641/health/ready",
        "n8n-bridge-maintain.timer": None,
    }
    assert found["pulsar"]["watch"] == "/state_dir/pulsar/bookie-watch.json"
    assert found["pulsar"]["ca_file"] == ""
    assert found["versions"]["pulsar"]["wanted"] == "4.0.8"


def test_the_plan_of_one_host_of_several() -> None:
    found = plan(group_names=["pulsar_broker"], multi_host=True)
    (unit,) = found["units"]
    assert unit["probe"] == "https://10.0.0.1:8444/status.html"
    assert "/tls_dir/host.crt" in unit["sources"]
    assert found["pulsar"]["url"] == "https://10.0.0.1:8444"
    assert "watch" not in found["pulsar"]

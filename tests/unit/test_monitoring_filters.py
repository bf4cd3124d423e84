# SPDX-License-Identifier: GPL-3.0-or-later
"""Targets, configuration and expectations from groups and host variables."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from plugins.filter.monitoring import (
    UNIT_OF_CGROUP,
    FilterModule,
    duration_seconds,
    prometheus_config,
    rule_files,
    scrape_targets,
    workflow_rules,
)
from tests.policy.repository import ROOT, load

PORTS = load(ROOT / "roles/_platform/defaults/main.yml")["platform_ports"]
GROUPS = {
    "exporters": ["edge", "app", "data"],
    "prometheus": ["edge"],
    "alertmanager": ["edge"],
    "traefik": ["edge"],
    "n8n_main": ["app"],
    "n8n_webhook": ["app"],
    "n8n_worker": ["app", "data"],
    "postgres": ["data"],
    "redis": ["data"],
}


def settings(**others: Any) -> dict[str, Any]:
    """Return settings of a platform of three hosts."""
    return {
        "groups": GROUPS,
        "hostvars": {"data": {"platform_n8n_workers": "1"}},
        "addresses": {"edge": "10.0.0.1", "app": "10.0.0.2", "data": "fd00::3"},
        "ports": PORTS,
        "multi_host": True,
        "domain": "n8n.example.com",
        "webhooks": "2",
        "workers": 3,
        "redis": ["queue", "cache"],
        "probes": [],
        "user": "metrics",
        "targets_dir": "/t",
        "rules_dir": "/r",
        "environment": "shop",
        "scrape_interval": "15s",
        "evaluation_interval": "30s",
        "external_labels": {"site": "north"},
        "alertmanager_urls": ["https://10.0.0.1:9093"],
        "extra_scrape_configs": [],
        "remote_write": [],
        "dropped": {"redis": "redis_x.*", "process": "namedprocess_y"},
        **others,
    }


def single(**others: Any) -> dict[str, Any]:
    """Return settings of a platform of one host."""
    groups = {name: ["here"] for name in [*GROUPS, "loki", "jaeger", "otel_collector"]}
    alone: dict[str, Any] = {"groups": groups, "hostvars": {}, "addresses": {"here": "10.0.0.1"}, "multi_host": False}
    return settings(**alone, **others)


def addresses(targets: list[dict[str, Any]]) -> list[str]:
    """Return the addresses of targets."""
    return [address for target in targets for address in target["targets"]]


def job(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a job of a configuration."""
    return next(one for one in config["scrape_configs"] if one["job_name"] == name)


def test_targets_follow_from_groups() -> None:
    found = scrape_targets(settings())
    assert addresses(found["node"]) == ["10.0.0.1:9100", "10.0.0.2:9100", "[fd00::3]:9100"]
    assert addresses(found["n8n-webhook"]) == ["10.0.0.2:5701", "10.0.0.2:5702"]
    assert addresses(found["n8n-worker"]) == ["10.0.0.2:5721", "10.0.0.2:5722", "10.0.0.2:5723", "[fd00::3]:5721"]
    assert found["n8n-worker"][3]["labels"] == {"instance": "data", "process": "worker-1"}
    assert found["n8n-main"] == [{"targets": ["10.0.0.2:5678"], "labels": {"instance": "app", "process": "main"}}]
    assert not {"loki", "jaeger", "otelcol", "spanmetrics"} & set(found)


def test_one_host_is_asked_on_loopback() -> None:
    found = scrape_targets(single())
    assert {address.split(":")[0] for job in set(found) - {"blackbox"} for address in addresses(found[job])} == {
        "127.0.0.1"
    }
    assert {"loki", "jaeger", "otelcol", "spanmetrics"} <= set(found)


def test_redis_instances_are_asked_through_one_exporter() -> None:
    found = scrape_targets(settings())["redis"]
    assert [one["labels"]["redis"] for one in found] == ["queue", "cache"]
    assert found[0]["labels"]["__param_target"] == "unix:///run/redis-queue/redis.sock"
    not_measured = settings(groups={**GROUPS, "exporters": ["edge"]})
    assert "redis" not in scrape_targets(not_measured)
    assert "postgres" not in scrape_targets(not_measured)


def test_probes_are_what_a_visitor_sees() -> None:
    extra = {"url": "https://example.com/", "instance": "shop", "labels": {"team": "a"}, "module": "plain"}
    found = scrape_targets(settings(probes=[extra, {"url": "https://example.org/"}]))["blackbox"]
    assert found[0] == {
        "targets": ["https://10.0.0.1:443/"],
        "labels": {
            "instance": "edge",
            "probe": "entrance",
            "__param_module": "entrance",
            "__param_hostname": "n8n.example.com",
        },
    }
    assert [one["labels"]["probe"] for one in found] == ["entrance", "webhook", *["readiness"] * 3, "extra", "extra"]
    assert addresses(found)[2:5] == [f"https://10.0.0.2:{port}/healthz/readiness" for port in (5678, 5701, 5702)]
    assert found[5]["labels"] == {"instance": "shop", "probe": "extra", "team": "a", "__param_module": "plain"}
    assert found[6]["labels"]["__param_module"] == "entrance"
    assert addresses(scrape_targets(single())["blackbox"])[2] == "http://127.0.0.1:5678/healthz/readiness"
    assert "blackbox" not in scrape_targets(settings(groups={**GROUPS, "exporters": ["app"]}))


def test_several_hosts_are_asked_by_tls() -> None:
    config = prometheus_config(["node", "n8n-main", "prometheus", "loki", "blackbox"], settings())
    assert job(config, "node")["tls_config"]["cert_file"].endswith("/host.crt")
    assert "basic_auth" not in job(config, "node")
    assert "cert_file" not in job(config, "n8n-main")["tls_config"]
    assert job(config, "prometheus")["basic_auth"]["username"] == "metrics"
    assert "cert_file" in job(config, "loki")["tls_config"]
    assert "scheme" not in job(config, "blackbox")
    assert config["alerting"]["alertmanagers"][0]["basic_auth"]["password_file"].endswith("/metrics_password")
    assert config["global"]["external_labels"] == {"environment": "shop", "site": "north"}
    assert config["rule_files"] == ["/r/*.yml"]


def test_one_host_needs_no_tls() -> None:
    config = prometheus_config(
        ["node", "redis", "spanmetrics"], single(alertmanager_urls=["http://127.0.0.1:9093/am/"])
    )
    assert all("scheme" not in one for one in config["scrape_configs"])
    assert job(config, "redis")["metrics_path"] == "/scrape"
    dropped = {"source_labels": ["__name__"], "regex": "redis_x.*", "action": "drop"}
    assert job(config, "redis")["metric_relabel_configs"] == [dropped]
    assert len(job(prometheus_config(["process"], single()), "process")["metric_relabel_configs"]) == 4
    assert job(config, "spanmetrics")["honor_labels"] is True
    manager = config["alerting"]["alertmanagers"][0]
    assert manager == {"scheme": "http", "static_configs": [{"targets": ["127.0.0.1:9093"]}], "path_prefix": "/am/"}


def test_what_an_inventory_adds() -> None:
    given = settings(
        alertmanager_urls=[],
        extra_scrape_configs=[{"job_name": "x"}],
        remote_write=[{"url": "u"}],
        scrape_interval="2s",
    )
    config = prometheus_config([], given)
    assert config["scrape_configs"] == [{"job_name": "x"}]
    assert config["remote_write"] == [{"url": "u"}]
    assert "alerting" not in config
    assert config["global"]["scrape_timeout"] == "2s"


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("[/n8n.slice/n8n-platform.slice/n8n-worker@1.service]", "n8n-worker@1"),
        ("[/system.slice/system-postgresql.slice/postgresql@17-main.service]", "postgresql@17-main"),
        (
            "[/docker/0123/system.slice/redis-queue.service / /docker/0123/system.slice/redis-queue.service]",
            "redis-queue",
        ),
        ("[/system.slice/traefik.service]", "traefik"),
        ("[/system.slice/cron.service]", None),
        ("[/user.slice/user-0.slice/session-1.scope]", None),
    ],
)
def test_a_unit_is_known_by_its_control_group(cgroup: str, unit: str | None) -> None:
    found = re.fullmatch(UNIT_OF_CGROUP, cgroup)
    assert (found[1] if found else None) == unit


@pytest.mark.parametrize(("text", "seconds"), [("15s", 15), ("1h30m", 5400), ("7d", 604800), ("1w", 604800)])
def test_durations(text: str, seconds: int) -> None:
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "often", "1", "1.5h", "0s", "1h and a bit", None])
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="is no duration"):
        duration_seconds(text)


@given(st.integers(1, 10**6), st.sampled_from("smhdw"))
def test_any_whole_number_of_a_unit_is_a_duration(number: int, unit: str) -> None:
    assert duration_seconds(f"{number}{unit}") >= number


def test_expectations_become_alerts() -> None:
    rules = workflow_rules(
        [{"workflow": "Nightly", "every": "1d"}, {"workflow": "x", "every": "1h", "severity": "ticket"}]
    )
    first, second = rules["groups"][0]["rules"]
    assert first["labels"] == {"severity": "page", "service": "n8n", "workflow": "Nightly"}
    assert second["labels"]["severity"] == "ticket"
    assert "[129600s]" in first["expr"]
    assert 'workflow_name="Nightly"' in first["expr"]
    assert "{{ $value }}" in first["annotations"]["summary"]
    page = first["annotations"]["runbook_url"].partition("/blob/main/")[2].partition("#")[0]
    assert (ROOT / page).is_file()
    assert workflow_rules([]) == {"groups": []}


@pytest.mark.parametrize("wrong", [{"every": "1h"}, {"workflow": "x"}, {"workflow": 'a"b', "every": "1h"}])
def test_an_expectation_needs_both(wrong: dict[str, str]) -> None:
    with pytest.raises(AnsibleFilterError, match="needs workflow"):
        workflow_rules([wrong])


def test_rules_about_nothing_stay_away() -> None:
    paths = ["/a/redis.yml", "/a/host.yml", "/a/logs.yml", "/a/slo.yml"]
    needs = {"redis": ["redis"], "logs": ["loki"], "traces": ["jaeger", "otel_collector"]}
    assert rule_files(paths, needs, {"redis": ["a"], "loki": []}) == ["/a/host.yml", "/a/redis.yml", "/a/slo.yml"]
    assert rule_files(paths, needs, {"loki": ["a"]}, ["slo"]) == ["/a/host.yml", "/a/logs.yml"]


def test_names() -> None:
    assert set(FilterModule().filters()) == {
        "duration_seconds",
        "prometheus_config",
        "rule_files",
        "scrape_targets",
        "workflow_rules",
    }


def test_pulsar_and_the_bridge() -> None:
    names = ("pulsar_zookeeper", "pulsar_bookie", "pulsar_broker", "bridge")
    alone = {**single()["groups"], **{name: ["here"] for name in names}}
    found = scrape_targets(single() | {"groups": alone, "bridge": {"api": 2, "consumer": "1"}})
    assert addresses(found["pulsar"]) == [f"127.0.0.1:{PORTS['pulsar_web']}"]
    assert addresses(found["zookeeper"]) == [f"127.0.0.1:{PORTS['zookeeper_metrics']}"]
    assert addresses(found["bookie"]) == [f"127.0.0.1:{PORTS['bookie_metrics']}"]
    assert addresses(found["bridge-api"]) == ["127.0.0.1:8621", "127.0.0.1:8622"]
    assert [target["labels"]["process"] for target in found["bridge-consumer"]] == ["consumer-1"]
    several = settings(
        groups={**GROUPS, **{name: ["app", "data"] for name in names}},
        hostvars={"data": {"platform_bridge_processes": {"api": 1, "consumer": 0}}},
        bridge={"api": 2, "consumer": 1},
    )
    found = scrape_targets(several)
    assert addresses(found["pulsar"]) == ["10.0.0.2:8444", "[fd00::3]:8444"]
    assert len(found["bridge-api"]) == 3
    assert len(found["bridge-consumer"]) == 1
    asked = job(prometheus_config(["pulsar", "bridge-api"], several), "pulsar")
    assert asked["metrics_path"] == "/metrics/"
    assert asked["scheme"] == "https"
    assert asked["authorization"]["credentials_file"].endswith("/pulsar_metrics_token")
    assert "cert_file" in job(prometheus_config(["bridge-api"], several), "bridge-api")["tls_config"]

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the doctor looks at on a host, and the screen it makes of the answers."""

from __future__ import annotations

from typing import Any

from ansible_collections.dealscale.n8n_platform.plugins.filter import health

SETTINGS: dict[str, Any] = {
    "group_names": ["platform", "postgres", "redis", "n8n_main", "n8n_webhook", "n8n_worker", "traefik"],
    "ports": {
        "n8n_main": 5678,
        "n8n_webhook_base": 5700,
        "n8n_worker_base": "5720",
        "traefik_ops": 8082,
        "traefik_https": 443,
        "object_store": 7070,
    },
    "multi_host": False,
    "address": "10.0.0.1",
    "webhooks": 1,
    "workers": "2",
    "redis_instances": ["queue", "cache"],
    "redis_prefix": "shop",
    "ops_address": "127.0.0.1",
    "backup_max_behind_seconds": "900",
    "state_dir": "/var/lib/n8n-platform",
    "domain": "n8n.example.com",
    "versions": {"n8n": "2.41.1", "nodejs": "24.19.0", "traefik": "3.7.15", "versitygw": "1.8.0"},
    "object_store_provider": "versitygw",
    "install_dir": "/opt/n8n-platform",
    "config_dir": "/etc/n8n-platform",
    "secrets_dir": "/etc/n8n-platform/secrets",
    "tls_dir": "/etc/n8n-platform/tls",
}


def test_a_single_host() -> None:
    plan = health.health_plan(SETTINGS)
    assert [unit["name"] for unit in plan["units"]] == [
        "postgresql@*.service",
        "redis-queue.service",
        "redis-cache.service",
        "n8n-main.service",
        "n8n-guard.timer",
        "n8n-webhook@1.service",
        "n8n-worker@1.service",
        "n8n-runner@1.service",
        "n8n-worker@2.service",
        "n8n-runner@2.service",
        "n8n-watchdog.timer",
        "traefik.service",
        "traefik-websecure.socket",
    ]
    probes = {unit["name"]: unit["probe"] for unit in plan["units"] if "probe" in unit}
    assert probes["n8n-worker@2.service"] == "http://127.0.0.1:5722/healthz/readiness"
    assert probes["n8n-webhook@1.service"] == "http://127.0.0.1:5701/healthz/readiness"
    assert plan["redis"][0] == {"name": "queue", "socket": "/run/redis-queue/redis.sock", "prefix": "shop"}
    assert plan["redis"][1]["prefix"] == ""
    assert plan["certificates"] == {"n8n.example.com": "tls:127.0.0.1:443:n8n.example.com"}
    assert set(plan["versions"]) == {"n8n", "nodejs", "traefik"}


def test_one_host_of_several() -> None:
    plan = health.health_plan({**SETTINGS, "multi_host": True, "group_names": ["platform", "n8n_webhook"]})
    (unit, watchdog) = plan["units"]
    assert watchdog["optional"]
    assert unit["probe"] == "https://10.0.0.1:5701/healthz/readiness"
    assert plan["certificates"] == {"this host": "/etc/n8n-platform/tls/host.crt"}
    data = health.health_plan({**SETTINGS, "multi_host": True, "group_names": ["redis"]})
    assert "/etc/n8n-platform/tls/host.crt" in data["units"][0]["sources"]


def test_the_object_store() -> None:
    plan = health.health_plan({**SETTINGS, "group_names": ["platform", "object_store"]})
    assert [unit["name"] for unit in plan["units"]] == [
        "object-store.service",
        "object-store-keep.timer",
        "object-store-guard.timer",
    ]
    assert plan["units"][0]["probe"] == "https://127.0.0.1:7070/health"
    assert plan["versions"]["versitygw"]["wanted"] == "1.8.0"
    external = {**SETTINGS, "group_names": ["platform", "object_store"], "object_store_provider": "external"}
    assert health.health_plan(external)["units"] == []


def test_monitoring() -> None:
    ports = {
        **SETTINGS["ports"],
        **{f"{name}_exporter": 9100 + i for i, name in enumerate(("node", "process", "postgres", "redis", "blackbox"))},
        **{"prometheus": 9090, "alertmanager": 9093},
    }
    groups = ["exporters", "prometheus", "alertmanager", "postgres", "loki"]
    plan = health.health_plan({**SETTINGS, "ports": ports, "group_names": groups})
    probes = {unit["name"]: unit.get("probe") for unit in plan["units"]}
    assert probes["prometheus.service"] == "http://127.0.0.1:9090/-/ready"
    assert probes["prometheus-postgres-exporter.service"] == "http://127.0.0.1:9102/"
    assert "prometheus-blackbox-exporter.service" in probes
    assert "loki.service" in probes
    assert not {"prometheus-redis-exporter.service", "n8n-metrics-gate.service"} & set(probes)
    several = {**SETTINGS, "ports": ports, "group_names": groups, "multi_host": True}
    probes = {unit["name"]: unit.get("probe") for unit in health.health_plan(several)["units"]}
    assert probes["prometheus-alertmanager.service"] == "tcp:10.0.0.1:9093"
    assert "n8n-metrics-gate.service" in probes


def test_backups() -> None:
    plan = health.health_plan({**SETTINGS, "group_names": ["platform", "postgres", "backup"]})
    assert [unit["name"] for unit in plan["units"]][-2:] == ["n8n-backup.timer", "n8n-backup-watch.timer"]
    assert plan["backup"] == {
        "command": "/usr/local/sbin/n8n-platform-backup",
        "watch": "/var/lib/n8n-platform/backup-watch.json",
        "max_behind_seconds": 900,
    }
    plan = health.health_plan({**SETTINGS, "group_names": ["platform", "traefik", "backup"]})
    assert plan["backup"]["watch"] == ""
    assert health.health_plan(SETTINGS)["backup"] == {}


def finding(severity: str, problem: str) -> dict[str, str]:
    """Return a finding."""
    return {"severity": severity, "area": "x", "problem": problem, "advice": "Mend it."}


def test_the_screen() -> None:
    well = {"findings": [], "summary": {"host": "2 GiB", "redis queue": "0 waiting"}}
    ill = {"findings": [finding("warning", "It wobbles."), finding("error", "It fell.")], "summary": {}}
    results = {"a": well, "b": ill, "c": {"unreachable": True}, "d": {}, "e": {"msg": "no module"}}
    text = health.health_report(results)
    assert "a: all is well\n  host         2 GiB\n  redis queue  0 waiting\n" in text
    assert "b: 1 error and 1 warning\n  ERROR   It fell.\n          -> Mend it.\n  WARNING It wobbles.\n" in text
    assert text.count("The host does not answer.") == 2
    assert "The check itself failed: no module" in text
    assert health.health_errors(results) == 4
    assert set(health.FilterModule().filters()) == {"health_errors", "health_plan", "health_report"}

# SPDX-License-Identifier: GPL-3.0-or-later
"""What is found in inventories and variables before any host is asked."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.dealscale.n8n_platform.plugins.filter import preflight

GOOD = {
    "all": ["a", "b"],
    "platform": ["a", "b"],
    "ungrouped": [],
    "postgres": ["b"],
    "redis": ["b"],
    "n8n_main": ["a"],
    "n8n_webhook": ["a"],
    "n8n_worker": ["a", "b"],
    "traefik": ["a"],
    "my_own_group": ["a"],
}
VERSION = preflight.role_defaults("n8n")["n8n_version"]


def settings(**other: Any) -> dict[str, Any]:
    """Return settings without a problem, but for those given."""
    return {
        "group_names": ["platform", "postgres", "redis", "n8n_main", "n8n_webhook", "n8n_worker", "traefik"],
        "groups": GOOD,
        "hostvars": {},
        "memory_mb": 8192,
        "cores": 4,
        "profile": "auto",
        "webhooks": 2,
        "workers": 2,
        "concurrency": 10,
        "pool": {},
        "worker_memory_mb": 512,
        "domain": "n8n.example.com",
        "admin_email": "ops@example.com",
        "tls_mode": "acme",
        "n8n_environment": {},
        "n8n_version": VERSION,
        "age_recipients": [],
        **other,
    }


def texts(problems: list[dict[str, str]]) -> str:
    """Return problems as one text."""
    return "\n".join(preflight.problem_lines({"host": problems}))


def test_a_good_inventory() -> None:
    assert preflight.inventory_problems(GOOD) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"platform": []}, "The inventory has no hosts in the group platform."),
        ({"postgres": ["a", "b"]}, "The group postgres has several hosts (a, b). -> Leave exactly one in postgres."),
        (
            {"redis": []},
            "n8n_main needs redis, which has no host. -> Put a host into redis, or set platform_redis_host",
        ),
        ({"n8n_main": []}, "n8n_webhook needs n8n_main, which has no host."),
        ({"n8n_worker": []}, "Nothing would execute workflows."),
        ({"traefik": ["z"]}, "z is in traefik but not in platform."),
        ({"object_store": ["a", "b"]}, "Leave exactly one in object_store."),
        ({"backups": ["a"]}, "The group backups means nothing here. -> Did you mean backup?"),
        ({"n8n_mains": ["a"]}, "The group n8n_mains means nothing here. -> Did you mean n8n_main?"),
        ({"pulsar_broker": ["a"]}, "pulsar_broker needs pulsar_bookie"),
        ({"pulsar_zookeeper": ["a", "b"]}, "2 hosts, an even number. -> Leave an odd number"),
        ({"bridge": ["a"]}, "bridge needs pulsar_broker"),
    ],
)
def test_a_bad_inventory(change: dict[str, list[str]], said: str) -> None:
    assert said in texts(preflight.inventory_problems({**GOOD, **change}))


def test_an_inventory_of_idle_hosts() -> None:
    assert "runs anything" in texts(preflight.inventory_problems({"platform": ["a"]}))


def test_a_managed_service_takes_the_place_of_a_group() -> None:
    groups = {**GOOD, "postgres": []}
    assert preflight.inventory_problems(groups, {"platform_postgres_host": "db.example.com"}) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("n8n_workers", "Use platform_n8n_workers."),
        ("WEBHOOK_URL", "Use N8N_WEBHOOK_URL"),
        ("N8N_LOG_LEVEL", "Write it as n8n_environment: {N8N_LOG_LEVEL: ...}."),
        ("platform_domian", "Did you mean platform_domain?"),
        ("redis_queue_fsnyc", "Did you mean redis_queue_fsync?"),
    ],
)
def test_a_name_that_does_nothing(name: str, said: str) -> None:
    assert said in texts(preflight.variable_problems([name, "ansible_user", "platform_domain"], VERSION))


def test_names_that_are_fine() -> None:
    names = ["redis_queue_fsync", "n8n_version", "ansible_host", "redis_dashboards_of_mine", "TZ"]
    assert preflight.variable_problems(names, VERSION) == []
    assert preflight.variable_problems(["N8N_LOG_LEVEL"], "0.0.1") == []


def test_good_settings() -> None:
    assert preflight.setting_problems(settings()) == []
    assert preflight.setting_problems(settings(group_names=["platform"], n8n_version="0.0.1")) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"workers": 0}, "platform_n8n_workers is 0."),
        ({"webhooks": "0"}, "platform_n8n_webhooks is 0."),
        ({"concurrency": 0}, "platform_n8n_concurrency must be"),
        ({"workers": -1}, "platform_n8n_workers must be"),
        ({"workers": 100}, "does not fit this host"),
        ({"memory_mb": 100}, "platform_memory_mb must be"),
        ({"pool": {"main": 150, "webhook": 150, "worker": 150}}, "PostgreSQL cannot hold"),
        ({"profile": "huge"}, "platform_profile must be"),
        ({"domain": "https://n8n.example.com/"}, "which is not a host name"),
        ({"domain": "n8n.localhost"}, "nobody certifies platform_domain n8n.localhost"),
        ({"admin_email": "root@localhost"}, "ACME refuses the address root@localhost."),
        ({"n8n_environment": {"N8N_LOG_LEVLE": "x"}}, "did you mean N8N_LOG_LEVEL?"),
        ({"n8n_version": "0.0.1"}, "n8n 0.0.1 is not in the catalogue"),
        ({"group_names": ["platform", "backup"]}, "backup_age_recipients is empty"),
    ],
)
def test_a_bad_setting(change: dict[str, Any], said: str) -> None:
    assert said in texts(preflight.setting_problems(settings(**change)))


def test_a_host_without_n8n_or_with_own_certificates() -> None:
    assert preflight.setting_problems(settings(tls_mode="internal_ca", domain="n8n.localhost")) == []
    assert preflight.setting_problems(settings(group_names=["platform", "redis"], domain="n8n.localhost")) == []


@pytest.mark.parametrize(
    ("name", "local"),
    [("n8n", True), ("a.localhost", True), ("a.b.internal", True), ("a.home.arpa", True), ("n8n.example.com", False)],
)
def test_local_names(name: str, local: bool) -> None:
    assert preflight.local_domain(name) is local


def test_lines_name_all_hosts_with_the_same_problem() -> None:
    one = preflight.problem("It broke.", "Mend it.")
    two = preflight.problem("It may break.", "Watch it.", "warning")
    problems = {"a": [two, one], "b": [one]}
    assert preflight.problem_lines(problems) == [
        "ERROR a, b: It broke. -> Mend it.",
        "WARNING a: It may break. -> Watch it.",
    ]
    assert preflight.problem_lines(problems, "warning") == ["WARNING a: It may break. -> Watch it."]


def test_the_filters_have_their_names() -> None:
    assert set(preflight.FilterModule().filters()) >= {"inventory_problems", "setting_problems", "variable_problems"}

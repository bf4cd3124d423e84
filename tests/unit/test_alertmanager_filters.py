# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is told of what."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from plugins.filter.alertmanager import INHIBITIONS, FilterModule, alertmanager_config

MAIL = {"to": ["a@example.com", "b@example.com"], "from": "n@example.com", "smarthost": "mail:587", "username": "n"}


def settings(**others: Any) -> dict[str, Any]:
    """Return settings without any way to tell people."""
    return {
        "secrets": [],
        "email": {},
        "slack_channel": "",
        "page": ["pagerduty", "slack", "email", "webhook"],
        "ticket": ["slack", "email", "webhook"],
        "deadman_interval": "1m",
        "group_wait": "10s",
        "group_interval": "2m",
        "page_repeat": "1h",
        "ticket_repeat": "1d",
        "send_resolved": True,
        "templates": "/t/*.tmpl",
        "extra_receivers": [],
        "extra_routes": [],
        "extra_inhibit_rules": [],
        "time_intervals": [],
        **others,
    }


def receiver(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a receiver."""
    return next(one for one in config["receivers"] if one["name"] == name)


def test_without_a_way_nobody_is_told() -> None:
    config = alertmanager_config(settings())
    assert config["receivers"] == [{"name": "nobody"}, {"name": "page"}, {"name": "ticket"}]
    assert config["route"]["routes"][0]["receiver"] == "nobody"
    assert config["inhibit_rules"] == INHIBITIONS
    assert "time_intervals" not in config


def test_a_cause_silences_its_effects() -> None:
    rule = next(one for one in INHIBITIONS if one["source_matchers"] == ['alertname="N8nPulsarBookiesDown"'])
    assert "N8nPulsarWritesFail|" in rule["target_matchers"][0]
    assert rule["equal"] == ["environment"]
    # Nobody is silenced by itself.
    for one in INHIBITIONS:
        for name in re.findall(r"N8n\w+Down", " ".join(one["source_matchers"])):
            assert not re.search(rf'=~"(.+\|)?{name}[|"]', " ".join(one["target_matchers"]))


def test_each_way_that_is_set_is_used() -> None:
    secrets = ["slack_url", "pagerduty_key", "webhook_url", "webhook_token", "email_password", "deadman_url"]
    config = alertmanager_config(settings(secrets=secrets, email=MAIL, slack_channel="#ops"))
    page, ticket = receiver(config, "page"), receiver(config, "ticket")
    assert {"email_configs", "slack_configs", "pagerduty_configs", "webhook_configs"} < set(page)
    assert "pagerduty_configs" not in ticket
    assert page["email_configs"][0]["to"] == "a@example.com, b@example.com"
    assert page["email_configs"][0]["auth_password_file"].endswith("/alertmanager_email_password")
    assert page["slack_configs"][0]["channel"] == "#ops"
    assert "authorization" in page["webhook_configs"][0]["http_config"]
    assert receiver(config, "deadman")["webhook_configs"][0]["send_resolved"] is False
    assert config["route"]["routes"][0]["receiver"] == "deadman"


def test_ways_without_their_secret_stay_off() -> None:
    plain = {**MAIL, "to": "a@example.com", "username": ""}
    config = alertmanager_config(settings(secrets=["webhook_url"], email=plain, page=["webhook", "slack"]))
    assert set(receiver(config, "page")) == {"name", "webhook_configs"}
    assert "http_config" not in receiver(config, "page")["webhook_configs"][0]
    mail = receiver(config, "ticket")["email_configs"][0]
    assert mail["to"] == "a@example.com"
    assert not {"auth_username", "auth_password_file"} & set(mail)
    assert "channel" not in alertmanager_config(settings(secrets=["slack_url"]))["receivers"][1]["slack_configs"][0]


def test_what_an_inventory_adds() -> None:
    route, rule = {"matchers": ['team="a"'], "receiver": "a"}, {"source_matchers": ["x=y"], "target_matchers": ["y=z"]}
    config = alertmanager_config(
        settings(
            extra_receivers=[{"name": "a"}],
            extra_routes=[route],
            extra_inhibit_rules=[rule],
            time_intervals=[{"name": "night"}],
        )
    )
    assert config["receivers"][-1] == {"name": "a"}
    assert config["route"]["routes"][1] == route
    assert config["inhibit_rules"][-1] == rule
    assert config["time_intervals"] == [{"name": "night"}]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [({"page": ["pigeon"]}, "not pigeon"), ({"email": {"to": ["a"]}}, "lacks from, smarthost")],
)
def test_refusals(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(AnsibleFilterError, match=reason):
        alertmanager_config(settings(**wrong))


def test_names() -> None:
    assert set(FilterModule().filters()) == {"alertmanager_config"}

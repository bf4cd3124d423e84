# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter that turns who shall be told of what into the configuration of Alertmanager."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

CREDENTIALS = "/run/credentials/prometheus-alertmanager.service"
# The ways a message can take, and the secret without which each is off; e-mail needs an address instead.
WAYS = {"email": "", "slack": "slack_url", "pagerduty": "pagerduty_key", "webhook": "webhook_url"}
NOBODY = "nobody"

BOOKIES = ("N8nPulsarDaemonDown", "N8nPulsarBookieUnregistered", "N8nPulsarBookieRestarted")
BROKERS = ("N8nPulsarUnhealthy", "N8nPulsarWritesFail", "N8nPulsarWritesSlow")
OUTBOX = ("N8nBridgeOutboxOld", "N8nBridgeNotStored")


def _silence(cause: str, *effects: str) -> dict[str, Any]:
    """Return that an alert silences others of the same environment."""
    return {
        "source_matchers": [f'alertname="{cause}"'],
        "target_matchers": [f'alertname=~"{"|".join(effects)}"'],
        "equal": ["environment"],
    }


# A cause silences its effects. What is equal on both sides stands in `equal`.
INHIBITIONS: list[dict[str, Any]] = [
    # Nothing of a host that is gone answers.
    {
        "source_matchers": ['alertname="N8nHostDown"'],
        "target_matchers": ['alertname!="N8nHostDown"'],
        "equal": ["instance"],
    },
    # n8n waits for its database and its queue, the bridge for its database and n8n.
    {
        "source_matchers": ['alertname=~"N8nPostgresDown|N8nRedisDown"'],
        "target_matchers": ['service=~"n8n|queue|bridge|traefik"', 'alertname!~"N8nLostExecutions|N8nPayloadGone"'],
        "equal": ["environment"],
    },
    # All processes of a kind are gone: nobody needs to hear of each.
    {
        "source_matchers": ['alertname=~"N8nMainDown|N8nWebhooksDown|N8nWorkersDown"'],
        "target_matchers": [
            'alertname=~"N8nProcessDown|N8nQueueStalled|N8nTraefikServerDown|N8nEntranceDown|N8nNotReady"',
        ],
        "equal": ["environment"],
    },
    # Bookies and brokers stand on ZooKeeper, brokers on bookies, and the bridge's outbox waits for them.
    # That it is about to be full is news all the same.
    _silence("N8nPulsarZookeeperDown", "N8nPulsarBookiesDown", "N8nPulsarBrokersDown", *BOOKIES, *BROKERS, *OUTBOX),
    _silence("N8nPulsarBookiesDown", "N8nPulsarDaemonDown", *BROKERS, *OUTBOX),
    _silence("N8nPulsarBrokersDown", "N8nPulsarDaemonDown", "N8nPulsarNoConsumer", *BROKERS, *OUTBOX),
    # Nothing is delivered while nobody delivers, or nobody takes it.
    _silence("N8nBridgeApiDown", "N8nBridgeProcessDown"),
    _silence(
        "N8nBridgeConsumersDown",
        *("N8nBridgeProcessDown", "N8nPulsarNoConsumer", "N8nPulsarBacklogOld", "N8nPulsarBacklogGrowing"),
    ),
    _silence(
        "N8nWebhooksDown",
        *("N8nBridgeDeliveriesStopped", "N8nBridgeDeliveryLate", "N8nBridgeWaitingGrow", "N8nBridgeBreakerOpen"),
    ),
    # Somebody has been called already.
    {
        "source_matchers": ['severity="page"'],
        "target_matchers": ['severity="ticket"'],
        "equal": ["service", "instance"],
    },
]


def _email(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry for e-mail."""
    mail = settings["email"]
    missing = [name for name in ("to", "from", "smarthost") if not mail.get(name)]
    if missing:
        raise AnsibleFilterError(f"alertmanager_email lacks {', '.join(missing)}.")
    to = mail["to"]
    entry: dict[str, Any] = {
        "to": to if isinstance(to, str) else ", ".join(to),
        "from": mail["from"],
        "smarthost": mail["smarthost"],
        "require_tls": bool(mail.get("require_tls", True)),
        "headers": {"Subject": '{{ template "n8n.title" . }}'},
        "text": '{{ template "n8n.text" . }}',
        "html": "",
    }
    if mail.get("username"):
        entry["auth_username"] = mail["username"]
    if "email_password" in settings["secrets"]:
        entry["auth_password_file"] = f"{CREDENTIALS}/alertmanager_email_password"
    return entry


def _slack(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry for Slack."""
    entry: dict[str, Any] = {
        "api_url_file": f"{CREDENTIALS}/alertmanager_slack_url",
        "title": '{{ template "n8n.title" . }}',
        "text": '{{ template "n8n.text" . }}',
    }
    if settings["slack_channel"]:
        entry["channel"] = settings["slack_channel"]
    return entry


def _pagerduty(_: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry for PagerDuty."""
    return {
        "routing_key_file": f"{CREDENTIALS}/alertmanager_pagerduty_key",
        "description": '{{ template "n8n.title" . }}',
        "severity": '{{ if eq .CommonLabels.severity "page" }}critical{{ else }}warning{{ end }}',
        "details": {"alerts": '{{ template "n8n.text" . }}'},
    }


def _webhook(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry for a program."""
    entry: dict[str, Any] = {"url_file": f"{CREDENTIALS}/alertmanager_webhook_url"}
    if "webhook_token" in settings["secrets"]:
        entry["http_config"] = {"authorization": {"credentials_file": f"{CREDENTIALS}/alertmanager_webhook_token"}}
    return entry


ENTRIES = {"email": _email, "slack": _slack, "pagerduty": _pagerduty, "webhook": _webhook}


def ways_in_use(settings: Mapping[str, Any], severity: str) -> list[str]:
    """Return the ways that alerts of a severity take: those it names that are set."""
    wanted = list(settings[severity])
    unknown = sorted(set(wanted) - set(WAYS))
    if unknown:
        raise AnsibleFilterError(
            f"alertmanager_{severity} knows {', '.join(WAYS)}, not {', '.join(map(str, unknown))}."
        )
    on = {way for way, secret in WAYS.items() if secret in settings["secrets"]}
    on |= {"email"} if settings["email"] else set()
    return [way for way in WAYS if way in wanted and way in on]


def _receivers(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the receivers: for pages, for tickets, for the sign of life, and nobody."""
    found: list[dict[str, Any]] = [{"name": NOBODY}]
    for severity in ("page", "ticket"):
        receiver: dict[str, Any] = {"name": severity}
        for way in ways_in_use(settings, severity):
            receiver[f"{way}_configs"] = [{"send_resolved": settings["send_resolved"], **ENTRIES[way](settings)}]
        found.append(receiver)
    if "deadman_url" in settings["secrets"]:
        entry = {"url_file": f"{CREDENTIALS}/alertmanager_deadman_url", "send_resolved": False}
        found.append({"name": "deadman", "webhook_configs": [entry]})
    return found + list(settings["extra_receivers"])


def alertmanager_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of Alertmanager.

    ``settings`` holds ``secrets`` (names of those that are set), ``email``, ``slack_channel``, ``page``, ``ticket``,
    ``deadman_interval``, ``group_wait``, ``group_interval``, ``page_repeat``, ``ticket_repeat``, ``send_resolved``,
    ``templates`` and ``extra_receivers``, ``extra_routes``, ``extra_inhibit_rules``, ``time_intervals``.

    Example: ``{{ settings | dealscale.n8n_platform.alertmanager_config }}``
    """
    life = {
        "matchers": ['severity="none"'],
        "receiver": "deadman" if "deadman_url" in settings["secrets"] else NOBODY,
        "group_wait": "0s",
        "group_interval": settings["deadman_interval"],
        "repeat_interval": settings["deadman_interval"],
    }
    page = {"matchers": ['severity="page"'], "receiver": "page", "repeat_interval": settings["page_repeat"]}
    ticket = {"matchers": ['severity="ticket"'], "receiver": "ticket", "repeat_interval": settings["ticket_repeat"]}
    config: dict[str, Any] = {
        "route": {
            # What has no severity is not lost.
            "receiver": "ticket",
            "group_by": ["alertname", "service", "instance"],
            "group_wait": settings["group_wait"],
            "group_interval": settings["group_interval"],
            "repeat_interval": settings["ticket_repeat"],
            "routes": [life, *settings["extra_routes"], page, ticket],
        },
        "inhibit_rules": [*INHIBITIONS, *settings["extra_inhibit_rules"]],
        "receivers": _receivers(settings),
        "templates": [settings["templates"]],
    }
    if settings["time_intervals"]:
        config["time_intervals"] = list(settings["time_intervals"])
    return config


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"alertmanager_config": alertmanager_config}

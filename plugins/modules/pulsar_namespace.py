#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Provide namespaces of a Pulsar cluster with their policies and rights."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pulsar_namespace
short_description: Provide namespaces of a Pulsar cluster with their policies and rights
description:
  - Reads all policies of a namespace at once, compares, and writes only what differs. A policy that is not given is
    left alone, and so are namespaces that are not listed.
options:
  namespaces:
    description: The namespaces.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Tenant and namespace such as C(dealscale/workflow)., type: str, required: true}
      retention_minutes: {description: "How long acknowledged messages stay, -1 for ever.", type: int}
      retention_mb: {description: "How much of them stays, MiB, -1 for all; more than the backlog.", type: int}
      ttl_seconds: {description: "Age at which messages nobody has acknowledged go, too; 0 for never.", type: int}
      backlog_mb: {description: "Size of the unacknowledged messages of a topic, MiB, -1 for any.", type: int}
      backlog_policy:
        description: What happens at that size.
        type: str
        choices: [producer_request_hold, producer_exception, consumer_backlog_eviction]
      deduplication: {description: Whether the broker drops what a producer sends twice., type: bool}
      publish_rate: {description: "Messages a topic takes in a second, -1 for any number.", type: int}
      max_unacked_per_consumer: {description: "Messages a consumer may hold unacknowledged, 0 for any.", type: int}
      max_unacked_per_subscription: {description: "Messages all its consumers may hold.", type: int}
      permissions: {description: "Actions (C(produce), C(consume)) by role; other roles have none.", type: dict}
      subscription_roles: {description: Roles that alone may use a subscription., type: dict}
extends_documentation_fragment: [dealscale.n8n_platform.pulsar]
"""

EXAMPLES = r"""
- name: Provide a namespace
  dealscale.n8n_platform.pulsar_namespace:
    url: http://127.0.0.1:8081
    token_file: /etc/n8n-platform/secrets/pulsar_admin_token
    namespaces:
      - {name: dealscale/workflow, retention_minutes: 1440, retention_mb: 4096, permissions: {publisher: [produce]}}
"""

RETURN = r"""
changes: {description: What differed., type: list, elements: str, returned: always}
"""

from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.dealscale.n8n_platform.plugins.module_utils.pulsar_admin import (
    ARGUMENTS,
    Admin,
    PulsarError,
    UnreachableError,
    connect,
    finish,
    quoted,
    unknown,
)

MIB = 2**20
BACKLOG = "destination_storage"
# Policies of one number: option, its name in what the broker returns, the path to write it to.
NUMBERS = {
    "ttl_seconds": ("message_ttl_in_seconds", "messageTTL"),
    "max_unacked_per_consumer": ("max_unacked_messages_per_consumer", "maxUnackedMessagesPerConsumer"),
    "max_unacked_per_subscription": ("max_unacked_messages_per_subscription", "maxUnackedMessagesPerSubscription"),
}
# What it means that a policy was never set, where that is a value of the option.
UNSET = {"ttl_seconds": 0, "publish_rate": -1, "backlog_mb": -1}
RETENTION = ("retention_minutes", "retention_mb")
QUOTA = ("backlog_mb", "backlog_policy")


def present(policies: dict[str, Any]) -> dict[str, Any]:
    """Return the broker's policies in the words of this module's options; None where nothing is set."""
    retention = policies.get("retention_policies") or {}
    quota = (policies.get("backlog_quota_map") or {}).get(BACKLOG) or {}
    rates = list((policies.get("publishMaxMessageRate") or {}).values())
    rights = policies.get("auth_policies") or {}
    size = quota.get("limitSize", quota.get("limit"))
    found: dict[str, Any] = {
        "retention_minutes": retention.get("retentionTimeInMinutes"),
        "retention_mb": retention.get("retentionSizeInMB"),
        "backlog_mb": None if size is None else -1 if size < 0 else size // MIB,
        "backlog_policy": quota.get("policy"),
        "deduplication": policies.get("deduplicationEnabled"),
        "publish_rate": rates[0].get("publishThrottlingRateInMsg") if rates else None,
        "permissions": {role: sorted(actions) for role, actions in (rights.get("namespace_auth") or {}).items()},
        "subscription_roles": {
            name: sorted(roles) for name, roles in (rights.get("subscription_auth_roles") or {}).items() if roles
        },
    }
    found |= {option: policies.get(key) for option, (key, _path) in NUMBERS.items()}
    return {option: UNSET.get(option) if value is None else value for option, value in found.items()}


def desired(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are given, lists in one order."""
    wanted = {key: value for key, value in given.items() if value is not None and key != "name"}
    for key in ("permissions", "subscription_roles"):
        if key in wanted:
            wanted[key] = {name: sorted(values) for name, values in wanted[key].items() if values}
    return wanted


def write(admin: Admin, path: str, before: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Write the policies that differ."""
    changed = {key for key, value in wanted.items() if before[key] != value}
    steps: list[Callable[[], None]] = []
    if changed & set(RETENTION):
        minutes, size = (wanted.get(key, before[key]) for key in RETENTION)
        body = {
            "retentionTimeInMinutes": 0 if minutes is None else minutes,
            "retentionSizeInMB": 0 if size is None else size,
        }
        steps.append(lambda: admin.post(f"{path}/retention", body))
    if changed & set(QUOTA):
        size, policy = (wanted.get(key, before[key]) for key in QUOTA)
        quota = {"limitSize": -1 if size is None or size < 0 else size * MIB, "limitTime": -1}
        quota |= {"policy": policy or "producer_request_hold"}
        steps.append(lambda: admin.post(f"{path}/backlogQuota", quota, backlogQuotaType=BACKLOG))
    # The broker refuses a backlog above the retention, in between as well.
    if changed & set(RETENTION) and (before["retention_mb"] or 0) > (wanted.get("retention_mb") or 0) >= 0:
        steps.reverse()
    for step in steps:
        step()
    for option in sorted(changed & set(NUMBERS)):
        admin.post(f"{path}/{NUMBERS[option][1]}", wanted[option])
    if "deduplication" in changed:
        admin.post(f"{path}/deduplication", wanted["deduplication"])
    if "publish_rate" in changed:
        rate = {"publishThrottlingRateInMsg": wanted["publish_rate"], "publishThrottlingRateInByte": -1}
        admin.post(f"{path}/publishRate", rate)
    for option, place in (("permissions", "permissions"), ("subscription_roles", "permissions/subscription")):
        if option in changed:
            grant(admin, f"{path}/{place}", before[option], wanted[option], option)


def grant(admin: Admin, path: str, before: dict[str, Any], wanted: dict[str, Any], option: str) -> None:
    """Give and take rights; more are given before any is taken."""
    for name, values in wanted.items():
        if before.get(name) != values:
            if option == "subscription_roles":
                # The list is added to, not replaced.
                for role in set(before.get(name, ())) - set(values):
                    admin.delete(f"{path}/{quoted(name)}/{quoted(role)}")
            admin.post(f"{path}/{quoted(name)}", values)
    for name in sorted(set(before) - set(wanted)):
        if option == "permissions":
            admin.delete(f"{path}/{quoted(name)}")
            continue
        for role in before[name]:
            admin.delete(f"{path}/{quoted(name)}/{quoted(role)}")


def run(admin: Admin, namespaces: list[dict[str, Any]], act: bool) -> tuple[dict[str, Any], ...]:
    """Compare and write; return by name what differs, before and after."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for given in namespaces:
        name, path = given["name"], f"namespaces/{quoted(given['name'])}"
        policies = admin.get(path)
        wanted = desired(given)
        if policies is None and act:
            admin.put(path)
        known = present(policies or (admin.get(path) if act else None) or {})
        differs = {key for key, value in wanted.items() if known[key] != value}
        if policies is not None and not differs:
            continue
        before[name] = None if policies is None else {key: known[key] for key in sorted(differs)}
        after[name] = wanted if policies is None else {key: wanted[key] for key in sorted(differs)}
        if act:
            write(admin, path, known, wanted)
    return before, after


def main() -> None:
    """Entry point of the module."""
    number = {"type": "int"}
    policies = ["producer_request_hold", "producer_exception", "consumer_backlog_eviction"]
    options: dict[str, Any] = {
        "name": {"type": "str", "required": True},
        **dict.fromkeys((*RETENTION, "backlog_mb", "publish_rate", *NUMBERS), number),
        "backlog_policy": {"type": "str", "choices": policies},
        "deduplication": {"type": "bool"},
        "permissions": {"type": "dict"},
        "subscription_roles": {"type": "dict"},
    }
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "namespaces": {"type": "list", "elements": "dict", "options": options, "required": True},
        },
        supports_check_mode=True,
    )
    admin = connect(module)
    try:
        before, after = run(admin, module.params["namespaces"], not module.check_mode)
    except UnreachableError as error:
        unknown(module, str(error))
    except PulsarError as error:
        module.fail_json(msg=str(error))
    changes = [f"{name}: {', '.join(after[name]) if before[name] is not None else 'new'}" for name in after]
    finish(module, before, after, changes)


if __name__ == "__main__":
    main()

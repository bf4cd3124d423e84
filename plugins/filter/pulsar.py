# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that turn what is wished of Pulsar into what its administration understands."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

WORD = re.compile(r"[A-Za-z0-9_=:-]+(\.[A-Za-z0-9_=:-]+)*")
TOPIC_KEYS = {"name", "partitions", "subscriptions", "dead_letter"}
RIGHT_KEYS = {"produce", "consume", "subscriptions"}
DEFAULT_PARTITIONS = 1
ADMIN_ROLE = "admin"


def quorum(bookies: Any, given: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Return over how many bookies a ledger is spread, how many copies a message has, and how many must be on disk.

    One bookie of three or more may be away: a new ledger must be possible without it, so the ensemble is smaller than
    the number of bookies. Each message is on two disks (three, from four bookies on) before it counts as stored, at
    least two of them.

    Example: ``{{ groups['pulsar_bookie'] | length | dealscale.n8n_platform.pulsar_quorum({}) }}``
    """
    count = int(bookies)
    copies = 1 if count <= 1 else 2 if count <= 3 else 3  # noqa: PLR2004
    wanted = {"ensemble": copies, "write": copies, "ack": min(copies, 2)}
    wanted |= {name: int(value) for name, value in (given or {}).items() if value is not None}
    if unknown := sorted(set(wanted) - {"ensemble", "write", "ack"}):
        raise AnsibleFilterError(f"pulsar_quorum knows ensemble, write and ack, not {', '.join(unknown)}.")
    ensemble, write, ack = wanted["ensemble"], wanted["write"], wanted["ack"]
    if not max(count, 1) >= ensemble >= write >= ack >= 1:
        raise AnsibleFilterError(
            f"pulsar_quorum: bookies ({count}) >= ensemble ({ensemble}) >= write ({write}) >= ack ({ack}) >= 1 "
            "must hold."
        )
    return wanted


def split(name: Any) -> tuple[str, str, str]:
    """Return tenant, namespace and topic of a name such as ``dealscale.workflow.short``."""
    parts = str(name).split(".", 2)
    if len(parts) < 3 or not all(WORD.fullmatch(part) for part in parts):  # noqa: PLR2004
        raise AnsibleFilterError(
            f"pulsar_topology: '{name}' must be tenant.namespace.topic, of letters, digits, hyphens and underscores."
        )
    if re.search(r"-partition-\d+$", parts[2]):
        raise AnsibleFilterError(f"pulsar_topology: '{name}' ends like a partition, which Pulsar makes by itself.")
    return parts[0], parts[1], parts[2]


def _topics(topology: Iterable[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the topics by full name, dead letters included."""
    found: dict[str, dict[str, Any]] = {}
    dead: dict[str, dict[str, Any]] = {}
    for entry in topology:
        if unknown := sorted(set(entry) - TOPIC_KEYS):
            raise AnsibleFilterError(f"pulsar_topology: {entry.get('name')} has unknown {', '.join(unknown)}.")
        tenant, namespace, topic = split(entry.get("name"))
        partitions = entry.get("partitions")
        name = f"{tenant}/{namespace}/{topic}"
        if name in found:
            raise AnsibleFilterError(f"pulsar_topology: {entry['name']} is listed twice.")
        found[name] = {
            "partitions": DEFAULT_PARTITIONS if partitions is None else int(partitions),
            "subscriptions": list(entry.get("subscriptions") or []),
        }
        letters = str(settings["dead_letter_namespace"])
        wanted = entry.get("dead_letter")
        if namespace != letters and (wanted is None or wanted):
            letter = {"partitions": 0, "subscriptions": [str(settings["dead_letter_subscription"])]}
            dead[f"{tenant}/{letters}/{namespace}.{topic}"] = letter
    return {**dead, **found}


def _rights(namespaces: Mapping[str, set[str]], permissions: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return by namespace the actions of each role and the roles of each subscription."""
    result: dict[str, dict[str, Any]] = {name: {"permissions": {}, "subscription_roles": {}} for name in namespaces}
    for role, rights in permissions.items():
        if unknown := sorted(set(rights) - RIGHT_KEYS):
            raise AnsibleFilterError(f"pulsar_permissions: {role} has unknown {', '.join(unknown)}.")
        for action in ("produce", "consume"):
            for pattern in rights.get(action) or []:
                # A topic stands for its namespace: rights are given to whole namespaces.
                wanted = "/".join(str(pattern).split(".")[:2])
                matched = [name for name in namespaces if fnmatch.fnmatchcase(name, wanted)]
                if not matched:
                    raise AnsibleFilterError(
                        f"pulsar_permissions: {role} names '{pattern}', which matches no namespace."
                    )
                for name in matched:
                    result[name]["permissions"].setdefault(role, set()).add(action)
    # A subscription without a list is everybody's who may consume in its namespace, so each gets one.
    for name, subscriptions in namespaces.items():
        readers = [role for role, actions in result[name]["permissions"].items() if "consume" in actions]
        for subscription in subscriptions:
            allowed = {
                role for role in readers if subscription in permissions[role].get("subscriptions", [subscription])
            }
            result[name]["subscription_roles"][subscription] = allowed or {ADMIN_ROLE}
    return result


def content(topology: Iterable[Mapping[str, Any]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tenants, namespaces and topics that a list of topics needs, as the modules want them.

    ``settings`` holds ``dead_letter_namespace``, ``dead_letter_subscription``, ``policies`` (of all namespaces),
    ``namespaces`` (policies of some, by ``tenant.namespace``) and ``permissions`` (by role).
    """
    topics = _topics(topology, settings)
    namespaces: dict[str, set[str]] = {}
    for name, entry in topics.items():
        namespaces.setdefault(name.rpartition("/")[0], set()).update(entry["subscriptions"])
    special = {str(name).replace(".", "/", 1): policies for name, policies in settings["namespaces"].items()}
    if strange := sorted(set(special) - set(namespaces)):
        names = ", ".join(name.replace("/", ".") for name in strange)
        raise AnsibleFilterError(f"pulsar_namespaces: no topic of pulsar_topology is in {names}.")
    rights = _rights(namespaces, settings["permissions"])
    return {
        "tenants": [
            {"name": name, "admin_roles": [ADMIN_ROLE]} for name in sorted({name.split("/")[0] for name in namespaces})
        ],
        "namespaces": [
            {
                "name": name,
                **settings["policies"],
                **special.get(name, {}),
                "permissions": {role: sorted(actions) for role, actions in sorted(rights[name]["permissions"].items())},
                "subscription_roles": {
                    subscription: sorted(roles)
                    for subscription, roles in sorted(rights[name]["subscription_roles"].items())
                },
            }
            for name in sorted(namespaces)
        ],
        "topics": [{"name": name, **entry} for name, entry in sorted(topics.items())],
    }


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"pulsar_quorum": quorum, "pulsar_content": content}

#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Provide topics of a Pulsar cluster with their partitions and subscriptions."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pulsar_topic
short_description: Provide topics of a Pulsar cluster with their partitions and subscriptions
description:
  - Reads what is there, compares, and writes only what differs. Topics and subscriptions that are not listed are left
    alone.
  - Partitions can be added, never removed. A topic that holds messages is deleted only when O(confirmed).
options:
  topics:
    description: The topics; all are persistent.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: "Tenant, namespace and topic such as C(dealscale/workflow/short).", type: str, required: true}
      partitions: {description: "Number of partitions, 0 for a topic without.", type: int, default: 0}
      subscriptions:
        description: Subscriptions that begin with the oldest message.
        type: list
        elements: str
        default: []
  absent:
    description: Names of topics to delete, like those of O(topics) or with dots.
    type: list
    elements: str
    default: []
  confirmed:
    description: Delete topics of O(absent) even if they hold messages.
    type: bool
    default: false
extends_documentation_fragment: [dealscale.n8n_platform.pulsar]
"""

EXAMPLES = r"""
- name: Provide a topic
  dealscale.n8n_platform.pulsar_topic:
    url: http://127.0.0.1:8081
    token_file: /etc/n8n-platform/secrets/pulsar_admin_token
    topics: [{name: dealscale/workflow/short, partitions: 4, subscriptions: [n8n-bridge]}]
"""

RETURN = r"""
changes: {description: What differed., type: list, elements: str, returned: always}
"""

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

EARLIEST = {"ledgerId": -1, "entryId": -1, "partitionIndex": -1}


class RefusedError(Exception):
    """What is wished cannot be done, and what to do instead."""


def path_of(name: str) -> str:
    """Return the path of a topic given as ``tenant/namespace/topic`` or with dots."""
    parts = name.split("/" if "/" in name else ".", 2)
    return f"persistent/{quoted('/'.join(parts))}"


def present(admin: Admin, path: str) -> dict[str, Any] | None:
    """Return partitions and subscriptions of a topic, or None if there is none."""
    namespace, topic = path.rsplit("/", 1)
    metadata = admin.get(f"{path}/partitions")
    partitions = int((metadata or {}).get("partitions", 0))
    if not partitions and not _exists(admin, namespace, topic):
        return None
    return {"partitions": partitions, "subscriptions": sorted(admin.get(f"{path}/subscriptions") or [])}


def _exists(admin: Admin, namespace: str, topic: str) -> bool:
    """Tell whether a topic without partitions is there: the broker answers 0 partitions for those that are not, too."""
    names = [str(name).rsplit("/", 1)[-1] for name in admin.get(namespace) or []]
    return topic in [quoted(name) for name in names]


def provide(admin: Admin, topic: dict[str, Any], act: bool) -> tuple[dict[str, Any] | None, dict[str, Any]] | None:
    """Compare one topic and write it; return it before and after, or None if nothing differs."""
    path, wanted = path_of(topic["name"]), topic["partitions"]
    found = present(admin, path)
    missing = sorted(set(topic["subscriptions"]) - set((found or {}).get("subscriptions", ())))
    if found is not None and found["partitions"] == wanted and not missing:
        return None
    if found is not None and found["partitions"] > wanted:
        raise RefusedError(
            f"{topic['name']} has {found['partitions']} partitions, {wanted} are wished: Pulsar cannot take any away. "
            f"Set partitions to {found['partitions']}, or make another topic."
        )
    if found is not None and not found["partitions"] and wanted:
        raise RefusedError(
            f"{topic['name']} has no partitions and cannot get any: set partitions to 0, or make another topic."
        )
    after = {
        "partitions": wanted,
        "subscriptions": sorted({*(found or {}).get("subscriptions", []), *topic["subscriptions"]}),
    }
    if act:
        if found is None:
            admin.put(f"{path}/partitions" if wanted else path, wanted or None)
        elif found["partitions"] < wanted:
            admin.post(f"{path}/partitions", wanted)
        for subscription in missing:
            admin.put(f"{path}/subscription/{quoted(subscription)}", EARLIEST)
    return found, after


def remove(admin: Admin, name: str, confirmed: bool, act: bool) -> dict[str, Any] | None:
    """Delete one topic; return what it was, or None if there is none."""
    path = path_of(name)
    found = present(admin, path)
    if found is None:
        return None
    partitioned = found["partitions"] > 0
    stats = admin.get(f"{path}/{'partitioned-stats' if partitioned else 'stats'}") or {}
    waiting = sum(entry.get("msgBacklog", 0) for entry in (stats.get("subscriptions") or {}).values())
    if (waiting or stats.get("storageSize", 0)) and not confirmed:
        raise RefusedError(
            f"{name} holds {stats.get('storageSize', 0)} bytes, {waiting} messages wait in its subscriptions: they "
            "would be lost. To delete it all the same, run with -e confirm=<name of the broker's host>."
        )
    if act:
        admin.delete(f"{path}/partitions" if partitioned else path, force="true")
    return found


def main() -> None:
    """Entry point of the module."""
    topic = {
        "name": {"type": "str", "required": True},
        "partitions": {"type": "int", "default": 0},
        "subscriptions": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "topics": {"type": "list", "elements": "dict", "options": topic, "default": []},
            "absent": {"type": "list", "elements": "str", "default": []},
            "confirmed": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    given, act = module.params, not module.check_mode
    admin = connect(module)
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    if both := {path_of(name) for name in given["absent"]} & {path_of(entry["name"]) for entry in given["topics"]}:
        module.fail_json(msg=f"A topic cannot be wished and to be deleted: {', '.join(sorted(both))}")
    try:
        for entry in given["topics"]:
            if (difference := provide(admin, entry, act)) is not None:
                before[entry["name"]], after[entry["name"]] = difference
        for name in given["absent"]:
            if (gone := remove(admin, name, given["confirmed"], act)) is not None:
                before[name], after[name] = gone, None
    except UnreachableError as error:
        unknown(module, str(error))
    except (PulsarError, RefusedError) as error:
        module.fail_json(msg=str(error))
    finish(module, before, after, [f"topic {name}" for name in after])


if __name__ == "__main__":
    main()

#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Provide the tenants of a Pulsar cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pulsar_tenant
short_description: Provide the tenants of a Pulsar cluster
description:
  - Reads what is there, compares, and writes only what differs. Tenants that are not listed are left alone.
options:
  tenants:
    description: The tenants.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name of the tenant., type: str, required: true}
      admin_roles: {description: Roles that may administer it., type: list, elements: str, default: []}
  clusters:
    description: Clusters on which their topics may lie.
    type: list
    elements: str
    required: true
extends_documentation_fragment: [dealscale.n8n_platform.pulsar]
"""

EXAMPLES = r"""
- name: Provide a tenant
  dealscale.n8n_platform.pulsar_tenant:
    url: http://127.0.0.1:8081
    token_file: /etc/n8n-platform/secrets/pulsar_admin_token
    tenants: [{name: dealscale, admin_roles: [admin]}]
    clusters: [n8n-production]
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


def run(admin: Admin, tenants: list[dict[str, Any]], clusters: list[str], act: bool) -> tuple[dict[str, Any], ...]:
    """Compare and write; return the tenants before and after that differ, by name."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for tenant in tenants:
        path = f"tenants/{quoted(tenant['name'])}"
        found = admin.get(path)
        wanted = {"adminRoles": sorted(tenant["admin_roles"]), "allowedClusters": sorted(clusters)}
        present = None if found is None else {key: sorted(found.get(key) or []) for key in wanted}
        if present == wanted:
            continue
        before[tenant["name"]], after[tenant["name"]] = present, wanted
        if act and found is None:
            admin.put(path, wanted)
        elif act:
            admin.post(path, wanted)
    return before, after


def main() -> None:
    """Entry point of the module."""
    tenant = {
        "name": {"type": "str", "required": True},
        "admin_roles": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "tenants": {"type": "list", "elements": "dict", "options": tenant, "required": True},
            "clusters": {"type": "list", "elements": "str", "required": True},
        },
        supports_check_mode=True,
    )
    admin = connect(module)
    try:
        before, after = run(admin, module.params["tenants"], module.params["clusters"], not module.check_mode)
    except UnreachableError as error:
        unknown(module, str(error))
    except PulsarError as error:
        module.fail_json(msg=str(error))
    finish(module, before, after, [f"tenant {name}" for name in after])


if __name__ == "__main__":
    main()

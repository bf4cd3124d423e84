# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that answer where things run, from inventory groups and host variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def host_addresses(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the address of each host as the other hosts of the platform see it.

    In order: the inventory's ``platform_address``, the gathered default IPv4 address, ``ansible_host``, its name.

    Example: ``{{ groups['platform'] | dealscale.n8n_platform.host_addresses(hostvars) }}``
    """
    result = {}
    for host in hosts:
        known = hostvars.get(host, {})
        facts = known.get("ansible_facts", {})
        result[host] = (
            known.get("platform_address")
            or facts.get("default_ipv4", {}).get("address")
            or known.get("ansible_host")
            or host
        )
    return result


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"host_addresses": host_addresses}

# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that turn groups, addresses and wishes into firewall rules."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

MAX_PORT = 65535
# Only these may send requests a stranger made up, so only their processes are fenced in.
N8N_GROUPS = ("n8n_main", "n8n_webhook", "n8n_worker")

Rule = dict[str, Any]


def families(addresses: Iterable[str], where: str) -> dict[str, list[str]]:
    """Return addresses and networks sorted into ``v4`` and ``v6``; names are an error, the kernel knows none.

    ``where`` says in the error which variable to correct.
    """
    found: dict[str, set[str]] = {"v4": set(), "v6": set()}
    for address in addresses:
        try:
            # The zone of a link-local address (fe80::1%eth0) is no part of it.
            network = ipaddress.ip_network(re.sub(r"%[^/]+", "", str(address)), strict=False)
        except ValueError:
            raise AnsibleFilterError(
                f"{where}: '{address}' is no IP address or network. Names cannot be used."
            ) from None
        single = network.prefixlen == network.max_prefixlen
        found[f"v{network.version}"].add(str(network.network_address) if single else str(network))
    return {version: sorted(values) for version, values in found.items()}


def ports(wanted: Any, where: str) -> list[str]:
    """Return port numbers and ranges (``5701-5702``) as text; ``wanted`` is one of them or a list."""
    result = []
    for item in wanted if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(item))
        bounds = [int(number) for number in match.groups() if number] if match else []
        if not bounds or bounds != sorted(bounds) or bounds[0] < 1 or bounds[-1] > MAX_PORT:
            raise AnsibleFilterError(f"{where}: '{item}' is no port (1 to {MAX_PORT}) or range of ports (5701-5702).")
        result.append("-".join(str(number) for number in dict.fromkeys(bounds)))
    return result


def members(names: Iterable[str], groups: Mapping[str, Sequence[str]], addresses: Mapping[str, str]) -> dict[str, str]:
    """Return the hosts of the named groups with their addresses, those of the platform only."""
    hosts = [host for name in names for host in groups.get(name, [])]
    return {host: addresses[host] for host in hosts if host in addresses}


def extra(rules: Iterable[Mapping[str, Any]], key: str, where: str) -> list[Rule]:
    """Return the rules an inventory adds; ``key`` holds their addresses."""
    result = []
    for rule in rules:
        given = rule.get(key) or []
        entry: Rule = {"proto": rule.get("proto") or "tcp", "comment": rule.get("comment") or "inventory"}
        entry["ports"] = ports(rule["ports"], where) if rule.get("ports") else []
        result.append({**entry, **families([given] if isinstance(given, str) else given, where)})
    return result


def input_rules(
    peers: Iterable[Mapping[str, Any]],
    allow: Iterable[Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    addresses: Mapping[str, str],
    host: str,
) -> list[Rule]:
    """Return what may reach ``host``: what the other hosts of the platform need of it, and what ``allow`` adds.

    A rule of ``peers`` is ``{to: group, ports: [...], from: [groups]}``. The result's ``v4`` and ``v6`` are the
    sources; both empty means everyone.
    """
    result = []
    for peer in peers:
        others = {name: address for name, address in members(peer["from"], groups, addresses).items() if name != host}
        if host in groups.get(peer["to"], []) and others:
            rule = {"proto": "tcp", "ports": ports(peer["ports"], "firewall_peers"), "comment": str(peer["to"])}
            result.append(rule | families(others.values(), "platform_address"))
    return result + extra(allow, "sources", "firewall_allow")


def output_rules(
    peers: Iterable[Mapping[str, Any]],
    allow: Iterable[Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    addresses: Mapping[str, str],
    host: str,
    clients: Collection[str] = N8N_GROUPS,
) -> list[Rule]:
    """Return what n8n's processes on ``host`` may reach although it is private; the counterpart of ``input_rules``.

    ``clients`` are the groups of ``from`` that count, by default those that run n8n.

    The result's ``v4`` and ``v6`` are the destinations. A rule of ``allow`` without addresses is an error.
    """
    result = []
    for peer in peers:
        ours = [name for name in peer["from"] if name in clients and host in groups.get(name, [])]
        others = {name: address for name, address in members([peer["to"]], groups, addresses).items() if name != host}
        if ours and others:
            rule = {"proto": "tcp", "ports": ports(peer["ports"], "firewall_peers"), "comment": str(peer["to"])}
            result.append(rule | families(others.values(), "platform_address"))
    added = extra(allow, "addresses", "firewall_n8n_allow")
    if any(not rule["v4"] and not rule["v6"] for rule in added):
        raise AnsibleFilterError("firewall_n8n_allow: a rule without addresses would allow everything; name them.")
    return result + added


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "firewall_input": input_rules,
            "firewall_output": output_rules,
            "firewall_families": families,
            "firewall_ports": ports,
        }

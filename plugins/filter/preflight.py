# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that find problems in inventory and variables, before any host is asked.

A problem is ``{severity: error|warning, problem: a sentence, advice: what to do}``.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.dealscale.n8n_platform.plugins.filter.n8n_environment import RENAMED as N8N_RENAMED
from ansible_collections.dealscale.n8n_platform.plugins.filter.n8n_environment import n8n_environment_errors
from ansible_collections.dealscale.n8n_platform.plugins.filter.sizing import (
    n8n_connections,
    n8n_sizing,
    postgres_sizing,
    redis_sizing,
)

Problem = dict[str, str]
ROOT = Path(__file__).resolve().parents[2]

# What each component cannot do without.
NEEDS = {
    "n8n_main": ["postgres", "redis"],
    "n8n_webhook": ["n8n_main"],
    "n8n_worker": ["n8n_main"],
    "traefik": ["n8n_main"],
    "prometheus": ["exporters"],
    "pulsar_broker": ["pulsar_bookie"],
    "pulsar_bookie": ["pulsar_zookeeper"],
    "bridge": ["postgres", "pulsar_broker", "n8n_main"],
}
EXACTLY_ONE = [
    *("postgres", "redis", "n8n_main", "object_store"),
    *("prometheus", "alertmanager", "loki", "jaeger", "grafana"),
]
# Groups a managed service can take the place of, and the variable that names it.
MANAGED = {
    "postgres": "platform_postgres_host",
    "redis": "platform_redis_host",
    "pulsar_broker": "platform_pulsar_url",
}
COMPONENTS = [
    *("postgres", "redis", "n8n_main", "n8n_webhook", "n8n_worker", "traefik", "object_store", "backup"),
    *("exporters", "prometheus", "alertmanager", "loki", "otel_collector", "jaeger", "grafana"),
    *("pulsar_zookeeper", "pulsar_bookie", "pulsar_broker", "bridge"),
]
BUILT_IN = {"all", "ungrouped", "platform"}

# Names people bring from other set-ups of n8n, and what they are called here.
RENAMED = {
    "n8n_domain": "platform_domain",
    "n8n_host": "platform_domain",
    "n8n_workers": "platform_n8n_workers",
    "n8n_worker_count": "platform_n8n_workers",
    "n8n_worker_replicas": "platform_n8n_workers",
    "n8n_webhooks": "platform_n8n_webhooks",
    "n8n_concurrency": "platform_n8n_concurrency",
    "n8n_worker_concurrency": "platform_n8n_concurrency",
    "n8n_timezone": "platform_timezone",
    "n8n_encryption_key": "secrets_values.n8n_encryption_key",
    "n8n_extra_environment": "n8n_environment",
    "n8n_env": "n8n_environment",
    "n8n_data_folder": "n8n_data_dir",
    "n8n_user_folder": "n8n_data_dir",
    "n8n_export_folder": "n8n_export_dir",
    "postgres_password": "secrets_values.postgres_n8n_password",
    "postgres_max_connections": "platform_n8n_pool (max_connections follows from it)",
    "redis_password": "secrets_values.redis_n8n_password",
    "redis_maxmemory": "redis_queue_maxmemory_mb",
    "traefik_acme_email": "platform_admin_email",
    "acme_email": "platform_admin_email",
    "domain": "platform_domain",
}
# Names that never reach the public DNS.
LOCAL = re.compile(r"^[^.]+$|(^|\.)(localhost|local|internal|lan|home\.arpa|test|example|invalid)$")
SIMILAR = 0.85


def problem(text: str, advice: str, severity: str = "error") -> Problem:
    """Return one problem."""
    return {"severity": severity, "problem": text, "advice": advice}


def local_domain(domain: str) -> bool:
    """Tell whether a name cannot be in the public DNS, such as ``n8n.localhost``."""
    return bool(LOCAL.search(domain.lower()))


def _missing(filled: set[str], groups: Mapping[str, list[str]], variables: Mapping[str, Any]) -> list[Problem]:
    """Return the components that others need and nobody runs."""
    found = []
    for name in sorted(filled):
        for needed in NEEDS.get(name, []):
            if needed in filled or variables.get(MANAGED.get(needed, "")):
                continue
            other = f", or set {MANAGED[needed]} to a managed service" if needed in MANAGED else ""
            found.append(problem(f"{name} needs {needed}, which has no host.", f"Put a host into {needed}{other}."))
    # A majority decides: an even number of servers loses no more of them than the odd one below it.
    if (servers := len(groups.get("pulsar_zookeeper", []))) and servers % 2 == 0:
        text = f"The group pulsar_zookeeper has {servers} hosts, an even number."
        found.append(problem(text, "Leave an odd number in it: one, three or five."))
    if "n8n_main" in filled and "n8n_worker" not in filled:
        found.append(problem("Nothing would execute workflows.", "Put at least one host into the group n8n_worker."))
    return found


@functools.cache
def role_defaults(role: str) -> dict[str, Any]:
    """Return the public variables of one of the collection's roles and their defaults, templates as they stand there.

    Example: ``{{ ('n8n' | dealscale.n8n_platform.role_defaults).n8n_version }}``
    """
    text = (ROOT / "roles" / role / "defaults/main.yml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text) or {})


def n8n_names(version: str) -> str | None:
    """Return the variables a release of n8n reads, one a line, or None if the catalogue does not have the release."""
    path = ROOT / "artifacts/n8n" / version / "environment-variables.txt"
    return path.read_text(encoding="utf-8") if path.exists() else None


def inventory_problems(groups: Mapping[str, list[str]], variables: Mapping[str, Any] | None = None) -> list[Problem]:
    """Return what is wrong with the groups of an inventory.

    ``variables`` may hold ``platform_postgres_host`` and ``platform_redis_host``: a managed service replaces a group.

    Example: ``{{ groups | dealscale.n8n_platform.inventory_problems }}``
    """
    platform = list(groups.get("platform", []))
    filled = {name for name in COMPONENTS if groups.get(name)}
    if not platform:
        advice = "Put the hosts into the group platform; inventories/ holds examples to copy."
        return [problem("The inventory has no hosts in the group platform.", advice)]
    found = []
    if not filled:
        advice = f"Put hosts into its children: {', '.join(COMPONENTS)}."
        found.append(problem("No host of the group platform runs anything.", advice))
    for name in EXACTLY_ONE:
        if len(groups.get(name, [])) > 1:
            hosts = ", ".join(groups[name])
            found.append(problem(f"The group {name} has several hosts ({hosts}).", f"Leave exactly one in {name}."))
    found += _missing(filled, groups, variables or {})
    for name in sorted(filled):
        advice = f"Make {name} a child of the group platform."
        strangers = [host for host in groups[name] if host not in platform]
        found += [problem(f"{host} is in {name} but not in platform.", advice) for host in strangers]
    for name in sorted(set(groups) - BUILT_IN - set(COMPONENTS)):
        similar = difflib.get_close_matches(name, COMPONENTS, n=1, cutoff=SIMILAR)
        if similar:
            found.append(problem(f"The group {name} means nothing here.", f"Did you mean {similar[0]}?"))
    return found


def variable_problems(names: Iterable[str], n8n_version: str) -> list[Problem]:
    """Return what is wrong with the names of a host's variables.

    Renamed, removed and misspelt names are errors: Ansible would ignore them in silence. A name that only begins like
    one of ours and resembles none may be somebody's own.

    Example: ``{{ query('ansible.builtin.varnames', '.') | dealscale.n8n_platform.variable_problems('2.41.1') }}``
    """
    roles = [path.parents[1].name for path in ROOT.glob("roles/*/defaults/main.yml")]
    public = {name for role in roles for name in role_defaults(role)}
    prefixes = tuple(f"{role.lstrip('_')}_" for role in roles)
    read_by_n8n = set((n8n_names(n8n_version) or "").split())
    found = []
    for name in sorted(set(names) - public):
        if name in RENAMED:
            found.append(problem(f"The variable {name} does not exist.", f"Use {RENAMED[name]}."))
        elif name in N8N_RENAMED:
            found.append(problem(f"{name} does nothing.", f"Use {N8N_RENAMED[name]}."))
        elif name in read_by_n8n and "_" in name:
            advice = f"Write it as n8n_environment: {{{name}: ...}}."
            found.append(problem(f"{name} is a variable of n8n; as an inventory variable it does nothing.", advice))
        elif name.startswith(prefixes):
            similar = difflib.get_close_matches(name, public, n=1, cutoff=SIMILAR)
            if similar:
                found.append(problem(f"The variable {name} does not exist.", f"Did you mean {similar[0]}?"))
    return found


def _sizes(settings: Mapping[str, Any]) -> list[Problem]:
    """Return what the sizing of this host refuses."""
    found = []
    host, components = (settings["memory_mb"], settings["cores"], settings["profile"]), settings["group_names"]
    counts = {name: settings[name] for name in ("webhooks", "workers", "concurrency", "pool", "worker_memory_mb")}
    for name in ("workers", "webhooks"):
        group = f"n8n_{name[:-1]}"
        if group in components and str(counts[name]).strip() == "0":
            advice = f"Set it to 1 or more, or take the host out of the group {group}."
            found.append(problem(f"platform_n8n_{name} is 0.", advice))

    def connections() -> int:
        """Return how many connections PostgreSQL must allow."""
        given = (settings["groups"], settings["hostvars"], counts["pool"], counts["webhooks"], counts["workers"])
        return int(n8n_connections(*given, settings.get("more_connections", 0)))

    sizes: list[Callable[[], Any]] = [lambda: n8n_sizing(*host, components, **counts)]
    if "postgres" in components:
        sizes.append(lambda: postgres_sizing(*host, components, connections=connections()))
    if "redis" in components:
        sizes.append(lambda: redis_sizing(*host, components))
    for size in sizes:
        try:
            size()
        except AnsibleFilterError as refused:
            # The refusals of the sizing filters say themselves what to do.
            one = problem(str(refused), "Correct it in the inventory.")
            found += [one] if one not in found else []
    return found


def _names(settings: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the public name and who certifies it."""
    domain, mail = str(settings["domain"]), str(settings["admin_email"])
    acme = settings["tls_mode"] == "acme" and "traefik" in settings["group_names"]
    found = []
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", domain):
        advice = "Set it to the public host name of n8n, without https:// and without a path."
        found.append(problem(f"platform_domain is {domain!r}, which is not a host name.", advice))
    elif acme and local_domain(domain):
        advice = "Set platform_domain to a name in the public DNS, or traefik_tls_mode to internal_ca or files."
        found.append(problem(f"traefik_tls_mode is acme, but nobody certifies platform_domain {domain}.", advice))
    if acme and local_domain(mail.rpartition("@")[2]):
        advice = "Set platform_admin_email to an address that people read."
        found.append(problem(f"ACME refuses the address {mail}.", advice))
    return found


def _n8n(settings: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the variables meant for n8n."""
    version = str(settings["n8n_version"])
    names = n8n_names(version)
    if names is None:
        advice = f"Run make pin TOOL=n8n VERSION={version}, or leave n8n_version unset."
        return [problem(f"n8n {version} is not in the catalogue (artifacts/).", advice)]
    texts = n8n_environment_errors(settings["n8n_environment"], names)
    return [problem(f"n8n_environment: {text}", "Correct it; docs.n8n.io lists the variables.") for text in texts]


def _backups(settings: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the settings of backups."""
    if "backup" not in settings["group_names"] or settings["age_recipients"]:
        return []
    advice = (
        "Run `age-keygen -o backup-key.txt` on your own machine, put the public key it prints (age1...) into "
        "backup_age_recipients and the file into a safe."
    )
    return [problem("backup_age_recipients is empty: nobody could open the secrets in a backup.", advice)]


def setting_problems(settings: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the values of a host's variables.

    ``settings`` holds ``group_names``, ``groups``, ``hostvars``, ``memory_mb``, ``cores``, ``profile``, ``webhooks``,
    ``workers``, ``concurrency``, ``pool``, ``worker_memory_mb``, ``domain``, ``admin_email``, ``tls_mode``,
    ``n8n_environment``, ``n8n_version`` and ``age_recipients``.
    """
    runs_n8n = set(settings["group_names"]) & {"n8n_main", "n8n_webhook", "n8n_worker"}
    return _sizes(settings) + _names(settings) + _backups(settings) + (_n8n(settings) if runs_n8n else [])


def problem_lines(problems: Mapping[str, Iterable[Problem]], severity: str | None = None) -> list[str]:
    """Return problems as lines for people, the same problem of several hosts only once.

    Example: ``{{ {'web-1': problems} | dealscale.n8n_platform.problem_lines('error') }}``
    """
    merged: dict[tuple[str, str, str], list[str]] = {}
    for host, ones in problems.items():
        for one in ones:
            if severity in (None, one["severity"]):
                merged.setdefault((one["severity"], one["problem"], one["advice"]), []).append(host)
    ordered = sorted(merged.items(), key=lambda item: item[0][0])
    return [f"{kind.upper()} {', '.join(hosts)}: {text} -> {advice}" for (kind, text, advice), hosts in ordered]


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "inventory_problems": inventory_problems,
            "local_domain": local_domain,
            "problem_lines": problem_lines,
            "role_defaults": role_defaults,
            "setting_problems": setting_problems,
            "variable_problems": variable_problems,
        }

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the doctor knows of Pulsar: whether it stores messages, what waits in it, whether the bookie has its place."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ansible_collections.dealscale.n8n_platform.plugins.module_utils.health import Health, read, size
from ansible_collections.dealscale.n8n_platform.plugins.module_utils.pulsar_admin import (
    Admin,
    PulsarError,
    UnreachableError,
    quoted,
)

# The watch looks every 20 seconds unless told otherwise; one that waits for ZooKeeper takes longer.
WATCH_SILENT_S = 600
JOURNAL = "journalctl -u 'n8n-pulsar-*' -n 50; docs/pulsar.md"
SYSTEM_TENANTS = ("public", "pulsar")


def check_pulsar(health: Health, settings: dict[str, Any]) -> None:
    """Look at the parts of Pulsar that this host runs."""
    summary = []
    if settings.get("watch"):
        summary.append(check_bookie(health, settings["watch"]))
    if settings.get("url"):
        summary.append(check_broker(health, settings))
    health.summary["pulsar"] = ", ".join(summary)


def check_bookie(health: Health, report: str) -> str:
    """Look at what the watch of the bookie says; return a few words."""
    try:
        said = json.loads(read(Path(report)))
        age = time.time() - Path(report).stat().st_mtime
    except (ValueError, OSError):
        health.find("error", "pulsar", "The watch of the bookie has not run yet.", JOURNAL)
        return "bookie unknown"
    if age > WATCH_SILENT_S:
        text = f"The watch of the bookie has not looked for {int(age)} s."
        health.find("error", "pulsar", text, "systemctl status n8n-pulsar-bookie-watch.timer")
    if said["outcome"] != "well":
        severity, text = "error", "The bookie is not registered in ZooKeeper, so no broker can store messages in it."
        if said["outcome"] == "unknown":
            severity, text = (
                "warning",
                "ZooKeeper does not tell whether the bookie is registered, or it has just started.",
            )
        health.find(severity, "pulsar", text, JOURNAL)
    return f"bookie {'registered' if said['outcome'] == 'well' else said['outcome']}"


def check_broker(health: Health, settings: dict[str, Any]) -> str:
    """Ask the broker of this host; return a few words."""
    token = read(Path(settings["token_file"])).strip()
    admin = Admin(settings["url"], token, settings.get("ca_file") or None, timeout=0)
    try:
        admin.call("GET", "brokers/health")
        waiting, dead, stored = backlog(admin, str(settings["dead_letters"]))
    except (PulsarError, UnreachableError) as error:
        text = f"The broker does not write and read messages: {error}."
        health.find("error", "pulsar", text, JOURNAL)
        return "broker ill"
    if dead:
        advice = "n8n-platform events dead; then n8n-platform events replay ID; docs/bridge.md"
        health.find("warning", "pulsar", f"{dead} dead letters wait for somebody to look at them.", advice)
    return f"broker stores, {waiting} messages wait, {size(stored // 2**20)} stored"


def backlog(admin: Admin, dead_letters: str) -> tuple[int, int, int]:
    """Return how many messages wait, how many dead letters, and the bytes all of them take."""
    waiting = dead = stored = 0
    for tenant in admin.get("tenants") or []:
        if tenant in SYSTEM_TENANTS:
            continue
        for namespace in admin.get(f"namespaces/{quoted(tenant)}") or []:
            space = quoted(namespace)
            partitioned = admin.get(f"persistent/{space}/partitioned") or []
            whole = [name for name in admin.get(f"persistent/{space}") or [] if "-partition-" not in name]
            for kind, names in (("partitioned-stats", partitioned), ("stats", whole)):
                for name in names:
                    stats = admin.get(f"persistent/{space}/{quoted(name.rsplit('/', 1)[-1])}/{kind}") or {}
                    there = sum(one.get("msgBacklog", 0) for one in (stats.get("subscriptions") or {}).values())
                    stored += stats.get("storageSize", 0)
                    if namespace.endswith(f"/{dead_letters}"):
                        dead += there
                    else:
                        waiting += there
    return waiting, dead, stored

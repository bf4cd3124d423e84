#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find out how the platform's part on one host is, and what to do about everything that is not well."""

from __future__ import annotations

DOCUMENTATION = r"""
module: platform_health
short_description: Find out how the platform's part on one host is
description:
  - Asks systemd, the services themselves, Redis, PostgreSQL, the file systems and the certificates of a host. Reads
    only.
  - Never fails because of what it finds; the caller decides by the severity of the findings.
options:
  units:
    description: Units that must run.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: "Name, or a glob that at least one unit must match.", type: str, required: true}
      probe:
        description: "What answers when it works: an http(s) address that gives 200, or C(tcp:HOST:PORT)."
        type: str
      optional: {description: It is no finding when systemd does not know it., type: bool, default: false}
      sources:
        description: Globs of files it reads at its start; newer ones call for a restart.
        type: list
        elements: str
        default: []
  redis:
    description: Redis instances.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name of the instance., type: str, required: true}
      socket: {description: Its UNIX socket., type: path, required: true}
      prefix: {description: Key prefix of n8n's jobs; empty for an instance without jobs., type: str, default: ''}
  admin_password_file:
    description: File with the password of the administrator of Redis.
    type: path
    default: /etc/n8n-platform/secrets/redis_admin_password
  postgres:
    description: "The database: C(port) and C(database). Empty when there is none on this host."
    type: dict
    default: {}
  certificates:
    description: Certificates by name, each a file or C(tls:HOST:PORT:SERVER_NAME) to ask a server.
    type: dict
    default: {}
  versions:
    description: Programs that have a C(current) link, by name, each with C(link) and C(wanted).
    type: dict
    default: {}
  disks:
    description: Directories whose file systems are looked at.
    type: list
    elements: path
    default: [/]
  limits:
    description: Report of the baseline role on what the kernel refuses.
    type: path
    default: /var/lib/n8n-platform/limits.json
  guard:
    description: Report of the guard of executions, looked at where C(n8n-guard.timer) is installed.
    type: str
    default: ''
  backup:
    description: >-
      Backups of this host: C(command) tells how they are, C(watch) is the report of the watcher of the archive (empty
      without PostgreSQL), C(max_behind_seconds) what a repository may be behind. Empty when none are made here.
    type: dict
    default: {}
  pulsar:
    description: >-
      Pulsar on this host: C(watch) is the report of the watch of its bookie; C(url), C(token_file), C(ca_file) and
      C(dead_letters) (their namespace) ask its broker. Each is empty without that part.
    type: dict
    default: {}
  backlog_interval:
    description: Seconds between two looks at a queue in which jobs wait and nothing is active.
    type: float
    default: 3
author:
  - The dealscale.n8n_platform authors (@dealscale)
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Look at the queue
  dealscale.n8n_platform.platform_health:
    units: [{name: redis-queue.service}]
    redis: [{name: queue, socket: /run/redis-queue/redis.sock, prefix: n8n-production}]
"""

RETURN = r"""
findings:
  description: >-
    What is not well, each with C(severity) (V(error) or V(warning)), C(area), C(problem) and C(advice).
  type: list
  elements: dict
  returned: always
summary:
  description: One line of text for each area.
  type: dict
  returned: always
"""

import contextlib
import fnmatch
import glob
import json
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.dealscale.n8n_platform.plugins.module_utils import health as host_health
from ansible_collections.dealscale.n8n_platform.plugins.module_utils import health_backup, health_pulsar
from ansible_collections.dealscale.n8n_platform.plugins.module_utils.health import (
    MEMORY_HIGH,
    Health,
    mebibytes,
    percent,
    read,
    size,
)
from ansible_collections.dealscale.n8n_platform.plugins.module_utils.resp import Redis, RedisError

HTTP_OK = 200
PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,Result,UnitFileState,NeedDaemonReload,ActiveEnterTimestamp,MainPID,NRestarts,"
    "MemoryCurrent,MemoryMax,FragmentPath,DropInPaths"
)
# What counts as too much, percent where not said otherwise.
CONNECTION_LEVELS = (80, 95)
REDIS_LEVELS = (75, 95)
RESTARTS_WARNING = 3
LONG_TRANSACTION_S = 900
FREEZE_WARNING = 1_000_000_000
BACKLOG_WARNING = 1000
# Seconds a source may be newer than the start it belongs to: systemd tells starts in whole seconds.
CLOCK_GRAIN = 2

DATABASE_SQL = """select json_build_object(
 'version', current_setting('server_version'),
 'connections', (select count(*) from pg_stat_activity where backend_type = 'client backend'),
 'max_connections', current_setting('max_connections')::int,
 'pending_restart', (select coalesce(string_agg(name, ', '), '') from pg_settings where pending_restart),
 'size', pg_database_size(current_database()),
 'oldest_transaction_s', (select coalesce(max(extract(epoch from now() - xact_start)), 0)::int from pg_stat_activity
   where backend_type = 'client backend' and pid <> pg_backend_pid()),
 'checksum_failures', (select coalesce(sum(checksum_failures), 0) from pg_stat_database),
 'archive_failing', (select failed_count > 0 and last_failed_time > coalesce(last_archived_time, '-infinity')
   from pg_stat_archiver),
 'freeze_age', (select max(age(datfrozenxid)) from pg_database),
 'executions', to_regclass('execution_entity') is not null)"""
EXECUTIONS_SQL = """select json_build_object(
 'hour', (select coalesce(json_object_agg(status, n), '{}') from (select status, count(*) n from execution_entity
   where "createdAt" > now() - interval '1 hour' group by status) recent),
 'waiting_long', (select count(*) from execution_entity
   where status = 'new' and "deletedAt" is null and "createdAt" < now() - interval '5 min'),
 'running_long', (select count(*) from execution_entity
   where status = 'running' and "deletedAt" is null and "startedAt" < now() - interval '5 min'),
 'crashed', (select count(*) from execution_entity
   where status = 'crashed' and "deletedAt" is null and "createdAt" > now() - interval '1 day'))"""


def answers(probe: str) -> str:
    """Return nothing if a probe answers, otherwise why it does not."""
    try:
        if probe.startswith("tcp:"):
            host, port = probe[4:].rsplit(":", 1)
            with socket.create_connection((host, int(port)), timeout=3):
                return ""
        # The probe asks this host only.
        context = ssl._create_unverified_context() if probe.startswith("https:") else None  # noqa: S323
        with urllib.request.urlopen(probe, timeout=5, context=context) as answer:  # noqa: S310
            return "" if answer.status == HTTP_OK else f"HTTP {answer.status}"
    except urllib.error.HTTPError as refused:
        return f"HTTP {refused.code}"
    except (OSError, urllib.error.URLError) as failed:
        return str(getattr(failed, "reason", failed))


def show(health: Health, names: list[str]) -> list[dict[str, str]]:
    """Return the properties of units by name or glob."""
    text = health.run("systemctl", "show", "--timestamp=unix", f"--property={PROPERTIES}", "--", *names)
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in text.split("\n\n")]
    return [block for block in blocks if block.get("Id")]


def newer_sources(unit: dict[str, str], sources: list[str]) -> Iterator[str]:
    """Return why a running unit does not work with what lies on the disk now."""
    started = int(unit.get("ActiveEnterTimestamp", "").lstrip("@") or 0)
    files = [unit.get("FragmentPath", ""), *unit.get("DropInPaths", "").split()]
    for path in [*files, *(match for source in sources for match in glob.glob(source))]:
        with contextlib.suppress(OSError):
            if path and os.lstat(path).st_mtime > started + CLOCK_GRAIN:
                yield path
    with contextlib.suppress(OSError):
        if str((host_health.PROC / unit.get("MainPID", "0") / "exe").readlink()).endswith(" (deleted)"):
            yield "its program"


def check_unit(health: Health, unit: dict[str, str], wanted: dict[str, Any]) -> None:
    """Look at one unit that must run."""
    name = unit["Id"]
    if unit["ActiveState"] != "active":
        state = f"{unit['ActiveState']} ({unit.get('Result', '')})"
        advice = f"journalctl -u {name} -n 50; then systemctl start {name}"
        health.find("error", "units", f"{name} is {state}.", advice)
        return
    if unit.get("UnitFileState") == "disabled":
        health.find("warning", "units", f"{name} does not start at boot.", f"systemctl enable {name}")
    why = answers(wanted["probe"]) if wanted["probe"] else ""
    if why:
        advice = f"journalctl -u {name} -n 50; if it stays so: systemctl restart {name}"
        health.find("error", "readiness", f"{name} runs but is not ready: {why} ({wanted['probe']}).", advice)
    changed = list(dict.fromkeys(newer_sources(unit, wanted["sources"])))
    if changed or unit.get("NeedDaemonReload") == "yes":
        files = ", ".join(changed[:3]) or "its unit file"
        advice = f"Run site.yml, or systemctl daemon-reload && systemctl restart {name}"
        health.find("warning", "units", f"{name} was started before {files} changed.", advice)
    used, limit = mebibytes(unit.get("MemoryCurrent")), mebibytes(unit.get("MemoryMax"))
    if percent(used, limit) >= MEMORY_HIGH:
        advice = f"Raise its limit (see the role's README), or look what it does: systemctl status {name}"
        health.find("warning", "units", f"{name} uses {used} of {limit} MiB.", advice)
    restarts = int(unit.get("NRestarts") or 0)
    if restarts >= RESTARTS_WARNING:
        advice = (
            f"journalctl -u {name} --since -1d | grep -iE 'error|exit|kill'; systemctl reset-failed {name} clears it"
        )
        health.find("warning", "units", f"{name} was restarted {restarts} times after failures.", advice)


def check_units(health: Health, wanted: list[dict[str, Any]]) -> None:
    """Look at the units that must run and at those that failed."""
    if not wanted:
        return
    shown = show(health, [entry["name"] for entry in wanted])
    absent = {unit["Id"] for unit in shown if unit["LoadState"] == "not-found"}
    wanted = [entry for entry in wanted if not (entry["optional"] and entry["name"] in absent)]
    running, memory = 0, []
    for entry in wanted:
        matching = [unit for unit in shown if fnmatch.fnmatch(unit["Id"], entry["name"])]
        if not matching:
            name = entry["name"]
            health.find(
                "error", "units", f"{name} does not exist.", f"Run site.yml; systemctl list-unit-files '{name}'"
            )
        for unit in matching:
            check_unit(health, unit, entry)
            if unit["ActiveState"] == "active":
                running += 1
                if mebibytes(unit.get("MemoryCurrent")):
                    memory.append((mebibytes(unit["MemoryCurrent"]), unit["Id"].removesuffix(".service")))
    largest = ", ".join(f"{name} {used}" for used, name in sorted(memory, reverse=True)[:6])
    health.summary["units"] = f"{running} of {len(wanted)} run" + (f"; MiB: {largest}" if largest else "")
    named = {unit["Id"] for unit in shown}
    for line in health.run("systemctl", "list-units", "--failed", "--plain", "--no-legend").splitlines():
        name = line.split()[0] if line.split() else ""
        if name and name not in named:
            advice = f"journalctl -u {name} -n 50; systemctl reset-failed {name} when it is of no interest"
            health.find("warning", "units", f"{name} failed.", advice)


def bull(server: Redis, prefix: str) -> dict[str, int]:
    """Return how many jobs n8n has in each state."""
    count = {
        state: int(str(server.call(command, f"{prefix}:jobs:{key}")))
        for state, command, key in (
            ("waiting", "LLEN", "wait"),
            ("active", "LLEN", "active"),
            ("delayed", "ZCARD", "delayed"),
            ("paused", "LLEN", "paused"),
        )
    }
    last = server.call("LINDEX", f"{prefix}:jobs:wait", 0)
    return {**count, "newest": int(str(last)) if str(last or "").isdigit() else 0}


def check_jobs(health: Health, server: Redis, prefix: str) -> str:
    """Look at n8n's jobs; return them as text."""
    jobs = bull(server, prefix)
    if jobs["waiting"] and not jobs["active"]:
        time.sleep(health.module.params["backlog_interval"])
        again = bull(server, prefix)
        if again["waiting"] >= jobs["waiting"] and not again["active"]:
            advice = "systemctl status 'n8n-worker@*'; systemctl restart 'n8n-worker@*' if they run"
            health.find("error", "queue", f"{again['waiting']} jobs wait and no worker takes one.", advice)
        jobs = again
    if jobs["waiting"] >= BACKLOG_WARNING:
        advice = "Raise platform_n8n_workers (or add a host to n8n_worker) and run site.yml."
        health.find("warning", "queue", f"{jobs['waiting']} jobs wait.", advice)
    if jobs["paused"]:
        advice = "Resume it; n8n takes paused jobs for lost ones."
        health.find("error", "queue", f"The queue is paused with {jobs['paused']} jobs.", advice)
    health.jobs = jobs
    return f"{jobs['waiting']} waiting, {jobs['active']} active, {jobs['delayed']} delayed; "


def check_redis(health: Health, instances: list[dict[str, Any]], password: str) -> None:
    """Look at the Redis instances."""
    for instance in instances:
        area = f"redis {instance['name']}"
        try:
            with Redis(instance["socket"]) as server:
                server.call("AUTH", "admin", password)
                info = server.info("all")
                jobs = check_jobs(health, server, instance["prefix"]) if instance["prefix"] else ""
        except (OSError, RedisError) as failed:
            advice = f"journalctl -u redis-{instance['name']} -n 50"
            health.find("error", area, f"Redis {instance['name']} does not answer: {failed}.", advice)
            continue
        used, most = int(info["used_memory"]), int(info["maxmemory"])
        health.summary[area] = f"{jobs}{size(used // 2**20)} of {size(most // 2**20)}, version {info['redis_version']}"
        if info["maxmemory_policy"] == "noeviction":
            advice = f"Raise redis_{instance['name']}_maxmemory_mb, or find what fills it (redis-cli --bigkeys)."
            share = percent(used, most)
            full = f"Redis {instance['name']} has used {share:.0f} % of its memory; then it refuses jobs."
            health.by_level(area, share, REDIS_LEVELS, full, advice)
            if int(info["evicted_keys"]):
                health.find(
                    "error", area, f"{info['evicted_keys']} keys were evicted.", "Set maxmemory-policy noeviction."
                )
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status"):
            if info.get("aof_enabled") == "1" and info.get(name) != "ok":
                advice = f"Look for disk space; journalctl -u redis-{instance['name']}"
                health.find("error", area, f"Redis cannot write its file ({name}: {info.get(name)}).", advice)
        if int(info["rejected_connections"]):
            advice = "Raise redis_maxclients."
            health.find("warning", area, f"{info['rejected_connections']} connections were refused.", advice)


def query(health: Health, postgres: dict[str, Any], sql: str) -> dict[str, Any] | None:
    """Return what a query that gives one JSON object says, or None if it fails."""
    command = ("runuser", "-u", "postgres", "--", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1")
    text = health.run(*command, "-p", str(postgres["port"]), "-d", str(postgres["database"]), "-c", sql)
    return dict(json.loads(text)) if text.strip() else None


def check_postgres(health: Health, postgres: dict[str, Any]) -> None:
    """Look at the database and at the executions in it."""
    if not postgres:
        return
    found = query(health, postgres, DATABASE_SQL)
    if found is None:
        advice = "systemctl status 'postgresql@*'; journalctl -u 'postgresql@*' -n 50"
        health.find("error", "database", "PostgreSQL does not answer.", advice)
        return
    share = percent(found["connections"], found["max_connections"])
    health.summary["database"] = (
        f"{found['connections']} of {found['max_connections']} connections, {size(found['size'] // 2**20)}, "
        f"oldest transaction {found['oldest_transaction_s']} s, version {found['version'].split()[0]}"
    )
    text = f"{found['connections']} of {found['max_connections']} connections are in use."
    advice = "Lower platform_n8n_pool or raise postgres_max_connections; see who: select * from pg_stat_activity"
    health.by_level("database", share, CONNECTION_LEVELS, text, advice)
    if found["oldest_transaction_s"] >= LONG_TRANSACTION_S:
        text = (
            f"A transaction has been open for {found['oldest_transaction_s']} s; it keeps dead rows from being removed."
        )
        advice = "select pid, query from pg_stat_activity order by xact_start limit 1; then pg_terminate_backend(pid)"
        health.find("warning", "database", text, advice)
    if found["pending_restart"]:
        advice = "Run site.yml, or restart PostgreSQL in a quiet moment."
        health.find("warning", "database", f"Settings wait for a restart: {found['pending_restart']}.", advice)
    if int(found["checksum_failures"]):
        advice = "A disk returns wrong data. Take a backup now, restore on another disk."
        health.find("error", "database", f"{found['checksum_failures']} pages have a wrong checksum.", advice)
    if found["archive_failing"]:
        advice = "journalctl -u 'postgresql@*'; until it works no point-in-time restore is possible."
        health.find("error", "database", "The write-ahead log cannot be archived.", advice)
    if found["freeze_age"] >= FREEZE_WARNING:
        advice = "See what holds autovacuum back; run vacuumdb --all --freeze."
        health.find("warning", "database", f"Transaction numbers run out ({found['freeze_age']} used).", advice)
    if found["executions"]:
        check_executions(health, query(health, postgres, EXECUTIONS_SQL))


def check_executions(health: Health, found: dict[str, Any] | None) -> None:
    """Look for executions that no longer move."""
    if found is None:
        return
    hour = ", ".join(f"{count} {status}" for status, count in sorted(found["hour"].items())) or "none"
    health.summary["executions"] = f"last hour: {hour}; crashed in 24 h: {found['crashed']}"
    # Only where the queue is on the same host can the two be compared.
    if health.jobs is not None:
        queued = health.jobs["waiting"] + health.jobs["active"] + health.jobs["delayed"]
        advice = "The guard settles them within minutes: n8n-platform guard status; n8n-platform executions lost"
        if found["waiting_long"] > queued:
            text = f"{found['waiting_long'] - queued} executions wait for more than 5 minutes and have no job."
            health.find("error", "executions", text, advice)
        if found["running_long"] > health.jobs["active"]:
            text = (
                f"{found['running_long'] - health.jobs['active']} executions count as running, but no worker has them."
            )
            health.find("error", "executions", text, advice)


def main() -> None:
    """Entry point of the module."""
    unit = {
        "name": {"type": "str", "required": True},
        "probe": {"type": "str"},
        "optional": {"type": "bool", "default": False},
        "sources": {"type": "list", "elements": "str", "default": []},
    }
    instance = {
        "name": {"type": "str", "required": True},
        "socket": {"type": "path", "required": True},
        "prefix": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "dict", "options": unit, "default": []},
            "redis": {"type": "list", "elements": "dict", "options": instance, "default": []},
            "admin_password_file": {
                "type": "path",
                "default": "/etc/n8n-platform/secrets/redis_admin_password",
                "no_log": False,
            },
            "postgres": {"type": "dict", "default": {}},
            "certificates": {"type": "dict", "default": {}},
            "versions": {"type": "dict", "default": {}},
            "disks": {"type": "list", "elements": "path", "default": ["/"]},
            "limits": {"type": "path", "default": "/var/lib/n8n-platform/limits.json"},
            "guard": {"type": "str", "default": ""},
            "backup": {"type": "dict", "default": {}},
            "pulsar": {"type": "dict", "default": {}},
            "backlog_interval": {"type": "float", "default": 3},
        },
        supports_check_mode=True,
    )
    given, health = module.params, Health(module)
    host_health.check_host(health, given["limits"])
    check_units(health, given["units"])
    check_redis(health, given["redis"], read(Path(given["admin_password_file"])))
    check_postgres(health, given["postgres"])
    if given["guard"] and health.run("systemctl", "show", "-P", "LoadState", "n8n-guard.timer").strip() == "loaded":
        host_health.check_guard(health, Path(given["guard"]))
    if given["backup"]:
        health_backup.check_backup(health, given["backup"])
    if given["pulsar"]:
        health_pulsar.check_pulsar(health, given["pulsar"])
    host_health.check_certificates(health, given["certificates"])
    host_health.check_versions(health, given["versions"])
    host_health.check_disks(health, given["disks"])
    module.exit_json(changed=False, findings=health.findings, summary=health.summary)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that say what a host's health depends on, and turn what the hosts answered into one screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Results = Mapping[str, Mapping[str, Any]]
UNREACHABLE = {
    "severity": "error",
    "area": "host",
    "problem": "The host does not answer.",
    "advice": "Check power, network and SSH; ansible -m ping tells more.",
}


def _n8n_units(settings: Mapping[str, Any], groups: set[str]) -> list[dict[str, Any]]:
    """Return the units of n8n that must run on a host."""
    ports, install, secrets = settings["ports"], settings["install_dir"], settings["secrets_dir"]
    sources = [
        f"{install}/n8n/current",
        f"{install}/nodejs/current",
        f"{settings['config_dir']}/n8n/n8n.env",
        *(f"{secrets}/{name}" for name in ("n8n_encryption_key", "n8n_jwt_secret")),
        *(f"{secrets}/{name}" for name in ("postgres_n8n_password", "redis_n8n_password")),
    ]
    address = f"https://{settings['address']}" if settings["multi_host"] else "http://127.0.0.1"

    def process(name: str, origin: str, port: int) -> dict[str, Any]:
        """Return one process of n8n."""
        return {"name": f"n8n-{name}.service", "probe": f"{origin}:{port}/healthz/readiness", "sources": sources}

    units: list[dict[str, Any]] = []
    if "n8n_main" in groups:
        units.append(process("main", address, int(ports["n8n_main"])))
        units.append({"name": "n8n-guard.timer", "optional": True})
    if "n8n_webhook" in groups:
        for i in range(1, int(settings["webhooks"]) + 1):
            units.append(process(f"webhook@{i}", address, int(ports["n8n_webhook_base"]) + i))
    if "n8n_worker" in groups:
        for i in range(1, int(settings["workers"]) + 1):
            units.append(process(f"worker@{i}", "http://127.0.0.1", int(ports["n8n_worker_base"]) + i))
            units.append({"name": f"n8n-runner@{i}.service", "sources": [f"{install}/n8n/current"]})
    return [*units, {"name": "n8n-watchdog.timer", "optional": True}] if units else []


def _monitoring_units(settings: Mapping[str, Any], groups: set[str]) -> list[dict[str, Any]]:
    """Return the units of monitoring that must run on a host."""
    ports, units = settings["ports"], list[dict[str, Any]]()
    alone, config = not settings["multi_host"], settings["config_dir"]
    exporters = {"node": "exporters", "process": "exporters", "postgres": "postgres", "redis": "redis"}
    exporters["blackbox"] = "prometheus"
    for name, group in exporters.items():
        if {"exporters", group} <= groups:
            probe = f"http://127.0.0.1:{ports[f'{name}_exporter']}/"
            sources = [f"/etc/systemd/system/prometheus-{name}-exporter.service", f"{config}/exporters/{name}.yml"]
            units.append({"name": f"prometheus-{name}-exporter.service", "probe": probe, "sources": sources})
    if "exporters" in groups and not alone:
        units.append(
            {"name": "n8n-metrics-gate.service", "sources": [f"{config}/exporters/gate.conf"], "optional": True}
        )
    for group, unit in (("prometheus", "prometheus"), ("alertmanager", "prometheus-alertmanager")):
        if group in groups:
            port = ports[group]
            probe = f"http://127.0.0.1:{port}/-/ready" if alone else f"tcp:{settings['address']}:{port}"
            renewed = [] if alone else [f"{settings['tls_dir']}/host.crt"]
            units.append({"name": f"{unit}.service", "probe": probe, "sources": renewed})
    others = {"loki": "loki", "jaeger": "jaeger", "otel_collector": "otel-collector"}
    units += [{"name": f"{unit}.service"} for group, unit in others.items() if group in groups]
    return units


def _pulsar(settings: Mapping[str, Any], groups: set[str], plan: dict[str, Any]) -> None:
    """Add Pulsar to the plan of a host."""
    ports, install, config = settings["ports"], settings["install_dir"], settings["config_dir"]
    multi, address = settings["multi_host"], settings["address"] if settings["multi_host"] else "127.0.0.1"
    web = f"https://{address}:{ports['pulsar_web_tls']}" if multi else f"http://{address}:{ports['pulsar_web']}"
    daemons = {
        "zookeeper": (f"tcp:{address}:{ports['zookeeper']}", "zookeeper.conf"),
        "bookie": (f"tcp:{address}:{ports['bookie']}", "bookkeeper.conf"),
        "broker": (f"{web}/status.html", "broker.conf"),
    }
    for name, (probe, file) in daemons.items():
        if f"pulsar_{name}" in groups:
            sources = [f"{install}/pulsar/current", f"{config}/pulsar/{file}", f"{config}/pulsar/{name}.env"]
            sources += [f"{settings['tls_dir']}/host.crt"] if multi else []
            plan["units"].append({"name": f"n8n-pulsar-{name}.service", "probe": probe, "sources": sources})
    if "pulsar_bookie" in groups:
        plan["units"].append({"name": "n8n-pulsar-bookie-watch.timer"})
        plan["pulsar"]["watch"] = f"{settings['state_dir']}/pulsar/bookie-watch.json"
    if "pulsar_broker" in groups:
        plan["pulsar"] |= {
            "url": web,
            "token_file": f"{settings['secrets_dir']}/pulsar_admin_token",
            "ca_file": f"{settings['tls_dir']}/ca.crt" if multi else "",
            "dead_letters": settings["pulsar_dead_letters"],
        }


def _bridge_units(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the units of the bridge that must run on a host."""
    units: list[dict[str, Any]] = []
    sources = [f"{settings['install_dir']}/bridge/current", f"{settings['config_dir']}/bridge/settings.json"]
    for kind, count in settings["bridge_processes"].items():
        for i in range(1, int(count) + 1):
            probe = f"http://127.0.0.1:{int(settings['ports'][f'bridge_{kind}_ops_base']) + i}/health/ready"
            units.append({"name": f"n8n-bridge-{kind}@{i}.service", "probe": probe, "sources": sources})
    return [*units, {"name": "n8n-bridge-maintain.timer"}]


def health_plan(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the module platform_health has to look at on one host, as its options.

    ``settings`` holds ``group_names``, ``ports``, ``multi_host``, ``address``, ``webhooks``, ``workers``,
    ``redis_instances``, ``redis_prefix``, ``ops_address``, ``domain``, ``versions`` (of n8n, nodejs, traefik,
    versitygw and pulsar), ``object_store_provider``, ``bridge_processes``,
    ``pulsar_dead_letters``,
    ``backup_max_behind_seconds`` and the directories ``install_dir``, ``config_dir``, ``secrets_dir``, ``tls_dir``,
    ``state_dir``.
    """
    groups, ports, install = set(settings["group_names"]), settings["ports"], settings["install_dir"]
    renewed = [f"{settings['tls_dir']}/host.crt"] if settings["multi_host"] else []
    plan: dict[str, Any] = {"units": [], "redis": [], "certificates": {}, "versions": {}, "backup": {}, "pulsar": {}}
    tools = []
    if "postgres" in groups:
        plan["units"].append({"name": "postgresql@*.service"})
    if "redis" in groups:
        for name in settings["redis_instances"]:
            sources = [f"{settings['config_dir']}/redis/{name}.conf", *renewed]
            plan["units"].append({"name": f"redis-{name}.service", "sources": sources})
            prefix = settings["redis_prefix"] if name == "queue" else ""
            plan["redis"].append({"name": name, "socket": f"/run/redis-{name}/redis.sock", "prefix": prefix})
    if "object_store" in groups and settings["object_store_provider"] == "versitygw":
        sources = [
            f"{settings['config_dir']}/object-store/server.env",
            f"{settings['tls_dir']}/host.crt",
            f"{install}/versitygw/current",
        ]
        probe = f"https://127.0.0.1:{ports['object_store']}/health"
        plan["units"].append({"name": "object-store.service", "probe": probe, "sources": sources})
        plan["units"] += [{"name": f"object-store-{name}.timer"} for name in ("keep", "guard")]
        tools.append("versitygw")
    n8n = _n8n_units(settings, groups)
    if n8n:
        plan["units"] += n8n
        tools += ["n8n", "nodejs"]
    if "traefik" in groups:
        ping = f"http://{settings['ops_address']}:{ports['traefik_ops']}/ping"
        plan["units"].append({"name": "traefik.service", "probe": ping, "sources": [f"{install}/traefik/current"]})
        plan["units"].append({"name": "traefik-websecure.socket"})
        plan["certificates"][settings["domain"]] = f"tls:127.0.0.1:{ports['traefik_https']}:{settings['domain']}"
        tools.append("traefik")
    if settings["multi_host"]:
        plan["certificates"]["this host"] = f"{settings['tls_dir']}/host.crt"
    if "backup" in groups:
        # A host gets the timer of the nightly run only where it has asked for one; cron needs no unit of ours.
        plan["units"].append({"name": "n8n-backup.timer", "optional": True})
        plan["backup"] = {
            "command": "/usr/local/sbin/n8n-platform-backup",
            "watch": f"{settings['state_dir']}/backup-watch.json" if "postgres" in groups else "",
            "max_behind_seconds": int(settings["backup_max_behind_seconds"]),
        }
        if "postgres" in groups:
            plan["units"].append({"name": "n8n-backup-watch.timer"})
    plan["units"] += _monitoring_units(settings, groups)
    if groups & {"pulsar_zookeeper", "pulsar_bookie", "pulsar_broker"}:
        _pulsar(settings, groups, plan)
        tools.append("pulsar")
    if "bridge" in groups:
        plan["units"] += _bridge_units(settings)
    for tool in tools:
        plan["versions"][tool] = {"link": f"{install}/{tool}/current", "wanted": settings["versions"][tool]}
    return plan


def _findings(result: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """Return the findings of one host, errors first; a host without a result is one."""
    found = result.get("findings") if not result.get("unreachable") else None
    if found is None:
        broken = dict(UNREACHABLE)
        if result and not result.get("unreachable"):
            broken |= {"problem": f"The check itself failed: {result.get('msg', 'no reason given')}"}
            broken |= {"advice": "Run the playbook with -vvv and report it."}
        return [broken]
    return sorted(found, key=lambda one: str(one["severity"]))


def health_errors(results: Results) -> int:
    """Return how many findings on all hosts are errors.

    Example: ``{{ {'web-1': result} | dealscale.n8n_platform.health_errors }}``
    """
    return sum(one["severity"] == "error" for result in results.values() for one in _findings(result))


def health_report(results: Results) -> str:
    """Return a text for people: for each host a line an area, then what is not well and what to do about it.

    Example: ``{{ {'web-1': result} | dealscale.n8n_platform.health_report }}``
    """
    lines = []
    for host, result in results.items():
        found = _findings(result)
        errors = sum(one["severity"] == "error" for one in found)
        warnings = len(found) - errors
        counts = [
            f"{number} {word}{'s' * (number != 1)}" for number, word in ((errors, "error"), (warnings, "warning"))
        ]
        lines.append(f"{host}: {' and '.join(counts) if found else 'all is well'}")
        summary = result.get("summary") or {}
        width = max(map(len, summary), default=0)
        lines += [f"  {area:<{width}}  {text}" for area, text in summary.items()]
        for one in found:
            lines += [f"  {one['severity'].upper():<7} {one['problem']}", f"          -> {one['advice']}"]
        lines.append("")
    return "\n".join(lines).rstrip()


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"health_errors": health_errors, "health_plan": health_plan, "health_report": health_report}

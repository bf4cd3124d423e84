# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that turn groups and host variables into what Prometheus scrapes, and expectations into alerts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from ansible.errors import AnsibleFilterError

Target = dict[str, Any]
CREDENTIALS = "/run/credentials/prometheus.service"
SITE = "https://github.com/dealscale/n8n_platform/blob/main/docs/runbooks"
# A unit's name, taken from its control group as the process exporter prints it: [/a.slice/n8n-worker@1.service].
UNIT_OF_CGROUP = (
    r".*/((?:n8n-|postgresql@|redis-|traefik|object-store|prometheus|loki|jaeger|otel|grafana)[^/\] ]*)\.service.*"
)
DURATION = re.compile(r"(\d+)([smhdw])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
# A workflow is missed when it did not end well for this many of its intervals.
PATIENCE = 1.5


class Places:
    """Where what is on which host."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.multi = bool(settings["multi_host"])
        self.ports = {name: int(port) for name, port in settings["ports"].items()}

    def hosts(self, *groups: str) -> list[str]:
        """Return the hosts that are in all of the groups."""
        lists = [list(self.settings["groups"].get(group, [])) for group in groups]
        return [host for host in lists[0] if all(host in others for others in lists[1:])]

    def count(self, host: str, name: str) -> int:
        """Return how many instances of a process of n8n a host runs."""
        known = self.settings["hostvars"].get(host, {})
        return int(known.get(f"platform_n8n_{name}", self.settings[name]))

    def bridge(self, host: str, kind: str) -> int:
        """Return how many processes of a kind of the bridge a host runs."""
        known = self.settings["hostvars"].get(host, {}).get("platform_bridge_processes")
        return int((known or self.settings.get("bridge") or {}).get(kind, 0))

    def at(self, host: str, port: int) -> str:
        """Return the address of a port as the host of Prometheus reaches it."""
        address = self.settings["addresses"][host] if self.multi else "127.0.0.1"
        return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"

    def targets(self, port: str, *groups: str) -> list[Target]:
        """Return one target for each host that is in all of the groups."""
        return [target(self.at(host, self.ports[port]), host) for host in self.hosts(*groups)]


def target(address: str, host: str, **labels: str) -> Target:
    """Return one entry of a file of targets."""
    return {"targets": [address], "labels": {"instance": host, **labels}}


def _n8n(places: Places) -> dict[str, list[Target]]:
    """Return the processes of n8n."""
    found: dict[str, list[Target]] = {"n8n-main": [], "n8n-webhook": [], "n8n-worker": []}
    for host in places.hosts("n8n_main"):
        found["n8n-main"].append(target(places.at(host, places.ports["n8n_main"]), host, process="main"))
    for kind in ("webhook", "worker"):
        for host in places.hosts(f"n8n_{kind}"):
            for i in range(1, places.count(host, f"{kind}s") + 1):
                address = places.at(host, places.ports[f"n8n_{kind}_base"] + i)
                found[f"n8n-{kind}"].append(target(address, host, process=f"{kind}-{i}"))
    return found


def _messaging(places: Places) -> dict[str, list[Target]]:
    """Return Pulsar and the processes of the bridge."""
    web = "pulsar_web_tls" if places.multi else "pulsar_web"
    found = {
        "zookeeper": places.targets("zookeeper_metrics", "pulsar_zookeeper"),
        "bookie": places.targets("bookie_metrics", "pulsar_bookie"),
        "pulsar": places.targets(web, "pulsar_broker"),
    }
    for kind in ("api", "consumer"):
        base = places.ports[f"bridge_{kind}_ops_base"]
        found[f"bridge-{kind}"] = [
            target(places.at(host, base + i), host, process=f"{kind}-{i}")
            for host in places.hosts("bridge")
            for i in range(1, places.bridge(host, kind) + 1)
        ]
    return found


def _redis(places: Places) -> list[Target]:
    """Return the instances of Redis; one exporter asks them all."""
    found = []
    for host in places.hosts("redis", "exporters"):
        for name in places.settings["redis"]:
            entry = target(places.at(host, places.ports["redis_exporter"]), host, redis=name)
            entry["labels"]["__param_target"] = f"unix:///run/redis-{name}/redis.sock"
            found.append(entry)
    return found


def _probes(places: Places) -> list[Target]:
    """Return what the blackbox exporter beside Prometheus asks."""
    if not places.hosts("prometheus", "exporters"):
        return []
    found: list[Target] = []

    def probe(module: str, url: str, host: str, **labels: str) -> None:
        """Add one probe."""
        entry = target(url, host, probe=module, **labels)
        entry["labels"]["__param_module"] = module
        found.append(entry)

    domain, scheme = str(places.settings["domain"]), "https" if places.multi else "http"
    for host in places.hosts("traefik"):
        entrance = places.at(host, places.ports["traefik_https"])
        for module, path in (("entrance", "/"), ("webhook", "/webhook/n8n-platform-probe")):
            probe(module, f"https://{entrance}{path}", host, __param_hostname=domain)
    for host in places.hosts("n8n_main"):
        url = f"{scheme}://{places.at(host, places.ports['n8n_main'])}/healthz/readiness"
        probe("readiness", url, host, process="main")
    for host in places.hosts("n8n_webhook"):
        for i in range(1, places.count(host, "webhooks") + 1):
            url = f"{scheme}://{places.at(host, places.ports['n8n_webhook_base'] + i)}/healthz/readiness"
            probe("readiness", url, host, process=f"webhook-{i}")
    for extra in places.settings["probes"]:
        labels = {str(name): str(value) for name, value in (extra.get("labels") or {}).items()}
        entry = target(str(extra["url"]), str(extra.get("instance") or extra["url"]), probe="extra", **labels)
        entry["labels"]["__param_module"] = str(extra.get("module") or "entrance")
        found.append(entry)
    return found


def scrape_targets(settings: Mapping[str, Any]) -> dict[str, list[Target]]:
    """Return the targets of each job that has any, as Prometheus reads them from files.

    ``settings`` holds ``groups``, ``hostvars``, ``addresses``, ``ports``, ``multi_host``, ``domain``, ``webhooks``,
    ``workers``, ``redis`` (names of the instances) and ``probes`` (more addresses for the blackbox exporter).

    Example: ``{{ settings | dealscale.n8n_platform.scrape_targets }}``
    """
    places = Places(settings)
    found = {
        "node": places.targets("node_exporter", "exporters"),
        "process": places.targets("process_exporter", "exporters"),
        "postgres": places.targets("postgres_exporter", "postgres", "exporters"),
        "redis": _redis(places),
        "blackbox": _probes(places),
        **_n8n(places),
        "traefik": places.targets("traefik_ops", "traefik"),
        "prometheus": places.targets("prometheus", "prometheus"),
        "alertmanager": places.targets("alertmanager", "alertmanager"),
        "loki": places.targets("loki", "loki"),
        "otelcol": places.targets("otel_metrics", "otel_collector"),
        "spanmetrics": places.targets("otel_spanmetrics", "otel_collector"),
        "jaeger": places.targets("jaeger_metrics", "jaeger"),
        **_messaging(places),
    }
    return {job: targets for job, targets in found.items() if targets}


# Who asks for what on the way, with several hosts: the gate of the role exporters, which opens what listens on
# loopback, and Loki a certificate; n8n nothing; the others the user of monitoring.
BY_CERTIFICATE = {
    "node",
    "process",
    "postgres",
    "redis",
    "n8n-worker",
    "traefik",
    "loki",
    "zookeeper",
    "bookie",
    "bridge-api",
    "bridge-consumer",
}
BY_PASSWORD = {"prometheus", "alertmanager", "otelcol", "spanmetrics", "jaeger"}


def _way(job: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a job's targets are reached."""
    if not settings["multi_host"] or job == "blackbox":
        return {}
    way: dict[str, Any] = {"scheme": "https", "tls_config": {"ca_file": f"{CREDENTIALS}/ca.crt"}}
    if job in BY_CERTIFICATE:
        way["tls_config"] |= {"cert_file": f"{CREDENTIALS}/host.crt", "key_file": f"{CREDENTIALS}/host.key"}
    if job in BY_PASSWORD:
        way["basic_auth"] = {"username": settings["user"], "password_file": f"{CREDENTIALS}/metrics_password"}
    return way


def _job(job: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return one entry of scrape_configs."""
    config: dict[str, Any] = {
        "job_name": job,
        "file_sd_configs": [{"files": [f"{settings['targets_dir']}/{job}.json"], "refresh_interval": "1m"}],
        **_way(job, settings),
    }
    if job == "redis":
        config["metrics_path"] = "/scrape"
    elif job == "pulsar":
        # The broker redirects from the address without the slash. It knows its clients by tokens.
        config["metrics_path"] = "/metrics/"
        config["authorization"] = {"credentials_file": f"{CREDENTIALS}/pulsar_metrics_token"}
    elif job == "spanmetrics":
        # The collector's own names for what the spans tell stay.
        config["honor_labels"] = True
    elif job == "process":
        unit = {"source_labels": ["groupname"], "regex": UNIT_OF_CGROUP, "target_label": "unit", "replacement": "$1"}
        config["metric_relabel_configs"] = [
            unit,
            # What belongs to no unit of the platform is not kept.
            {"source_labels": ["__name__", "unit"], "regex": "namedprocess_namegroup_.*;", "action": "drop"},
            {"regex": "groupname", "action": "labeldrop"},
        ]
    elif job == "blackbox":
        port = settings["ports"]["blackbox_exporter"]
        config["metrics_path"] = "/probe"
        config["relabel_configs"] = [
            {"source_labels": ["__address__"], "target_label": "__param_target"},
            {"target_label": "__address__", "replacement": f"127.0.0.1:{port}"},
        ]
    if settings["dropped"].get(job):
        dropped = {"source_labels": ["__name__"], "regex": settings["dropped"][job], "action": "drop"}
        config["metric_relabel_configs"] = [dropped, *config.get("metric_relabel_configs", [])]
    return config


def _alertmanagers(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return where alerts go."""
    found = []
    for url in settings["alertmanager_urls"]:
        parts = urlsplit(str(url))
        entry: dict[str, Any] = {"scheme": parts.scheme, "static_configs": [{"targets": [parts.netloc]}]}
        if parts.scheme == "https":
            entry["tls_config"] = {"ca_file": f"{CREDENTIALS}/ca.crt"}
            entry["basic_auth"] = {"username": settings["user"], "password_file": f"{CREDENTIALS}/metrics_password"}
        if parts.path.strip("/"):
            entry["path_prefix"] = parts.path
        found.append(entry)
    return found


def prometheus_config(jobs: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of Prometheus for these jobs.

    ``settings`` holds ``multi_host``, ``ports``, ``user``, ``targets_dir``, ``rules_dir``, ``environment``,
    ``scrape_interval``, ``evaluation_interval``, ``external_labels``, ``alertmanager_urls``,
    ``extra_scrape_configs``, ``remote_write`` and ``dropped`` (names of series that are not kept, by job).

    Example: ``{{ targets.keys() | dealscale.n8n_platform.prometheus_config(settings) }}``
    """
    seconds = duration_seconds(settings["scrape_interval"])
    config: dict[str, Any] = {
        "global": {
            "scrape_interval": settings["scrape_interval"],
            "scrape_timeout": f"{min(10, seconds)}s",
            "evaluation_interval": settings["evaluation_interval"],
            "external_labels": {"environment": settings["environment"], **settings["external_labels"]},
        },
        "rule_files": [f"{settings['rules_dir']}/*.yml"],
        "scrape_configs": [_job(job, settings) for job in jobs] + list(settings["extra_scrape_configs"]),
    }
    if settings["alertmanager_urls"]:
        config["alerting"] = {"alertmanagers": _alertmanagers(settings)}
    if settings["remote_write"]:
        config["remote_write"] = list(settings["remote_write"])
    return config


def duration_seconds(text: Any) -> int:
    """Return a duration such as ``90s``, ``1h30m`` or ``7d`` in seconds. Raises AnsibleFilterError for another text."""
    parts = DURATION.findall(str(text))
    if not parts or "".join(number + unit for number, unit in parts) != str(text):
        raise AnsibleFilterError(f"'{text}' is no duration such as 15s, 1h30m or 7d.")
    seconds = sum(int(number) * SECONDS[unit] for number, unit in parts)
    if not seconds:
        raise AnsibleFilterError(f"'{text}' is no duration: it is nothing.")
    return seconds


def _expected(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the alert that a workflow has not ended well for too long."""
    workflow, every = str(entry.get("workflow") or ""), entry.get("every")
    if not re.fullmatch(r"[^\"\\\n{}]+", workflow) or not every:
        raise AnsibleFilterError(
            f"prometheus_workflow_expectations: {dict(entry)!r} needs workflow (name or id) and every (such as 1h)."
        )
    window = int(duration_seconds(every) * PATIENCE)
    ended = 'n8n_workflow_execution_duration_seconds_count{status="success"}'
    which = f'(n8n_workflow_info{{workflow_id="{workflow}"}} or n8n_workflow_info{{workflow_name="{workflow}"}})'
    # A process that started meanwhile counts from zero, so its first count is new as well.
    grown = f"increase({ended}[{window}s]) and on (workflow_id) {which}"
    fresh = f"({ended} unless {ended} offset {window}s) and on (workflow_id) {which}"
    # A server that has not looked for so long cannot know.
    measured = f'(max(up{{job="prometheus"}} offset {window}s) == 1)'
    return {
        "alert": "N8nWorkflowOverdue",
        "expr": f"(sum({grown}) or vector(0)) + (sum({fresh}) or vector(0)) == 0 and on () {measured}",
        "for": "2m",
        "labels": {"severity": str(entry.get("severity") or "page"), "service": "n8n", "workflow": workflow},
        "annotations": {
            "summary": f"{workflow} should end well every {every} and did {{{{ $value }}}} times in {window} s.",
            "description": "Nothing has failed, perhaps: it did not run, or its runs failed, or they do not end.",
            "runbook_url": f"{SITE}/workflow-overdue.md",
            "dashboard": "n8n-platform-executions",
        },
    }


def workflow_rules(expectations: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the rules that tell when a workflow did not run although it should have.

    An expectation is ``{workflow: name or id, every: 1h}``, and may have ``severity``.

    Example: ``{{ [{'workflow': 'Invoices', 'every': '1h'}] | dealscale.n8n_platform.workflow_rules }}``
    """
    rules = [_expected(entry) for entry in expectations]
    return {"groups": [{"name": "n8n-workflow-expectations", "interval": "1m", "rules": rules}] if rules else []}


def rule_files(
    paths: Iterable[str],
    needs: Mapping[str, Iterable[str]],
    groups: Mapping[str, list[str]],
    excluded: Iterable[str] = (),
) -> list[str]:
    """Return the files of rules that are about something the platform has.

    ``needs`` says which groups a file is about, by its name without ``.yml``; one with hosts is enough.

    Example: ``{{ ['/a/redis.yml'] | dealscale.n8n_platform.rule_files({'redis': ['redis']}, groups) }}``
    """
    left_out = set(excluded) | {
        name for name, wanted in needs.items() if not any(groups.get(group) for group in wanted)
    }
    return sorted(path for path in paths if PurePath(path).stem not in left_out)


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "duration_seconds": duration_seconds,
            "prometheus_config": prometheus_config,
            "rule_files": rule_files,
            "scrape_targets": scrape_targets,
            "workflow_rules": workflow_rules,
        }

"""Ask the running server what it measures, who it lets in, and that nothing bad reaches it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import testinfra

ROOT = Path(__file__).parents[3]
NAMES = {"watch": "n8n-platform-prometheus", "data": "n8n-platform-prometheus-data"}
TLS = "/etc/n8n-platform/tls"
CURL = "curl --silent --show-error --max-time 10"
WATCHING = Callable[..., subprocess.CompletedProcess[str]]


def on(name: str) -> Any:
    """Return a connection to one of the hosts."""
    return testinfra.get_host(f"docker://{NAMES[name]}")


@pytest.fixture(scope="module")
def watch() -> Any:
    """Return the host that watches."""
    return on("watch")


@pytest.fixture(scope="module")
def watching(play: WATCHING) -> WATCHING:
    """Return what sets up the server again, with other variables."""
    return partial(play, "watch.yml", cached_facts=True)


@pytest.fixture(scope="module")
def data() -> Any:
    """Return the host that is watched."""
    return on("data")


def address(host: Any) -> str:
    """Return the private address of a host."""
    return str(host.check_output("ip -4 -oneline addr show dev eth0")).split()[3].split("/")[0]


def api(watch: Any, path: str, port: int = 9090) -> Any:
    """Ask an interface of Prometheus or Alertmanager as the user of monitoring."""
    user = "--user metrics:$(cat /etc/n8n-platform/secrets/metrics_password)"
    said = watch.check_output(f"{CURL} --fail --cacert {TLS}/ca.crt {user} 'https://{address(watch)}:{port}{path}'")
    return json.loads(said)


def query(watch: Any, expression: str) -> list[dict[str, Any]]:
    """Return the result of a query."""
    quoted = (
        expression.replace("%", "%25").replace("{", "%7B").replace("}", "%7D").replace('"', "%22").replace(" ", "%20")
    )
    return list(api(watch, f"/api/v1/query?query={quoted}")["data"]["result"])


def until(watch: Any, expression: str, seconds: int = 60) -> list[dict[str, Any]]:
    """Wait until a query has a result, and return it."""
    user = "--user metrics:$(cat /etc/n8n-platform/secrets/metrics_password)"
    line = (
        f"{CURL} --cacert {TLS}/ca.crt {user} https://{address(watch)}:9090/api/v1/query"
        f" --data-urlencode 'query={expression}' | grep -q '\"value\"'"
    )
    watch.run("timeout %s sh -c %s", str(seconds), f"until {line}; do sleep 0.5; done")
    return query(watch, expression)


def pid(watch: Any) -> str:
    """Return the process of the server."""
    return str(watch.check_output("systemctl show -P MainPID prometheus.service"))


def test_units(watch: Any) -> None:
    for unit in ("prometheus.service", "prometheus-alertmanager.service", "n8n-metrics-gate.service"):
        assert watch.service(unit).is_running, watch.check_output(f"journalctl --no-pager -n 40 -u {unit}")
        said = watch.check_output(f"systemd-analyze security --no-pager {unit}")
        assert float(said.rsplit("Overall exposure level for", 1)[1].split(":", 1)[1].split()[0]) <= 2.0


@pytest.mark.parametrize("job", ["node", "process", "redis", "prometheus", "alertmanager"])
def test_every_target_is_measured(watch: Any, job: str) -> None:
    found = until(watch, f'up{{job="{job}"}} == 1')
    expected = {
        "node": set(NAMES.values()),
        "process": set(NAMES.values()),
        "redis": {NAMES["data"]},
        "prometheus": {NAMES["watch"]},
        "alertmanager": {NAMES["watch"]},
    }
    assert {one["metric"]["instance"] for one in found} == expected[job], api(watch, "/api/v1/targets?state=active")
    assert not query(watch, f'up{{job="{job}"}} == 0')


def test_labels_are_those_of_the_contract(watch: Any) -> None:
    assert {one["metric"]["redis"] for one in until(watch, "redis_up == 1")} == {"queue", "cache"}
    units = {one["metric"]["unit"] for one in until(watch, 'namedprocess_namegroup_memory_bytes{memtype="resident"}')}
    assert {"redis-queue", "prometheus", "prometheus-alertmanager"} <= units
    assert "groupname" not in json.dumps(query(watch, "namedprocess_namegroup_num_procs"))


def test_strangers_are_refused(watch: Any, data: Any) -> None:
    url = f"https://{address(watch)}:9090/api/v1/query?query=up"
    for host in (watch, data):
        refused = host.check_output(
            f"{CURL} --cacert {TLS}/ca.crt --output /dev/null --write-out '%{{http_code}}' '{url}'"
        )
        assert refused == "401"
        wrong = (
            f"{CURL} --cacert {TLS}/ca.crt --user metrics:wrong --output /dev/null --write-out '%{{http_code}}' '{url}'"
        )
        assert host.check_output(wrong) == "401"
    assert data.run(f"{CURL} http://{address(watch)}:9090/-/ready").stdout.strip() != "Prometheus Server is Ready."
    assert watch.run(f"{CURL} http://127.0.0.1:9090/-/ready").rc != 0
    # The other host of the platform has the password and may ask.
    allowed = f"--user metrics:$(cat /etc/n8n-platform/secrets/metrics_password) --fail '{url}'"
    assert "success" in data.check_output(f"{CURL} --cacert {TLS}/ca.crt {allowed}")


def test_the_gate_opens_for_the_watching_host_only(watch: Any, data: Any) -> None:
    certificate = f"--cacert {TLS}/ca.crt --cert {TLS}/host.crt --key {TLS}/host.key"
    gate = f"https://{address(data)}:9100/metrics"
    assert "node_load1" in watch.check_output(f"{CURL} {certificate} {gate}")
    assert watch.run(f"{CURL} --cacert {TLS}/ca.crt {gate}").rc != 0, "without a certificate"
    assert watch.run(f"{CURL} http://{address(data)}:9100/metrics").rc != 0, "without TLS"
    # The watched host has a certificate of the same authority, but it is not the watching host.
    assert data.run(f"{CURL} {certificate} https://{address(watch)}:9100/metrics").rc != 0, "another host"


def test_rules_are_those_of_what_is_used(watch: Any) -> None:
    groups = api(watch, "/api/v1/rules")["data"]["groups"]
    files = {Path(group["file"]).stem for group in groups}
    assert {"host", "monitoring", "n8n", "queue", "redis", "workflow-expectations"} <= files
    assert not files & {"postgres", "traefik", "logs", "traces", "backup", "slo", "bridge", "pulsar"}
    assert all(rule["health"] != "err" for group in groups for rule in group["rules"])


def test_settings_have_arrived(watch: Any) -> None:
    flags = api(watch, "/api/v1/status/flags")["data"]
    assert (flags["storage.tsdb.retention.time"], flags["storage.tsdb.retention.size"]) == ("40d", "256MiB")
    assert flags["storage.tsdb.path"] == "/srv/prometheus"
    text = api(watch, "/api/v1/status/config")["data"]["yaml"]
    assert "environment: shop" in text
    assert "site: north" in text
    secret = watch.check_output("cat /etc/n8n-platform/secrets/metrics_password").strip()
    assert secret not in text
    assert secret not in watch.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "$2b$" not in watch.check_output("grep -rs '2b' /etc/n8n-platform/prometheus || true")


def test_an_alert_reaches_alertmanager(watch: Any) -> None:
    until(watch, 'ALERTS{alertname="N8nWatchdog", alertstate="firing"}')
    user = "--user metrics:$(cat /etc/n8n-platform/secrets/metrics_password)"
    ask = f"{CURL} --cacert {TLS}/ca.crt {user} https://{address(watch)}:9093/api/v2/alerts"
    watch.check_output("timeout 60 sh -c %s", f"until {ask} | grep -q N8nWatchdog; do sleep 0.5; done")
    alert = next(one for one in api(watch, "/api/v2/alerts", 9093) if one["labels"]["alertname"] == "N8nWatchdog")
    assert alert["labels"]["environment"] == "shop"
    assert alert["labels"]["site"] == "north"


def test_a_workflow_that_did_not_run_is_noticed(watch: Any) -> None:
    # Its rules are worked out once a minute.
    found = until(watch, 'ALERTS{alertname="N8nWorkflowOverdue"}', seconds=150)
    assert [one["metric"]["workflow"] for one in found] == ["Nightly invoices"]


def test_alerts_do_what_their_tests_say(watch: Any) -> None:
    watch.check_output("rm -rf /var/tmp/rules && mkdir -p /var/tmp/rules/files /var/tmp/rules/tests")
    for folder in ("files/alerts", "tests/alerts"):
        subprocess.run(["docker", "cp", f"{ROOT}/{folder}", f"{NAMES['watch']}:/var/tmp/rules/{folder}"], check=True)
    tests = sorted(path.name for path in (ROOT / "tests/alerts").glob("*.yml"))
    assert tests
    done = watch.run(f"cd /var/tmp/rules/tests/alerts && promtool test rules {' '.join(tests)}")
    assert done.rc == 0, done.stdout + done.stderr


def test_a_bad_rule_of_yours_is_refused_and_nothing_changes(watch: Any, watching: WATCHING, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yml"
    bad.write_text("groups: [{name: x, rules: [{alert: Bad, expr: 'rate(up'}]}]\n", encoding="utf-8")
    state = "cd /etc/n8n-platform/prometheus && find . -type f | sort | xargs sha256sum"
    before, process = watch.check_output(state), pid(watch)
    done = watching(prometheus_rule_files=[str(bad)], prometheus_scrape_interval="3s")
    assert done.returncode != 0
    assert "bad.yml was refused by" in done.stdout
    assert (watch.check_output(state), pid(watch)) == (before, process)


def test_a_bad_setting_is_refused_and_nothing_changes(watch: Any, watching: WATCHING) -> None:
    before = watch.check_output("sha256sum /etc/n8n-platform/prometheus/prometheus.yml")
    done = watching(prometheus_extra_scrape_configs=[{"job_name": "x", "no_such_setting": 1}])
    assert done.returncode != 0
    assert "no_such_setting" in done.stdout
    assert watch.check_output("sha256sum /etc/n8n-platform/prometheus/prometheus.yml") == before


def test_an_expectation_without_an_interval_is_refused(watching: WATCHING) -> None:
    done = watching(prometheus_workflow_expectations=[{"workflow": "x", "every": "often"}])
    assert done.returncode != 0
    assert "is no duration" in done.stdout


def test_new_rules_are_loaded_without_a_restart(watch: Any, watching: WATCHING, tmp_path: Path) -> None:
    process = pid(watch)
    rules = tmp_path / "ours.yml"
    rules.write_text("groups: [{name: ours, rules: [{record: ours, expr: vector(42)}]}]\n", encoding="utf-8")
    done = watching(prometheus_rule_files=[str(rules)])
    assert done.returncode == 0, done.stdout[-4000:]
    assert until(watch, "ours == 42")
    assert pid(watch) == process
    assert watching().returncode == 0
    assert "ours" not in {group["name"] for group in api(watch, "/api/v1/rules")["data"]["groups"]}
    assert pid(watch) == process

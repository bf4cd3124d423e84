"""Production's shape: an edge host, two application hosts, a data host, with TLS between them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml

from molecule.bridge.api import Api

ROOT = Path(__file__).parents[3]
TLS = "/etc/n8n-platform/tls"
HOSTS = {name: f"n8n-platform-{name}" for name in ("edge", "app-1", "app-2", "data")}


@pytest.fixture(scope="module")
def hosts() -> dict[str, Any]:
    """Return a connection to each host, by short name."""
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    return {
        short: testinfra.get_host(f"ansible://{name}?ansible_inventory={inventory}") for short, name in HOSTS.items()
    }


@pytest.fixture(scope="module")
def addresses(hosts: dict[str, Any]) -> dict[str, str]:
    """Return the private address of each host."""
    return {
        name: host.check_output("ip -4 -o addr show dev eth0").split()[3].split("/")[0] for name, host in hosts.items()
    }


def test_groups_are_those_of_the_production_inventory() -> None:
    production = yaml.safe_load((ROOT / "inventories/production/hosts.yml").read_text(encoding="utf-8"))["platform"]
    expected = {
        group: sorted(name.removeprefix("n8n-") for name in content["hosts"])
        for group, content in production["children"].items()
        if group != "grafana"
    }
    scenario = yaml.safe_load((ROOT / "molecule/multi_host/molecule.yml").read_text(encoding="utf-8"))
    found: dict[str, list[str]] = {}
    for platform in scenario["platforms"]:
        for group in platform["groups"]:
            found.setdefault(group, []).append(platform["name"].removeprefix("n8n-platform-"))
    assert {group: sorted(names) for group, names in found.items() if group != "platform"} == expected


def test_a_workflow_crosses_the_hosts(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(ROOT / "playbooks" / "verify.yml")]
    variables = {"platform_n8n_webhooks": 1, "platform_n8n_workers": 1, "verify_report": str(report)}
    result = subprocess.run(
        [*command, "-e", json.dumps(variables)], capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    proof = json.loads(report.read_text(encoding="utf-8"))
    assert proof["worker"] == "worker-1"
    assert "answered 42 and is stored as success" in proof["proof"]


@pytest.mark.parametrize(
    ("client", "port", "open_"), [("app-2", 5432, True), ("edge", 5432, False), ("edge", 6379, False)]
)
def test_only_the_application_reaches_the_data(
    hosts: dict[str, Any], addresses: dict[str, str], client: str, port: int, open_: bool
) -> None:
    probe = hosts[client].run("timeout 5 bash -c %s", f"exec 3<>/dev/tcp/{addresses['data']}/{port}")
    assert (probe.rc == 0) == open_


def test_the_database_refuses_plaintext_and_takes_tls(hosts: dict[str, Any], addresses: dict[str, str]) -> None:
    hello = "openssl s_client -brief -starttls postgres -verify_return_error -CAfile /etc/n8n-platform/tls/ca.crt"
    answer = hosts["app-1"].run(f"echo | timeout 10 {hello} -connect {addresses['data']}:5432")
    assert "Verification: OK" in answer.stdout + answer.stderr


def test_secrets_are_only_where_they_are_needed(hosts: dict[str, Any]) -> None:
    def names(host: str) -> set[str]:
        return set(hosts[host].check_output("ls /etc/n8n-platform/secrets").split())

    assert "n8n_encryption_key" in names("app-2")
    assert "redis_admin_password" not in names("app-2")
    assert "n8n_encryption_key" not in names("data")


def test_keys_are_the_same_on_both_application_hosts(hosts: dict[str, Any]) -> None:
    digests = {
        host: hosts[host].check_output("sha256sum /etc/n8n-platform/secrets/n8n_encryption_key").split()[0]
        for host in ("app-1", "app-2")
    }
    assert len(set(digests.values())) == 1


@pytest.mark.parametrize("name", HOSTS)
def test_each_host_is_backed_up_to_the_store(hosts: dict[str, Any], name: str) -> None:
    found = json.loads(hosts[name].run("n8n-platform-backup status --json").stdout)
    assert found["problems"] == []
    assert found["newest"]["complete"]
    assert found["newest"]["in_s3"]


def monitored(edge: Any, port: int, path: str, *options: str) -> Any:
    """Ask one of monitoring's services as its user."""
    words = " ".join(f"--data-urlencode {shlex.quote(option)}" for option in options)
    address = edge.check_output("ip -4 -o addr show dev eth0").split()[3].split("/")[0]
    who = f"--cacert {TLS}/ca.crt --cert {TLS}/host.crt --key {TLS}/host.key"
    who += " --user metrics:$(cat /etc/n8n-platform/secrets/metrics_password)"
    return json.loads(edge.check_output(f"curl -sSfG --max-time 20 {who} {words} https://{address}:{port}{path}"))


def eventually(ask: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    """Ask until the answer is good, for two minutes at most; return the last one."""
    end = time.monotonic() + 120
    while not good(answer := ask()) and time.monotonic() < end:
        pass
    return answer


def test_every_target_on_every_host_answers(hosts: dict[str, Any]) -> None:
    def targets() -> Any:
        return monitored(hosts["edge"], 9090, "/api/v1/targets", "state=active")["data"]["activeTargets"]

    found = eventually(targets, lambda answer: answer and all(target["health"] == "up" for target in answer))
    assert {
        (t["labels"]["job"], t["labels"]["instance"], t["lastError"]) for t in found if t["health"] != "up"
    } == set()
    assert {target["labels"]["instance"] for target in found} >= set(HOSTS.values())
    jobs = {target["labels"]["job"] for target in found}
    assert jobs >= {"node", "postgres", "redis", "n8n-main", "n8n-webhook", "n8n-worker", "traefik", "otelcol"}
    assert jobs >= {"zookeeper", "bookie", "pulsar", "bridge-api", "bridge-consumer"}


def test_log_lines_and_a_trace_of_the_workflow_arrive(hosts: dict[str, Any]) -> None:
    def shippers() -> Any:
        return monitored(hosts["edge"], 3100, "/loki/api/v1/label/host_name/values")["data"]

    assert sorted(eventually(shippers, lambda names: len(names) == len(HOSTS))) == sorted(HOSTS.values())

    def services() -> Any:
        return monitored(hosts["edge"], 16686, "/api/services")["data"]

    # The workflow went from the edge to a worker, and so did its trace.
    assert eventually(services, lambda names: len(set(names) - {"jaeger"}) > 1)


def test_an_event_goes_through_pulsar_to_a_workflow(hosts: dict[str, Any], addresses: dict[str, str]) -> None:
    workflow = (ROOT / "molecule/bridge/workflow.json").read_text(encoding="utf-8")
    app = hosts["app-1"]
    target = "/var/lib/n8n/cli/bridge.json"
    app.check_output("printf %s %s > %s", "%s", workflow, target)
    app.check_output(
        f"chown n8n {target}; n8n import:workflow --input={target}; n8n publish:workflow --id=bridgeecho000001"
    )
    api = Api(lambda command: str(app.check_output(command)), addresses["edge"])
    answer = api.publish("n8n", "short.check", {"uid": "multi-host"}, workflow="echo")
    assert answer.status == 202, answer
    assert answer.json["state"] == "published"
    api.wait("n8n", answer.json["id"], "done", 60)


def test_the_data_comes_back_where_n8n_and_the_database_are_apart(
    hosts: dict[str, Any], play: Callable[..., Any], tmp_path: Path
) -> None:
    ask = "cd / && runuser -u postgres -- psql -XAtq -d n8n -c %s"
    before = hosts["data"].check_output(ask, "SELECT count(*) FROM execution_entity WHERE status = 'success'")
    settings = {"platform_n8n_webhooks": 1, "platform_n8n_workers": 1}
    done = play(ROOT / "playbooks/restore.yml", restore_set="latest", confirm=HOSTS["data"], **settings)
    assert done.returncode == 0, done.stdout[-6000:]
    after = hosts["data"].check_output(ask, "SELECT count(*) FROM execution_entity WHERE status = 'success'")
    # The check of the restore ran one more.
    assert int(after) >= int(before)
    assert hosts["data"].check_output(ask, "SELECT timeline_id > 1 FROM pg_control_checkpoint()") == "t"
    again = play(ROOT / "playbooks/verify.yml", verify_report=str(tmp_path / "report.json"), **settings)
    assert again.returncode == 0, again.stdout[-4000:]

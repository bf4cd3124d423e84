"""Each daemon is killed while messages are published; ZooKeeper forgets the bookie; topics with messages stay."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest

from molecule.pulsar.tests.conftest import CLIENT, SECRETS, Admin, Client

SHORT = "persistent://dealscale/workflow/short"
LOAD = "pulsar-test-load"
Play = Callable[..., CompletedProcess[str]]


def wait(host: Any, command: str, seconds: int) -> None:
    """Wait on the host until a command succeeds."""
    loop = shlex.quote(f"until {command}; do sleep 0.5; done")
    host.check_output(f"timeout {seconds} sh -c {loop}")


def healthy(host: Any, seconds: int = 120) -> None:
    """Wait until the broker writes and reads again."""
    token = f'"Authorization: Bearer $(cat {SECRETS}/pulsar_admin_token)"'
    wait(host, f"curl -sS -f -o /dev/null -H {token} http://127.0.0.1:8081/admin/v2/brokers/health", seconds)


@pytest.mark.parametrize("victim", ["broker", "bookie", "zookeeper"])
def test_nothing_is_lost_when_a_daemon_is_killed(host: Any, client: Client, victim: str) -> None:
    client("bridge_consumer", "drain", SHORT, "n8n-bridge")
    out = f"/run/{LOAD}-{victim}"
    host.check_output(
        f"systemd-run --unit={LOAD} --collect sh -c "
        f"'python3 {CLIENT} bridge_publisher send {SHORT} 20 500 {out}.json > {out}.txt'"
    )
    wait(host, f'test "$(ps -o etimes= -p $(systemctl show -p MainPID --value {LOAD}))" -ge 5', 30)
    host.check_output(f"systemctl kill --signal=KILL n8n-pulsar-{victim}.service")
    wait(host, f"! systemctl is-active --quiet {LOAD}", 180)
    said = json.loads(host.check_output(f"tail -n 1 {out}.txt"))
    healthy(host)
    found = client("bridge_consumer", "drain", SHORT, "n8n-bridge", f"{out}.json")
    print(f"killed {victim}: {said}, {found}")
    assert said["stored"] == said["sent"] > 1000
    assert found["lost"] == 0


def test_a_bookie_that_zookeeper_forgot_is_restarted(host: Any, client: Client) -> None:
    """One that hangs loses its session and its place, and its unit stays active."""
    report = "/var/lib/n8n-platform/pulsar/bookie-watch.json"

    def restarts() -> int:
        return int(json.loads(host.file(report).content_string)["restarts"])

    before = restarts()
    pid = host.check_output("systemctl show -p MainPID --value n8n-pulsar-bookie")
    host.check_output(f"kill -STOP {pid}")
    wait(host, f'test "$(systemctl show -p MainPID --value n8n-pulsar-bookie)" != {pid}', 120)
    wait(host, f'grep -q \'"outcome": "well"\' {report}', 60)
    healthy(host)
    assert restarts() == before + 1
    assert (
        "n8n_pulsar_bookie_registered 1" in host.file("/var/lib/n8n-platform/metrics/pulsar_bookie.prom").content_string
    )
    assert client("bridge_publisher", "once", SHORT)["ledger"] >= 0


def test_an_outage_of_zookeeper_is_survived(host: Any, client: Client) -> None:
    """Longer than the bookie's session: it comes back by itself or is restarted, and publishing goes on."""
    client("bridge_consumer", "drain", SHORT, "n8n-bridge")
    pid = host.check_output("systemctl show -p MainPID --value n8n-pulsar-zookeeper")
    host.check_output(f"kill -STOP {pid}; sleep 45; kill -CONT {pid}")
    healthy(host, 180)
    wait(host, 'grep -q \'"outcome": "well"\' /var/lib/n8n-platform/pulsar/bookie-watch.json', 120)
    assert client("bridge_publisher", "once", SHORT)["ledger"] >= 0
    assert client("bridge_consumer", "drain", SHORT, "n8n-bridge")["seen"] >= 1


def test_latency(client: Client) -> None:
    found = client("admin", "latency", "persistent://shop/orders/new", "n8n-bridge", 300)
    print(f"milliseconds, median and 99th percentile: {found}")
    assert found["arrive"][0] < 100


def test_topics_with_messages_stay_and_partitions_never_go(converge: Play, client: Client, admin: Admin) -> None:
    client("bridge_publisher", "once", "persistent://shop/orders/new")
    fewer = [{"name": "dealscale.workflow.short", "partitions": 1, "subscriptions": ["n8n-bridge"]}]
    refused = converge(pulsar_topology=fewer, pulsar_namespaces={})
    assert refused.returncode != 0
    assert "Pulsar cannot take any away" in refused.stdout
    only = [{"name": "dealscale.workflow.short", "partitions": 3, "subscriptions": ["n8n-bridge"]}]
    absent = {"pulsar_topology": only, "pulsar_namespaces": {}, "pulsar_topics_absent": ["shop.orders.new"]}
    refused = converge(**absent)
    assert refused.returncode != 0
    assert "confirm=" in refused.stdout
    assert converge(**absent, confirm="n8n-platform-pulsar").returncode == 0
    assert admin("admin/v2/persistent/shop/orders/new/partitions")[0] == 404 or (
        admin("admin/v2/persistent/shop/orders/new/partitions")[1]["partitions"] == 0
    )
    assert converge().returncode == 0


def test_a_new_key_makes_old_tokens_worthless(host: Any, converge: Play, client: Client, admin: Admin) -> None:
    host.check_output(f"cp {SECRETS}/pulsar_admin_token {SECRETS}/pulsar_old_token")
    rotated = converge(secrets_rotate=["pulsar_token_private_key"])
    assert rotated.returncode == 0, rotated.stdout
    assert admin("admin/v2/tenants")[0] == 200
    assert admin("admin/v2/tenants", "old")[0] == 401
    assert client("bridge_publisher", "once", SHORT)["ledger"] >= 0
    host.check_output(f"rm {SECRETS}/pulsar_old_token")


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"pulsar_quorum": {"ack": 2}}, "must hold"),
        ({"pulsar_topology": [{"name": "dealscale"}]}, "must be tenant.namespace.topic"),
        ({"pulsar_broker_cache_mb": 200}, "at most half"),
    ],
)
def test_settings_that_cannot_work_are_refused(converge: Play, variables: dict[str, Any], text: str) -> None:
    refused = converge("--tags", "all", **variables)
    assert refused.returncode != 0
    assert text in refused.stdout

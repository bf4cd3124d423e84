"""Three hosts are one cluster, closed to others, and carry on while one of them is away or starts again."""

from __future__ import annotations

import json
import shlex
import socket
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest

testinfra_hosts = ["docker://n8n-platform-pulsar-1"]

SHORT = "persistent://dealscale/workflow/short"
DAEMONS = ["zookeeper", "bookie", "broker"]
LOAD = "pulsar-test-load"
Client = Callable[..., dict[str, Any]]
Admin = Callable[..., tuple[int, Any]]


def wait(host: Any, command: str, seconds: int) -> None:
    """Wait on a host until a command succeeds."""
    loop = shlex.quote(f"until {command}; do sleep 0.5; done")
    host.check_output(f"timeout {seconds} sh -c {loop}")


def start_load(host: Any, asks: str, seconds: int) -> None:
    """Publish in the background."""
    command = shlex.quote(f"{asks} bridge_publisher send {SHORT} {seconds} 300 /run/{LOAD}.json > /run/{LOAD}.txt")
    host.check_output(f"systemd-run --unit={LOAD} --collect sh -c {command}")
    wait(host, f'test "$(ps -o etimes= -p $(systemctl show -p MainPID --value {LOAD}))" -ge 4', 30)


def end_load(host: Any, seconds: int) -> dict[str, Any]:
    """Wait until everything is published; return what the publisher says."""
    wait(host, f"! systemctl is-active --quiet {LOAD}", seconds)
    return dict(json.loads(host.check_output(f"tail -n 1 /run/{LOAD}.txt")))


def test_units(hosts: list[Any]) -> None:
    for host in hosts:
        for daemon in DAEMONS:
            unit = f"n8n-pulsar-{daemon}.service"
            assert host.service(unit).is_running, host.check_output(f"journalctl --no-pager -n 40 -u {unit}")
        assert host.service("n8n-pulsar-certificate.path").is_running


def test_all_are_in_the_cluster(admin: Admin, addresses: list[str]) -> None:
    assert sorted(admin("admin/v2/brokers")[1]) == sorted(f"{address}:8444" for address in addresses)
    assert len(admin("admin/v2/bookies/all")[1]["bookies"]) == 3
    for host in range(3):
        assert admin("admin/v2/brokers/health", host)[0] == 200


def test_messages_have_two_copies(admin: Admin, client: Client) -> None:
    assert client("bridge_publisher", "once", SHORT)["ledger"] >= 0
    _status, found = admin("admin/v2/brokers/configuration/runtime")
    assert (found["managedLedgerDefaultEnsembleSize"], found["managedLedgerDefaultAckQuorum"]) == ("2", "2")


@pytest.mark.parametrize("port", [6650, 8081])
def test_plain_ports_are_closed(hosts: list[Any], addresses: list[str], port: int) -> None:
    assert not hosts[0].socket(f"tcp://{port}").is_listening
    assert hosts[1].run(f"timeout 3 bash -c '</dev/tcp/{addresses[0]}/{port}'").rc != 0


def test_zookeeper_wants_a_certificate_of_the_platform(hosts: list[Any], addresses: list[str]) -> None:
    tls = "/etc/n8n-platform/tls"
    ask = f"echo ruok | timeout 5 openssl s_client -quiet -connect {addresses[0]}:2181 -CAfile {tls}/ca.crt"
    certificate = f"-cert {tls}/host.crt -key {tls}/host.key"
    assert "imok" in hosts[1].run(f"{ask} {certificate}").stdout
    assert "imok" not in hosts[1].run(ask).stdout
    assert "imok" not in hosts[1].run(f"echo ruok | timeout 3 bash -c 'cat >/dev/tcp/{addresses[0]}/2181'").stdout


def test_strangers_do_not_reach_zookeeper_and_bookies(addresses: list[str], hosts: list[Any]) -> None:
    """The test's own machine is none of Pulsar's hosts."""
    for port in (2181, 3181):
        assert hosts[1].run(f"timeout 3 bash -c 'echo > /dev/tcp/{addresses[0]}/{port}'").rc == 0
        with pytest.raises(OSError, match="timed out"), socket.create_connection((addresses[0], port), timeout=3):
            pass


def test_a_client_that_does_not_know_the_authority_is_refused(hosts: list[Any], asks: str) -> None:
    new = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=other -keyout /run/other.key -out /run/other.crt"
    hosts[0].check_output(new)
    stranger = asks.replace("PULSAR_CA=/etc/n8n-platform/tls/ca.crt", "PULSAR_CA=/run/other.crt")
    said = hosts[0].check_output(f"{stranger} bridge_publisher once {SHORT}")
    assert json.loads(said.splitlines()[-1])["error"] in ("ConnectError", "Timeout", "AuthenticationError")


@pytest.mark.parametrize("lost", [2])
def test_nothing_is_lost_with_a_host(hosts: list[Any], asks: str, client: Client, admin: Admin, lost: int) -> None:
    client("bridge_consumer", "drain", SHORT, "n8n-bridge")
    start_load(hosts[0], asks, 25)
    units = " ".join(f"n8n-pulsar-{daemon}.service" for daemon in DAEMONS)
    hosts[lost].check_output(f"systemctl kill --signal=KILL {units}; systemctl stop --no-block {units}")
    said = end_load(hosts[0], 120)
    found = client("bridge_consumer", "drain", SHORT, "n8n-bridge", f"/run/{LOAD}.json")
    print(f"killed a host of three: {said}, {found}")
    assert said["stored"] == said["sent"] > 3000
    assert found["lost"] == 0
    hosts[lost].check_output(f"systemctl start {units}")
    assert admin("admin/v2/brokers/health", lost)[0] == 200


def test_a_rolling_restart_stops_nobody(
    hosts: list[Any], asks: str, client: Client, converge: Callable[..., CompletedProcess[str]]
) -> None:
    client("bridge_consumer", "drain", SHORT, "n8n-bridge")
    start_load(hosts[0], asks, 900)
    before = [host.check_output("systemctl show -p MainPID --value n8n-pulsar-broker") for host in hosts]
    changed = converge(pulsar_log_level="warn")
    assert changed.returncode == 0, changed.stdout
    after = [host.check_output("systemctl show -p MainPID --value n8n-pulsar-broker") for host in hosts]
    assert not set(before) & set(after)
    hosts[0].check_output(f"touch /run/{LOAD}.json.stop")
    said = end_load(hosts[0], 120)
    found = client("bridge_consumer", "drain", SHORT, "n8n-bridge", f"/run/{LOAD}.json")
    print(f"restarted one after the other: {said}, {found}")
    assert said["stored"] == said["sent"] > 3000
    assert found["lost"] == 0
    assert said["longest_gap"] < 30

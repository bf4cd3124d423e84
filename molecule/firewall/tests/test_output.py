"""What the users of the services may reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

testinfra_hosts = ["ansible://n8n-platform-firewall"]
Address = Callable[[Any], str]
Knock = Callable[..., list[str]]

OPEN = "open fast"
# The kernel's answer to "administratively prohibited".
REFUSED = "EHOSTUNREACH fast"


@pytest.mark.parametrize("user", ["n8n", "n8n-runner"])
@pytest.mark.parametrize(
    "target",
    [
        "169.254.169.254/80",  # metadata of most clouds
        "168.63.129.16/80",  # Azure
        "100.100.100.200/80",  # Alibaba
        "192.0.0.192/80",  # Oracle
        "10.1.2.3/443",
        "172.31.0.1/443",
        "192.168.1.1/80",
        "127.0.0.1/9090",
    ],
)
def test_n8n_is_refused_private_addresses_at_once(worker: Any, knock: Knock, user: str, target: str) -> None:
    assert knock(worker, target, user=user) == [REFUSED]


def test_n8n_is_refused_private_ipv6_addresses(worker: Any, knock: Knock) -> None:
    worker.check_output("sysctl --quiet --write net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0")
    worker.check_output("ip -6 address replace fd00::1/64 dev eth0 nodad")
    worker.check_output("ip -6 route replace default dev eth0")
    results = knock(worker, "fd00:ec2::254/80", "64:ff9b::a9fe:a9fe/80", "fe80::1%eth0/80", user="n8n")
    assert results == ["ECONNREFUSED fast"] * 3


def test_n8n_reaches_its_own_ports_on_loopback(worker: Any, knock: Knock) -> None:
    assert knock(worker, "127.0.0.1/5678", "127.0.0.1/5701", user="n8n") == [OPEN, OPEN]


def test_others_are_not_fenced_in(worker: Any, knock: Knock) -> None:
    assert knock(worker, "127.0.0.1/9090") == [OPEN]
    assert REFUSED not in knock(worker, "10.1.2.3/443")


@pytest.mark.parametrize(
    ("port", "result"),
    [
        (5432, OPEN),
        (6379, OPEN),
        (443, OPEN),
        (9200, OPEN),  # firewall_n8n_allow
        (9201, REFUSED),  # open to everyone, but private
        (22, REFUSED),
    ],
)
def test_n8n_reaches_of_other_hosts_what_it_needs(
    edge: Any, worker: Any, address: Address, knock: Knock, port: int, result: str
) -> None:
    assert knock(worker, f"{address(edge)}/{port}", user="n8n") == [result]


def test_n8n_reaches_the_internet(edge: Any, worker: Any, address: Address, knock: Knock) -> None:
    # A public address, kept at home.
    edge.check_output("ip address replace 203.0.113.7/32 dev lo")
    worker.check_output(f"ip route replace 203.0.113.7/32 via {address(edge)}")
    assert knock(worker, "203.0.113.7/9201", user="n8n") == [OPEN]


def test_n8n_resolves_names(worker: Any) -> None:
    assert worker.check_output("runuser -u n8n -- getent hosts n8n-platform-firewall")


@pytest.mark.parametrize("user", ["postgres", "redis"])
def test_databases_reach_only_their_host(edge: Any, worker: Any, address: Address, knock: Knock, user: str) -> None:
    targets = ["127.0.0.1/5432", f"{address(worker)}/5678", "203.0.113.99/443", "169.254.169.254/80"]
    assert knock(edge, *targets, user=user) == [OPEN, REFUSED, REFUSED, REFUSED]


def test_refusals_are_counted(worker: Any) -> None:
    assert " packets 0 " not in worker.check_output("nft list counter inet n8n_platform egress_refused")


def test_log_can_be_off(edge: Any, worker: Any) -> None:
    assert 'log prefix "n8n-platform egress refused' in edge.check_output("nft list table inet n8n_platform")
    assert "log prefix" not in worker.check_output("nft list table inet n8n_platform")

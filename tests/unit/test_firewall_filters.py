"""Rules from groups, addresses and wishes."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from plugins.filter.firewall import FilterModule, families, input_rules, output_rules, ports

GROUPS = {"postgres": ["db"], "n8n_main": ["app", "db"], "n8n_worker": ["app"], "traefik": ["edge"]}
ADDRESSES = {"db": "10.0.0.1", "app": "10.0.0.2", "edge": "fd00::3"}
PEERS: list[dict[str, Any]] = [
    {"to": "postgres", "ports": [5432], "from": ["n8n_main", "n8n_worker"]},
    {"to": "n8n_main", "ports": [5678, "5701-5702"], "from": ["traefik"]},
    {"to": "redis", "ports": [6379], "from": ["n8n_main"]},
]


def test_a_host_lets_in_the_others_that_need_it() -> None:
    assert input_rules(PEERS, [], GROUPS, ADDRESSES, "db") == [
        {"proto": "tcp", "ports": ["5432"], "comment": "postgres", "v4": ["10.0.0.2"], "v6": []},
        {"proto": "tcp", "ports": ["5678", "5701-5702"], "comment": "n8n_main", "v4": [], "v6": ["fd00::3"]},
    ]
    assert input_rules(PEERS, [], GROUPS, ADDRESSES, "edge") == []


def test_n8n_gets_out_to_what_it_needs() -> None:
    assert output_rules(PEERS, [], GROUPS, ADDRESSES, "app") == [
        {"proto": "tcp", "ports": ["5432"], "comment": "postgres", "v4": ["10.0.0.1"], "v6": []}
    ]
    # PostgreSQL is on the host itself, and Traefik is not fenced in.
    assert output_rules(PEERS, [], GROUPS, ADDRESSES, "db") == []
    assert output_rules(PEERS, [], GROUPS, ADDRESSES, "edge") == []


def test_other_clients_get_out_to_what_they_need() -> None:
    groups, peers = (
        {"object_store": ["app"], "backup": ["db", "app"]},
        [{"to": "object_store", "ports": [7070], "from": ["backup"]}],
    )
    assert output_rules(peers, [], groups, ADDRESSES, "db") == []
    assert output_rules(peers, [], groups, ADDRESSES, "db", ["backup"])[0]["v4"] == ["10.0.0.2"]
    assert output_rules(peers, [], groups, ADDRESSES, "app", ["backup"]) == []


def test_a_single_host_needs_no_rules() -> None:
    groups = {"postgres": ["one"], "n8n_main": ["one"], "traefik": ["one"]}
    assert input_rules(PEERS, [], groups, {"one": "10.0.0.1"}, "one") == []
    assert output_rules(PEERS, [], groups, {"one": "10.0.0.1"}, "one") == []


def test_wishes_are_added() -> None:
    allow: list[dict[str, Any]] = [
        {"ports": [53], "proto": "udp", "sources": "10.0.0.0/8", "comment": "dns"},
        {"ports": ["80-81"]},
    ]
    assert input_rules([], allow, {}, {}, "any") == [
        {"proto": "udp", "ports": ["53"], "comment": "dns", "v4": ["10.0.0.0/8"], "v6": []},
        {"proto": "tcp", "ports": ["80-81"], "comment": "inventory", "v4": [], "v6": []},
    ]
    assert output_rules([], [{"addresses": ["10.1.2.3"]}], {}, {}, "any")[0]["ports"] == []


def test_a_wish_without_addresses_would_open_everything() -> None:
    with pytest.raises(AnsibleFilterError, match="would allow everything"):
        output_rules([], [{"addresses": [], "ports": [443]}], {}, {}, "any")


def test_names_are_refused() -> None:
    with pytest.raises(AnsibleFilterError, match=r"platform_address: 'db\.internal' is no IP address"):
        input_rules(PEERS, [], GROUPS, {**ADDRESSES, "app": "db.internal"}, "db")


def test_zones_and_duplicates_go() -> None:
    found = families(["fe80::1%eth0", "10.0.0.1", "10.0.0.1/32", "10.9.9.9/8"], "x")
    assert found == {"v4": ["10.0.0.0/8", "10.0.0.1"], "v6": ["fe80::1"]}


@given(st.lists(st.ip_addresses(), max_size=8))
def test_no_address_is_lost(addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
    given_addresses = [str(address) for address in addresses]
    found = families(given_addresses, "x")
    assert {ipaddress.ip_address(text) for text in found["v4"] + found["v6"]} == {
        ipaddress.ip_address(text.split("%")[0]) for text in given_addresses
    }


@pytest.mark.parametrize("bad", ["http", 0, 65536, "20-10", "1-2-3", "", -1])
def test_bad_ports_are_refused(bad: Any) -> None:
    with pytest.raises(AnsibleFilterError, match=r"firewall_allow: '.*' is no port"):
        ports([bad], "firewall_allow")


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_good_ports_pass(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert ports(one, "x") == [str(one)]
    assert ports(f"{low}-{high}", "x") == [f"{low}-{high}" if low < high else str(low)]


def test_filters_have_names() -> None:
    assert set(FilterModule().filters()) == {
        "firewall_input",
        "firewall_output",
        "firewall_families",
        "firewall_ports",
    }

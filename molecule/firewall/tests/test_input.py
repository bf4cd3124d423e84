"""Who reaches what on the two hosts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

testinfra_hosts = ["ansible://n8n-platform-firewall"]
Address = Callable[[Any], str]
Knock = Callable[..., list[str]]

OPEN, DROPPED = "open fast", "dropped slow"


@pytest.mark.parametrize(
    ("port", "result"),
    [
        (5432, OPEN),  # PostgreSQL
        (6379, OPEN),  # Redis
        (6380, OPEN),
        (80, OPEN),  # Traefik
        (443, OPEN),
        (9200, OPEN),  # firewall_allow, everyone
        (9201, OPEN),
        (9100, DROPPED),  # firewall_allow, but for others
        (5678, DROPPED),  # n8n's port on a host without n8n
        (9999, DROPPED),
    ],
)
def test_n8n_host_reaches_what_it_needs(
    edge: Any, worker: Any, address: Address, knock: Knock, port: int, result: str
) -> None:
    assert knock(worker, f"{address(edge)}/{port}") == [result]


@pytest.mark.parametrize(
    ("port", "result"),
    [
        (5678, OPEN),
        (5701, OPEN),
        (5703, OPEN),  # platform_n8n_webhooks: 3
        (5704, DROPPED),
        (5721, DROPPED),  # workers answer their own host only
        (443, DROPPED),  # no Traefik here
        (5432, DROPPED),
        (9090, DROPPED),
    ],
)
def test_traefik_host_reaches_main_and_webhooks(
    edge: Any, worker: Any, address: Address, knock: Knock, port: int, result: str
) -> None:
    assert knock(edge, f"{address(worker)}/{port}") == [result]


def test_everything_is_open_on_the_host_itself(edge: Any, address: Address, knock: Knock) -> None:
    assert knock(edge, "127.0.0.1/9999", f"{address(edge)}/5678") == [OPEN, OPEN]


def test_ssh_connections_are_limited_per_source(edge: Any, worker: Any, address: Address, knock: Knock) -> None:
    edge.check_output("nft flush set inet n8n_platform ssh_v4")
    results = knock(worker, *[f"{address(edge)}/22"] * 8)
    assert results[:5] == [OPEN] * 5, "firewall_ssh_burst: 5"
    assert DROPPED in results[5:7]
    assert knock(edge, f"{address(worker)}/22") == [OPEN], "the other host has its own budget"


def test_web_connections_are_limited_per_source(edge: Any, worker: Any, address: Address, knock: Knock) -> None:
    results = knock(worker, *[f"{address(edge)}/443"] * 12)
    assert results.count(OPEN) <= 8, "firewall_web_connections: 8"
    assert results[:5] == [OPEN] * 5
    assert set(results) == {OPEN, "ECONNREFUSED fast"}, "refused at once"


def test_refusals_are_counted(edge: Any) -> None:
    assert " packets 0 " not in edge.check_output("nft list counter inet n8n_platform input_refused")

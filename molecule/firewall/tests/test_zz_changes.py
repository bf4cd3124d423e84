"""How rules come, go back, and live with others. Last, because these tests change the hosts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

testinfra_hosts = ["ansible://n8n-platform-firewall"]
Address = Callable[[Any], str]
Knock = Callable[..., list[str]]
Tables = Callable[[Any], set[str]]
Converge = Callable[..., Any]

UNIT = "n8n-platform-firewall.service"
SCRIPT = "/usr/local/lib/n8n-platform/firewall"
RULES = "/etc/n8n-platform/firewall.nft"
CONFIRMED = "/var/lib/n8n-platform/firewall.nft"
OURS = "inet n8n_platform"
OTHERS = {"ip others_table", "inet others_table"}


@pytest.fixture
def shim(edge: Any) -> Iterator[Callable[[str], None]]:
    """Return a function that makes the kernel look as if it refused rules with a word."""

    def make(word: str) -> None:
        edge.check_output(
            "printf %%s %s >/usr/local/sbin/nft && chmod 755 /usr/local/sbin/nft",
            f"""#!/bin/sh
for last; do :; done
[ "$last" != - ] || {{ cat >/run/shim; set -- --check --file /run/shim; last=/run/shim; }}
if [ -f "$last" ] && grep -q '{word}' "$last"; then
  echo "Error: Could not process rule: Operation not supported" >&2
  exit 1
fi
exec /usr/sbin/nft "$@"
""",
        )

    yield make
    edge.check_output("rm -f /usr/local/sbin/nft")


def test_unit_runs_at_boot_in_a_sandbox(
    host: Any, running: Callable[[str], None], exposure: Callable[[str], float]
) -> None:
    running(UNIT)
    assert exposure(UNIT) <= 2.0


def test_tables_of_others_stay(edge: Any, tables: Tables) -> None:
    assert OTHERS | {OURS} <= tables(edge)
    edge.check_output(f"systemctl reload {UNIT}")
    assert OTHERS | {OURS} <= tables(edge)
    edge.check_output(f"systemctl stop {UNIT}")
    assert tables(edge) & (OTHERS | {OURS}) == OTHERS
    edge.check_output(f"systemctl start {UNIT}")
    assert OTHERS | {OURS} <= tables(edge)


@pytest.fixture
def resolver(edge: Any) -> Iterator[None]:
    """Give the container its DNS back: Docker arranges it by rules, which go when everything is flushed."""
    listed = edge.run("nft list table ip nat").stdout
    ports = dict(re.findall(r"(tcp|udp) (?:sport |dport 53 dnat to 127\.0\.0\.11:)(\d+)", listed))
    yield
    if ports:
        rules = ["table ip nat {", "chain restored { type nat hook output priority dstnat;"]
        rules += [f"ip daddr 127.0.0.11 {proto} dport 53 dnat to 127.0.0.11:{port}" for proto, port in ports.items()]
        edge.check_output("printf %%s %s | nft --file -", "\n".join([*rules, "}", "}", ""]))
    edge.check_output("getent hosts n8n-platform-firewall-n8n")


@pytest.mark.usefixtures("resolver")
@pytest.mark.parametrize("verb", ["start", "reload", "restart", "stop"])
def test_debians_own_firewall_service_does_not_take_ours_away(edge: Any, verb: str) -> None:
    # It flushes the tables of everybody: ours comes back by itself.
    edge.check_output(f"systemctl {verb} nftables.service")
    edge.check_output("timeout 20 sh -c 'until nft list table inet n8n_platform; do sleep 0.1; done'")
    if verb == "stop":
        for table in OTHERS:
            edge.check_output(f"nft add table {table}")


def test_unconfirmed_rules_take_themselves_back(edge: Any, worker: Any, address: Address, knock: Knock) -> None:
    target = f"{address(edge)}/9200"
    edge.check_output(f"sed 's/9200-9201/9201/' {RULES} >/run/locked-out.nft")
    edge.check_output(f"{SCRIPT} apply /run/locked-out.nft {CONFIRMED} 4")
    assert knock(worker, target) == ["dropped slow"]
    follow = "journalctl --follow --since=-20s --unit=n8n-platform-firewall-revert.service"
    edge.check_output(f"timeout 30 bash -c 'grep -m 1 \"the previous ones are back\" < <({follow})'")
    assert knock(worker, target) == ["open fast"]
    late = edge.run(f"{SCRIPT} confirm /run/locked-out.nft {CONFIRMED}")
    assert late.rc == 1
    assert "Too late" in late.stderr
    assert edge.file(CONFIRMED).content == edge.file(RULES).content


def test_confirmed_rules_stay(edge: Any) -> None:
    edge.check_output(f"{SCRIPT} apply {RULES} {CONFIRMED} 60")
    edge.check_output(f"{SCRIPT} confirm {RULES} {CONFIRMED}")
    assert "n8n-platform-firewall-revert" not in edge.check_output("systemctl list-timers --all")


def test_first_rules_of_a_host_are_taken_back_to_none(edge: Any, tables: Tables) -> None:
    edge.check_output(f"{SCRIPT} revert /run/nothing-was-ever-confirmed")
    assert tables(edge) & (OTHERS | {OURS}) == OTHERS
    edge.check_output(f"systemctl restart {UNIT}")
    assert OURS in tables(edge)


def test_broken_rules_change_nothing(edge: Any) -> None:
    before = edge.check_output("nft --stateless list table inet n8n_platform")
    edge.check_output("echo 'add rule inet n8n_platform input nonsense' >/run/broken.nft")
    assert edge.run(f"{SCRIPT} apply /run/broken.nft {CONFIRMED} 60").rc == 1
    assert edge.check_output("nft --stateless list table inet n8n_platform") == before
    assert "n8n-platform-firewall-revert" not in edge.check_output("systemctl list-timers --all")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"firewall_ssh_rate": "many/minute"}, "was refused by `nft --check"),
        ({"firewall_allow": [{"ports": ["http"]}]}, "'http' is no port"),
        ({"firewall_allow": [{"ports": [1], "sources": ["db.example.org"]}]}, "is no IP address or network"),
        ({"firewall_n8n_allow": [{"addresses": [], "ports": [443]}]}, "would allow everything"),
        ({"firewall_revert_seconds": "soon"}, "firewall_revert_seconds"),
    ],
)
def test_bad_wishes_are_refused_and_change_nothing(
    edge: Any, converge: Converge, variables: dict[str, Any], message: str
) -> None:
    before = edge.check_output("nft --stateless list ruleset"), edge.file(RULES).content
    result = converge(**variables)
    assert result.returncode != 0
    assert message in " ".join(result.stdout.split())
    assert (edge.check_output("nft --stateless list ruleset"), edge.file(RULES).content) == before


def test_role_notices_rules_that_took_themselves_back(edge: Any, converge: Converge) -> None:
    # The way back is taken at once, as if Ansible had found no way in.
    result = converge(firewall_revert_seconds=0, firewall_web_ports=[8443])
    assert result.returncode != 0
    assert "takes them back by itself" in " ".join(result.stdout.split())
    assert "8443" not in edge.check_output("nft list table inet n8n_platform")
    assert "8443" not in edge.file(CONFIRMED).content_string
    assert converge().returncode == 0


def test_lost_table_comes_back_with_the_next_run(edge: Any, converge: Converge, tables: Tables) -> None:
    edge.check_output("nft delete table inet n8n_platform")
    assert converge().returncode == 0
    assert OURS in tables(edge)


def test_kernel_without_a_feature_gets_the_rest(edge: Any, converge: Converge, shim: Callable[[str], None]) -> None:
    shim("ct count")
    result = converge()
    assert result.returncode == 0
    assert "The firewall works without connection_limit" in " ".join(result.stdout.split())
    assert "connection_limit" in json.loads(edge.file("/var/lib/n8n-platform/firewall.json").content_string)["missing"]
    listed = edge.check_output("nft list table inet n8n_platform")
    assert "ct count" not in listed
    assert "policy drop" in listed


def test_kernel_that_cannot_is_an_error_or_a_report(converge: Converge, shim: Callable[[str], None]) -> None:
    shim("skuid")
    refused = converge()
    assert refused.returncode != 0
    assert "cannot run the firewall" in " ".join(refused.stdout.split())
    reported = converge(firewall_on_unsupported="report")
    assert reported.returncode == 0
    assert "The firewall is left out" in " ".join(reported.stdout.split())


def test_it_can_be_removed(edge: Any, converge: Converge, tables: Tables) -> None:
    assert converge(firewall_enabled=False).returncode == 0
    assert tables(edge) & (OTHERS | {OURS}) == OTHERS
    assert not edge.file(RULES).exists
    assert not edge.file(f"/etc/systemd/system/{UNIT}").exists
    again = converge(firewall_enabled=False)
    assert "changed=0" in again.stdout
    assert converge().returncode == 0
    assert OURS in tables(edge)

"""What runs, who may do what, what is in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from molecule.pulsar.tests.conftest import SECRETS, Admin, Client

UNITS = ["n8n-pulsar-zookeeper.service", "n8n-pulsar-bookie.service", "n8n-pulsar-broker.service"]
SHORT = "persistent://dealscale/workflow/short"
MEMORY_GOAL_MB = 1024


@pytest.mark.parametrize("unit", UNITS)
def test_unit(unit: str, running: Callable[[str], None], exposure: Callable[[str], float]) -> None:
    running(unit)
    assert exposure(unit) <= 2.0


def test_watch(running: Callable[[str], None], exposure: Callable[[str], float]) -> None:
    running("n8n-pulsar-bookie-watch.timer")
    assert exposure("n8n-pulsar-bookie-watch.service") <= 2.0
    assert exposure("n8n-pulsar-metadata.service") <= 2.0


def test_nothing_listens_beyond_this_host(listeners: Callable[[], set[tuple[str, int]]]) -> None:
    found = listeners()
    assert {port for _address, port in found} == {2181, 2190, 3181, 3190, 6650, 8081}
    assert {address.removeprefix("::ffff:") for address, _port in found} == {"127.0.0.1"}


def test_the_broker_writes_and_reads(admin: Admin) -> None:
    assert admin("admin/v2/brokers/health")[0] == 200


def test_settings_reached_the_daemons(admin: Admin) -> None:
    _status, found = admin("admin/v2/brokers/configuration/runtime")
    assert found["maxMessageSize"] == "1048576"
    assert found["managedLedgerCacheSizeMB"] == "24"
    assert found["brokerDeduplicationEnabled"] == "false"
    assert found["allowAutoTopicCreation"] == "false"
    assert admin("admin/v2/bookies/all")[1]["bookies"][0]["bookieId"] == "keeper-1"


@pytest.mark.parametrize(
    ("path", "role", "allowed"),
    [
        ("metrics/", "metrics", True),
        ("metrics/", "", False),
        ("admin/v2/tenants", "", False),
        ("admin/v2/tenants", "stranger", False),
        ("admin/v2/tenants", "metrics", False),
        ("admin/v2/namespaces/dealscale", "bridge_publisher", False),
        ("admin/v2/tenants", "admin", True),
    ],
)
def test_who_may_ask(admin: Admin, path: str, role: str, allowed: bool) -> None:
    status = admin(path, role)[0]
    assert status == 200 if allowed else status in (401, 403)


@pytest.mark.parametrize("role", ["none", "forged", "stranger", "metrics", "bridge_consumer"])
def test_who_may_not_publish(client: Client, role: str) -> None:
    # Without a valid token the client tries until its time is over.
    assert client(role, "once", SHORT)["error"] in ("Timeout", "AuthorizationError", "AuthenticationError")


def test_who_may_not_consume(client: Client) -> None:
    for role, subscription in (("bridge_publisher", "n8n-bridge"), ("stranger", "n8n-bridge")):
        assert client(role, "drain", SHORT, subscription)["error"] == "AuthorizationError"
    # The subscription is not among those of the role.
    inference = "persistent://dealscale/ai/inference"
    assert client("bridge_consumer", "drain", inference, "audit")["error"] == "AuthorizationError"


def test_a_message_arrives_once(client: Client) -> None:
    client("bridge_consumer", "drain", SHORT, "n8n-bridge")
    assert client("bridge_publisher", "once", SHORT)["ledger"] >= 0
    assert client("bridge_consumer", "drain", SHORT, "n8n-bridge")["seen"] == 1


def test_topics_and_namespaces_are_those_wished(admin: Admin) -> None:
    assert sorted(admin("admin/v2/tenants")[1]) == ["dealscale", "public", "pulsar", "shop"]
    assert sorted(admin("admin/v2/namespaces/dealscale")[1]) == [
        "dealscale/ai",
        "dealscale/deadletter",
        "dealscale/workflow",
    ]
    assert admin("admin/v2/persistent/dealscale/workflow/short/partitions")[1]["partitions"] == 3
    assert sorted(admin("admin/v2/persistent/dealscale/deadletter")[1]) == [
        "persistent://dealscale/deadletter/ai.inference",
        "persistent://dealscale/deadletter/workflow.short",
    ]
    dead = "admin/v2/persistent/dealscale/deadletter/workflow.short/subscriptions"
    assert admin(dead)[1] == ["inspect"]
    assert admin("admin/v2/namespaces/dealscale/deadletter/retention")[1]["retentionTimeInMinutes"] == 120
    assert admin("admin/v2/namespaces/dealscale/workflow/retention")[1]["retentionTimeInMinutes"] == 60


def test_topics_are_not_made_in_passing(client: Client) -> None:
    assert client("admin", "once", "persistent://dealscale/workflow/unheard-of")["error"] == "TopicNotFound"
    assert client("admin", "drain", SHORT, "unheard-of")["error"] != ""


def test_a_message_is_on_the_disk_before_it_counts_as_stored(host: Any, client: Client) -> None:
    def syncs() -> int:
        metrics = host.check_output("curl -sS http://127.0.0.1:3190/metrics")
        found = re.findall(r'^bookie_journal_JOURNAL_SYNC_count\{.*success="true".*\} (\S+)$', metrics, re.MULTILINE)
        return int(sum(map(float, found)))

    before = syncs()
    for _ in range(5):
        client("bridge_publisher", "once", SHORT)
    client("bridge_consumer", "drain", SHORT, "n8n-bridge")
    assert syncs() - before >= 5


def test_the_command_line_works(host: Any) -> None:
    assert "persistent://dealscale/workflow/short" in host.check_output(
        "pulsar-admin topics list-partitioned-topics dealscale/workflow"
    )


def test_no_token_is_where_others_look(host: Any) -> None:
    for name in ("admin", "broker", "metrics"):
        # By file, so that it is not in the command line that looks for it.
        look = f"grep -lF -f {SECRETS}/pulsar_{name}_token"
        for place in (
            "/etc/n8n-platform/pulsar /etc/systemd/system /usr/local",
            "/proc/[0-9]*/environ /proc/[0-9]*/cmdline",
        ):
            assert host.run(f"{look} -r {place}").stdout == ""
        assert host.run(f"journalctl --no-pager -u 'n8n-pulsar-*' | {look}").stdout == ""


def test_the_doctor_looks_at_it(play: Callable[..., CompletedProcess[str]]) -> None:
    root = Path(__file__).parents[3]
    said = play(root / "playbooks/doctor.yml", "-e", f"@{root}/molecule/pulsar/vars.yml").stdout
    assert "bookie registered, broker stores" in said, said


def test_memory(host: Any) -> None:
    found = {}
    for unit in UNITS:
        pid = host.check_output(f"systemctl show --property=MainPID --value {unit}")
        status = host.file(f"/proc/{pid}/status").content_string
        found[unit] = int(re.findall(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[0]) // 1024
    print(f"resident memory, MiB: {found}, together {sum(found.values())}")
    assert sum(found.values()) <= MEMORY_GOAL_MB

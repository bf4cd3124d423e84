"""Break the host and the inventory for real, and read what preflight says; nothing may change on the host."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

PLAYBOOK = Path(__file__).parents[3] / "playbooks/preflight.yml"
CONTRACT = Path(__file__).parents[3] / "roles/_platform/defaults/main.yml"
Preflight = Callable[..., tuple[bool, str]]
SNAPSHOT = (
    "find /etc /opt /srv /usr/local /var/lib /root -xdev ! -path '/root/.ansible*' -printf '%p %m %u %s %T@\n' | sort"
)


@pytest.fixture
def preflight(play: Callable[..., Any]) -> Callable[..., tuple[bool, str]]:
    """Return a function that runs the playbook and says whether it passed, and its output with single blanks."""

    def run(**variables: Any) -> tuple[bool, str]:
        done = play(PLAYBOOK, **variables)
        return done.returncode == 0, " ".join(done.stdout.split())

    return run


@pytest.fixture
def unchanged(host: Any) -> Iterator[None]:
    """Assert that a test's runs leave the host as it was."""
    before = host.check_output(SNAPSHOT)
    yield
    assert host.check_output(SNAPSHOT) == before


@pytest.fixture
def stranger(host: Any) -> Iterator[None]:
    """Let a unit that is none of ours listen on PostgreSQL's and on a worker's port."""
    for port in (5432, 5722):
        command = f"systemd-run --quiet --unit stranger-{port} python3 -m http.server {port} --bind 127.0.0.1"
        host.check_output(command)
        host.check_output(f"timeout 10 sh -c 'until ss -ltn | grep -q :{port}; do sleep 0.1; done'")
    yield
    host.check_output("systemctl stop stranger-5432 stranger-5722")


@pytest.fixture
def tiny_volume(host: Any) -> Iterator[str]:
    """Mount 64 MiB with few inodes where n8n is installed."""
    host.check_output("mkdir -p /mnt/tiny && mount -t tmpfs -o size=64m,nr_inodes=1000 tmpfs /mnt/tiny")
    yield "/mnt/tiny"
    host.check_output("umount /mnt/tiny && rmdir /mnt/tiny")


@pytest.fixture
def other_system(host: Any) -> Iterator[None]:
    """Let the host say that it is Fedora."""
    host.check_output("printf 'ID=fedora\\nVERSION_ID=43\\nPRETTY_NAME=\"Fedora 43\"\\n' >/run/os-release")
    host.check_output("mount --bind /run/os-release $(readlink -f /etc/os-release)")
    yield
    host.check_output("umount $(readlink -f /etc/os-release)")


def test_a_good_host_passes(preflight: Preflight, unchanged: None) -> None:
    passed, output = preflight()
    assert passed, output
    assert "ERROR" not in output


def test_everything_wrong_with_a_host_is_said_at_once(
    preflight: Preflight, unchanged: None, stranger: None, tiny_volume: str, other_system: None
) -> None:
    passed, output = preflight(
        platform_memory_mb=10_000_000,
        platform_install_dir=f"{tiny_volume}/opt",
        platform_mount_points=["/srv", tiny_volume],
    )
    assert not passed
    assert "The operating system is Fedora 43. -> Use a host with one of Debian 13, Ubuntu 24.04." in output
    assert "Port 5432 (postgres) is held by python3 (process" in output
    assert "stranger-5432.service). -> Stop it (systemctl disable --now stranger-5432.service)" in output
    assert "Port 5722 (n8n_worker_base) is held by python3" in output
    assert "platform_memory_mb is 10000000, but the host has" in output
    assert (
        f"{tiny_volume} has 64 MiB free, 4608 are needed (two releases of n8n and Node.js: 4096, Traefik: 512)"
        in output
    )
    assert f"{tiny_volume} has 99" in output
    assert "inodes free, 320000 are needed" in output
    assert "/srv is declared as a mount point (platform_mount_points), but nothing is mounted there." in output
    assert f"{tiny_volume} is declared" not in output


def test_every_wrong_setting_is_said_at_once(preflight: Preflight, unchanged: None) -> None:
    passed, output = preflight(
        platform_memory_mb=3000,
        platform_n8n_concurrency=0,
        platform_domain="n8n.internal",
        traefik_tls_mode="acme",
        n8n_environment={"EXECUTIONS_DATA_PRUNE_MAX_AGE": "168", "N8N_LOG_LEVLE": "debug"},
        EXECUTIONS_CONCURRENCY=10,
        N8N_TEMPLATES_ENABLED=False,
        n8n_workers=3,
        redis_queue_fsnyc="always",
        somebodys_own_variable=1,
    )
    assert not passed
    assert "platform_n8n_concurrency must be a whole number" in output
    assert "traefik_tls_mode is acme, but nobody certifies platform_domain n8n.internal." in output
    assert "EXECUTIONS_DATA_PRUNE_MAX_AGE is not read by this n8n; use EXECUTIONS_DATA_MAX_AGE" in output
    assert "N8N_LOG_LEVLE is not a variable of this n8n; did you mean N8N_LOG_LEVEL?" in output
    assert "EXECUTIONS_CONCURRENCY does nothing. -> Use the variable platform_n8n_concurrency." in output
    assert "N8N_TEMPLATES_ENABLED is a variable of n8n" in output
    assert "The variable n8n_workers does not exist. -> Use platform_n8n_workers." in output
    assert "The variable redis_queue_fsnyc does not exist. -> Did you mean redis_queue_fsync?" in output
    assert "somebodys_own_variable" not in output


def test_workers_that_do_not_fit(preflight: Preflight, unchanged: None) -> None:
    passed, output = preflight(platform_n8n_workers=40)
    assert not passed
    assert "n8n does not fit this host" in output


def test_two_components_on_one_port(preflight: Preflight, unchanged: None) -> None:
    ports = yaml.safe_load(CONTRACT.read_text(encoding="utf-8"))["platform_ports"]
    ports |= {"redis_queue": 6379, "redis_cache": 6379, "n8n_webhook_base": 5718, "n8n_worker_base": 5719}
    passed, output = preflight(platform_ports=ports)
    assert not passed
    assert "redis_queue and redis_cache would both use port 6379 on this host." in output
    assert "n8n_webhook_base and n8n_worker_base would both use port 5720 on this host." in output


def test_a_table_that_lacks_ports(preflight: Preflight, unchanged: None) -> None:
    ports = yaml.safe_load(CONTRACT.read_text(encoding="utf-8"))["platform_ports"]
    del ports["redis_cache"]
    passed, output = preflight(platform_ports=ports)
    assert not passed
    assert 'platform_ports replaces the whole table, and yours lacks redis_cache. Add {"redis_cache": 6380}' in output


def test_a_name_nobody_knows_is_a_warning(preflight: Preflight, unchanged: None) -> None:
    passed, output = preflight(platform_domain="n8n.nowhere-to-be-found-8d1f.org")
    assert passed, output
    assert "WARNING n8n-platform-preflight: n8n.nowhere-to-be-found-8d1f.org does not resolve on this host" in output


def test_an_inventory_without_sense(preflight: Preflight, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(
        json.dumps(
            {
                "platform": {
                    "hosts": {"a": None, "b": None},
                    "children": {
                        "postgres": {"hosts": {"a": None, "b": None}},
                        "n8n_main": {"hosts": {"a": None}},
                        "n8n_workers": {"hosts": {"b": None}},
                    },
                },
                "traefik": {"hosts": {"c": None}},
            }
        )
    )
    passed, output = preflight(inventory=str(inventory))
    assert not passed
    assert "The group postgres has several hosts (a, b)." in output
    assert "n8n_main needs redis, which has no host." in output
    assert "Nothing would execute workflows." in output
    assert "The group n8n_workers means nothing here. -> Did you mean n8n_worker?" in output
    assert "c is in traefik but not in platform." in output

"""Ask the exporters what they measure, and try what must be refused."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

PORTS = {"node": 9100, "process": 9256, "postgres": 9187, "redis": 9121, "blackbox": 9115}
CONVERGE = Callable[..., subprocess.CompletedProcess[str]]


def metrics(host: Any, name: str, path: str = "/metrics") -> str:
    """Return what an exporter says."""
    program = "import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1], timeout=20).read().decode())"
    return str(host.check_output("python3 -c %s %s", program, f"http://127.0.0.1:{PORTS[name]}{path}"))


def value(text: str, series: str) -> float | None:
    """Return the value of a series, given by its name and a part of its labels."""
    name, _, label = series.partition("{")
    for line in text.splitlines():
        if re.match(rf"{name}[{{ ]", line) and label.rstrip("}") in line:
            return float(line.rsplit(" ", 1)[1])
    return None


@pytest.mark.parametrize("name", PORTS)
def test_unit(host: Any, name: str, running: Callable[[str], None], exposure: Callable[[str], float]) -> None:
    running(f"prometheus-{name}-exporter.service")
    assert exposure(f"prometheus-{name}-exporter.service") <= 2.0


def test_only_loopback_is_listened_on(listeners: Callable[[], set[tuple[str, int]]]) -> None:
    found = listeners()
    assert {("127.0.0.1", port) for port in PORTS.values()} <= found
    assert not {(address, port) for address, port in found if port in PORTS.values() and address != "127.0.0.1"}


def test_the_host_is_measured(host: Any) -> None:
    text = metrics(host, "node")
    for series in (
        "node_memory_MemAvailable_bytes",
        'node_cpu_seconds_total{mode="idle"}',
        "node_timex_sync_status",
        "node_load1",
    ):
        assert value(text, series) is not None, series
    assert (value(text, 'node_filesystem_size_bytes{mountpoint="/"}') or 0) > 0
    assert value(text, 'node_filesystem_readonly{mountpoint="/"}') == 0, "the sandbox of the exporter is not the host"
    assert "node_filesystem_device_error" not in text or not re.search(
        r"node_filesystem_device_error{.*} 1$", text, re.MULTILINE
    )
    failed = re.findall(r'node_scrape_collector_success{collector="(\w+)"} 0', text)
    # A test host is a container, which has no counters of pressure and of tracked connections.
    assert set(failed) <= {"pressure", "conntrack"}, failed


def test_units_are_measured(host: Any) -> None:
    text = metrics(host, "node")
    assert value(text, 'node_systemd_unit_state{name="redis-queue.service",state="active"') == 1
    assert value(text, 'node_systemd_service_restart_total{name="redis-queue.service"') == 0
    assert "cron.service" not in text


def test_text_files_are_read(host: Any) -> None:
    text = metrics(host, "node")
    assert value(text, "node_textfile_scrape_error") == 0
    assert (value(text, "n8n_platform_deploy_timestamp_seconds") or 0) > 1.7e9
    assert re.search(r'n8n_platform_info{program="platform",version="\d+\.\d+\.\d+"} 1', text)


def test_every_unit_has_its_memory(host: Any) -> None:
    text = metrics(host, "process")
    for unit in ("redis-queue", "redis-cache", "postgresql@17-main", "prometheus-node-exporter"):
        line = re.search(
            rf'namedprocess_namegroup_memory_bytes{{groupname="[^"]*/{unit}\.service[^"]*",memtype="resident"}} (\S+)',
            text,
        )
        assert line, f"{unit}: {text[-3000:]}"
        assert float(line[1]) > 1e6


def test_postgres_is_measured_by_a_user_that_reads_no_data(host: Any) -> None:
    text = metrics(host, "postgres")
    assert value(text, "pg_up") == 1
    for series in (
        "pg_settings_max_connections",
        'pg_database_size_bytes{datname="shop"}',
        'pg_stat_database_xact_commit{datname="shop"',
        "pg_stat_archiver_failed_count",
        "pg_stat_activity_count",
        "pg_stat_activity_max_tx_duration",
    ):
        assert value(text, series) is not None, series
    failed = re.findall(r'pg_scrape_collector_success{collector="(\w+)"} 0', text)
    assert not failed, failed
    refused = host.run("runuser -u n8n_monitor -- psql -d shop -c 'CREATE TABLE x (y int)'")
    assert refused.rc != 0
    assert "permission denied" in refused.stderr
    host.check_output("runuser -u postgres -- psql -d shop -c 'CREATE TABLE IF NOT EXISTS secret (y int)'")
    assert "permission denied" in host.run("runuser -u n8n_monitor -- psql -d shop -c 'SELECT * FROM secret'").stderr
    assert host.run("runuser -u nobody -- psql -U n8n_monitor -d shop -c 'SELECT 1'").rc != 0


@pytest.mark.parametrize("instance", ["queue", "cache"])
def test_redis_is_measured(host: Any, instance: str) -> None:
    password = "REDISCLI_AUTH=$(cat /etc/n8n-platform/secrets/redis_admin_password)"
    admin = f"{password} redis-cli -s /run/redis-{instance}/redis.sock --user admin"
    host.check_output(f"{admin} RPUSH shop:jobs:wait 1 2 3")
    text = metrics(host, "redis", f"/scrape?target=unix:///run/redis-{instance}/redis.sock")
    host.check_output(f"{admin} DEL shop:jobs:wait")
    assert value(text, "redis_up") == 1
    assert (value(text, "redis_memory_max_bytes") or 0) > 0
    assert value(text, 'redis_key_size{db="db0",key="shop:jobs:wait"}') == 3
    for series in (
        "redis_connected_clients",
        "redis_evicted_keys_total",
        "redis_rejected_connections_total",
        "redis_slowlog_length",
    ):
        assert value(text, series) is not None, series
    errors = host.check_output("journalctl --no-pager -u prometheus-redis-exporter.service -n 50")
    assert not [word for word in ("NOPERM", "err=") if word in errors], errors


@pytest.mark.parametrize(
    "command",
    [
        "GET shop:x",
        "SET shop:x 1",
        "KEYS x",
        "FLUSHALL",
        "CONFIG SET maxmemory 1",
        "ACL LIST",
        "LLEN other:jobs:wait",
        "CLIENT LIST",
    ],
)
def test_the_redis_user_only_looks(host: Any, command: str) -> None:
    said = host.check_output(
        "REDISCLI_AUTH=$(cat /etc/n8n-platform/secrets/redis_monitor_password)"
        f" redis-cli --user monitor -h 127.0.0.1 -p 6379 {command} 2>/dev/null || true"
    )
    assert "NOPERM" in said, said


def test_the_prober_tells_what_answers(host: Any) -> None:
    assert value(metrics(host, "blackbox", "/probe?module=plain&target=127.0.0.1:6379"), "probe_success") == 1
    assert value(metrics(host, "blackbox", "/probe?module=plain&target=127.0.0.1:1"), "probe_success") == 0
    # Plain HTTP is no entrance.
    assert (
        value(metrics(host, "blackbox", "/probe?module=entrance&target=http://127.0.0.1:9100/"), "probe_success") == 0
    )


def test_the_password_is_on_no_command_line(host: Any) -> None:
    secret = host.check_output("cat /etc/n8n-platform/secrets/redis_monitor_password").strip()
    assert len(secret) > 20
    assert secret not in host.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert secret not in host.check_output("systemctl show prometheus-redis-exporter.service")


def test_a_bad_prober_module_is_refused_and_nothing_changes(host: Any, converge: CONVERGE) -> None:
    before = host.check_output("sha256sum /etc/n8n-platform/exporters/blackbox.yml")
    process = host.check_output("systemctl show -P MainPID prometheus-blackbox-exporter.service")
    done = converge(exporters_blackbox_modules={"broken": {"prober": "http", "no_such_setting": True}})
    assert done.returncode != 0
    assert "no_such_setting" in done.stdout
    assert host.check_output("sha256sum /etc/n8n-platform/exporters/blackbox.yml") == before
    assert host.check_output("systemctl show -P MainPID prometheus-blackbox-exporter.service") == process

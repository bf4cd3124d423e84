"""PostgreSQL as the scenario set it up: who gets in, what holds, what a change does."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

UNIT = "postgresql@17-main.service"
SETTINGS_FILE = "/etc/postgresql/17/main/conf.d/90-n8n-platform.conf"
HBA_FILE = "/etc/postgresql/17/main/pg_hba.conf"
TRIAL = "/usr/local/lib/n8n-platform/postgres-trial"

Query = Callable[..., str]


def test_runs_with_checksums(running: Callable[[str], None], query: Query) -> None:
    running(UNIT)
    assert query("SHOW server_version").startswith("17.")
    assert query("SHOW data_checksums") == "on"
    assert query("SHOW data_directory") == "/srv/postgres/data"
    assert query("SELECT datcollate, pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'shop'") == (
        "C.UTF-8|UTF8"
    )


def test_listens_on_loopback_only(listeners: Callable[[], set[tuple[str, int]]]) -> None:
    assert listeners() == {("127.0.0.1", 15432)}


def test_application_signs_in_by_socket_and_loopback(sign_in: Any, secret: Any) -> None:
    password = secret("postgres_n8n_password")
    for address in ("/var/run/postgresql", "127.0.0.1"):
        answer = sign_in("shop_app", "shop", password, "SELECT current_user, 6 * 7", address)
        assert answer.stdout.strip() == "shop_app|42", answer.stderr
    made = sign_in("shop_app", "shop", password, "CREATE TABLE mine (); DROP TABLE mine; SELECT 'owner'")
    assert made.stdout.strip().endswith("owner"), made.stderr


@pytest.mark.parametrize(
    ("user", "database", "why"),
    [
        ("shop_app", "postgres", "no pg_hba.conf entry"),
        ("shop_app", "reports", "no pg_hba.conf entry"),
        ("reader", "shop", "no pg_hba.conf entry"),
        ("postgres", "postgres", "no pg_hba.conf entry"),
    ],
)
def test_each_role_reaches_its_own_database_only(sign_in: Any, secret: Any, user: str, database: str, why: str) -> None:
    refused = sign_in(user, database, secret("postgres_n8n_password"))
    assert refused.rc != 0
    assert why in refused.stderr


@pytest.mark.parametrize("address", ["127.0.0.1", "/var/run/postgresql"])
@pytest.mark.parametrize("password", ["wrong", ""])
def test_wrong_password_is_refused(sign_in: Any, address: str, password: str) -> None:
    refused = sign_in("shop_app", "shop", password, address=address)
    assert refused.rc != 0
    assert "password" in refused.stderr


def test_another_host_is_refused(host: Any) -> None:
    address = host.check_output("hostname -I").split()[0]
    with pytest.raises(ConnectionRefusedError), socket.create_connection((address, 15432), timeout=5):
        pass


def test_extra_users(host: Any, sign_in: Any, secret: Any, query: Query) -> None:
    assert sign_in("reader", "reports", secret("postgres_reader_password")).rc == 0
    assert query("SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'reports'") == "reader"
    # A role without a password is for the system user of its name, and for nobody else.
    host.check_output("id -u prometheus >/dev/null 2>&1 || useradd --system prometheus")
    statement = "SELECT pg_has_role('pg_monitor', 'member')"
    ask = "psql -XAt -p 15432 -U prometheus -d postgres -c %s"
    assert host.check_output(f"runuser -u prometheus -- {ask}", statement) == "t"
    assert "Peer authentication failed" in host.run(f"runuser -u nobody -- {ask}", statement).stderr


def test_no_role_but_the_administrator_has_powers(query: Query) -> None:
    flags = "(rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls)"
    powerless = "(false, false, false, false, false)"
    statement = f"SELECT rolname FROM pg_roles WHERE rolcanlogin AND {flags} != {powerless}"
    assert query(statement) == "postgres"
    stored = query("SELECT bool_and(rolpassword LIKE 'SCRAM-SHA-256$%') FROM pg_authid WHERE rolpassword IS NOT NULL")
    assert stored == "t"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # Given by the scenario.
        ("shared_buffers", "192MB"),
        ("work_mem", "6MB"),
        ("max_connections", "120"),
        ("log_min_duration_statement", "250ms"),
        # From the size of the host and the memory the scenario gives.
        ("effective_cache_size", "2GB"),
        ("maintenance_work_mem", "170MB"),
        ("max_wal_size", "2GB"),
        ("max_parallel_workers_per_gather", "0"),
        # The role's own.
        ("default_toast_compression", "lz4"),
        ("wal_compression", "lz4"),
        ("checkpoint_timeout", "15min"),
        ("jit", "off"),
        ("synchronous_commit", "on"),
        ("wal_level", "replica"),
        ("idle_in_transaction_session_timeout", "5min"),
        ("track_io_timing", "on"),
        ("ssl", "off"),
        ("pg_stat_statements.track_utility", "off"),
    ],
)
def test_setting_is_effective(query: Query, name: str, value: str) -> None:
    assert query(f"SHOW {name}") == value


def test_nothing_waits_and_no_file_has_errors(query: Query) -> None:
    assert query("SELECT count(*) FROM pg_settings WHERE pending_restart") == "0"
    assert query("SELECT count(*) FROM pg_file_settings WHERE error IS NOT NULL") == "0"
    assert query("SELECT count(*) FROM pg_hba_file_rules WHERE error IS NOT NULL") == "0"


def test_statistics_show_statements_but_no_passwords(query: Query, secret: Any) -> None:
    assert int(query("SELECT count(*) FROM pg_stat_statements")) > 0
    seen = query("SELECT query FROM pg_stat_statements")
    assert secret("postgres_n8n_password") not in seen
    assert secret("postgres_reader_password") not in seen


def test_passwords_are_in_no_log_and_no_process(host: Any, secret: Any) -> None:
    for name in ("postgres_n8n_password", "postgres_reader_password"):
        password = secret(name)
        seen = host.check_output("journalctl --no-pager -o cat") + host.check_output("ps -eo args")
        assert password not in seen
        assert host.run("grep -rqF -- %s /etc/postgresql /etc/systemd/system /var/log/postgresql", password).rc == 1


def test_sandbox_and_limits(host: Any, exposure: Callable[[str], float]) -> None:
    assert exposure(UNIT) <= 2.0
    shown = host.check_output(
        "systemctl show %s -p User -p MemoryMax -p Slice -p OOMPolicy -p Restart -p MainPID", UNIT
    )
    unit = dict(line.split("=", 1) for line in shown.splitlines())
    assert unit["User"] == "postgres"
    assert int(unit["MemoryMax"]) == 2048 * 1024 * 1024
    assert unit["Slice"] == "n8n-platform.slice"
    assert (unit["OOMPolicy"], unit["Restart"]) == ("continue", "always")
    status = host.file(f"/proc/{unit['MainPID']}/status").content_string
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status


def test_server_cannot_write_elsewhere(query: Query, host: Any) -> None:
    query("COPY (SELECT 1) TO PROGRAM 'cat > /srv/postgres/data/allowed'")
    for path in ("/etc/postgresql/owned", "/var/lib/postgresql/owned"):
        refused = host.run(
            "runuser -u postgres -- psql -p 15432 -c %s", f"COPY (SELECT 1) TO PROGRAM 'echo 1 > {path}'"
        )
        assert refused.rc != 0
        assert not host.file(path).exists
    host.check_output("rm /srv/postgres/data/allowed")


def test_write_survives_restart_and_kill(host: Any, query: Query) -> None:
    query("CREATE TABLE IF NOT EXISTS kept (word text)", "shop")
    query("INSERT INTO kept VALUES ('restart')", "shop")
    host.check_output("systemctl restart %s", UNIT)
    query("INSERT INTO kept VALUES ('kill')", "shop")
    host.check_output("systemctl kill --signal KILL --kill-whom main %s", UNIT)
    back = host.run("timeout 60 bash -c 'until pg_isready -q -p 15432; do sleep 0.2; done'")
    assert back.rc == 0, host.check_output("journalctl --no-pager -n 40 -u %s", UNIT)
    assert query("SELECT count(DISTINCT word) FROM kept", "shop") == "2"
    query("DROP TABLE kept", "shop")


def test_large_json_is_compressed_with_lz4(query: Query) -> None:
    query("CREATE TABLE IF NOT EXISTS big (payload text)", "shop")
    query("INSERT INTO big SELECT repeat('{\"a\": 1}', 5000)", "shop")
    assert query("SELECT pg_column_compression(payload) FROM big LIMIT 1", "shop") == "lz4"
    query("DROP TABLE big", "shop")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ("shared_buffers = '1 potato'", 'invalid value for parameter "shared_buffers"'),
        ("shared_bufers = '64MB'", 'unrecognized configuration parameter "shared_bufers"'),
        ("shared_preload_libraries = 'pg_nothing'", 'could not access file "pg_nothing"'),
        ("max_connections = 10\nsuperuser_reserved_connections = 20", "must be less than"),
        ("shared_buffers = '4GB'", "exceeds the service's 2048 MiB"),
        ("wal_level = minimal\narchive_mode = off\nmax_wal_senders = 10", 'requires "wal_level"'),
        ("work_mem = '4MB", "syntax error"),
    ],
)
def test_check_refuses_broken_settings(host: Any, settings: str, why: str) -> None:
    refused = host.run(
        "f=$(mktemp); printf '%%b' %s >$f; %s settings $f 2048; code=$?; rm $f; exit $code", settings, TRIAL
    )
    assert refused.rc != 0
    assert why in refused.stderr
    assert host.run("ls -d /var/tmp/postgres-trial.*").rc != 0


def test_check_refuses_broken_hba(host: Any) -> None:
    refused = host.run("f=$(mktemp); echo 'local all all sometimes' >$f; %s hba $f; code=$?; rm $f; exit $code", TRIAL)
    assert refused.rc != 0
    assert 'invalid authentication method "sometimes"' in refused.stderr


def test_check_accepts_what_runs(host: Any) -> None:
    host.check_output("%s settings %s 2048", TRIAL, SETTINGS_FILE)
    host.check_output("%s hba %s", TRIAL, HBA_FILE)

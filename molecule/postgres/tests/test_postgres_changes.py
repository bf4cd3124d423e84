"""What later runs of the role do to a server that works: as little as possible."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

SETTINGS_FILE = "/etc/postgresql/17/main/conf.d/90-n8n-platform.conf"

# As on a host that does not know the cluster yet.
OTHER = {"_postgres_version": "16", "platform_postgres_port": 15433}

Play = Callable[..., subprocess.CompletedProcess[str]]
Query = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def _base_settings_afterwards(play: Play) -> Iterator[None]:
    """Bring the scenario's own settings back, so that these tests can run again."""
    yield
    assert play("converge.yml").returncode == 0


@pytest.fixture
def started(query: Query) -> Callable[[], str]:
    """Return a function that tells when the server started."""
    return lambda: query("SELECT pg_postmaster_start_time()")


def test_reloadable_setting_needs_no_restart(
    play: Play, query: Query, started: Callable[[], str], secret: Any, sign_in: Any
) -> None:
    before, old = started(), {name: secret(name) for name in ("postgres_n8n_password", "postgres_reader_password")}
    # The same run replaces a password and shows differences.
    done = play(
        "converge.yml", "--diff", "-v", postgres_log_min_duration_ms=333, secrets_rotate=["postgres_reader_password"]
    )
    assert done.returncode == 0, done.stdout
    assert query("SHOW log_min_duration_statement") == "333ms"
    assert started() == before
    new = secret("postgres_reader_password")
    assert new != old["postgres_reader_password"]
    assert sign_in("reader", "reports", new).rc == 0
    assert sign_in("reader", "reports", old["postgres_reader_password"]).rc != 0
    assert sign_in("shop_app", "shop", old["postgres_n8n_password"]).rc == 0
    for password in (*old.values(), new):
        assert password not in done.stdout


def test_setting_that_needs_it_restarts_once(host: Any, play: Play, query: Query, started: Callable[[], str]) -> None:
    before = started()
    log = "journalctl --no-pager -o cat -u postgresql@17-main | grep -c 'LOG:  starting PostgreSQL'"
    starts = int(host.check_output(log))
    given = {"postgres_settings": {"shared_buffers": "208MB", "work_mem": "7MB"}}
    done = play("role.yml", **given)
    assert done.returncode == 0, done.stdout
    assert query("SHOW shared_buffers") == "208MB"
    assert started() != before
    assert int(host.check_output(log)) == starts + 1
    after = started()
    again = play("role.yml", **given)
    assert again.returncode == 0
    assert "changed=0" in again.stdout
    assert started() == after


def test_interrupted_run_is_finished_by_the_next(host: Any, play: Play, query: Query) -> None:
    # As if the run had ended between writing the file and telling the server.
    host.check_output("sed -i \"s/^log_temp_files = .*/log_temp_files = '11MB'/\" %s", SETTINGS_FILE)
    assert query("SHOW log_temp_files") == "10MB"
    done = play("role.yml", postgres_settings={"shared_buffers": "192MB", "work_mem": "6MB", "log_temp_files": "11MB"})
    assert done.returncode == 0, done.stdout
    assert query("SHOW log_temp_files") == "11MB"


def test_broken_setting_never_reaches_the_server(
    host: Any, play: Play, query: Query, started: Callable[[], str]
) -> None:
    before, file = started(), host.file(SETTINGS_FILE).content_string
    refused = play("role.yml", postgres_settings={"shared_buffers": "lots"})
    assert refused.returncode != 0
    assert "PostgreSQL does not start with this configuration" in refused.stdout
    assert "invalid value for parameter" in refused.stdout
    assert host.file(SETTINGS_FILE).content_string == file
    assert started() == before


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"postgres_data_dir": "/srv/elsewhere"}, "this role never moves data"),
        ({**OTHER, "postgres_data_dir": "/srv/postgres/data"}, "holds a cluster of PostgreSQL 17, this role runs 16"),
        ({**OTHER, "postgres_data_dir": "/etc"}, "is not empty and holds no PostgreSQL cluster"),
        ({"_postgres_own_cluster": [], "platform_postgres_port": 15433}, "has no configuration for"),
        ({"_postgres_version": "16", "postgres_data_dir": "/srv/new"}, "belongs to another PostgreSQL cluster"),
        ({"postgres_max_connections": 2000}, "cannot hold 2000 connections"),
        ({"postgres_users": [{"name": "x"}]}, "missing required arguments: databases"),
    ],
)
def test_refusal_changes_nothing(play: Play, started: Callable[[], str], variables: dict[str, Any], why: str) -> None:
    before = started()
    refused = play("role.yml", **variables)
    assert refused.returncode != 0
    assert why in " ".join(refused.stdout.split())
    assert "changed=0" in refused.stdout
    assert started() == before


def test_tables_are_tuned_once_they_exist(play: Play, query: Query) -> None:
    for table in ("execution_data", "workflow_statistics"):
        query(f"DROP TABLE IF EXISTS {table}", "shop")
    absent = play("tables.yml")
    assert absent.returncode == 0, absent.stdout
    assert "changed=0" in absent.stdout
    query("CREATE TABLE execution_data (data text); CREATE TABLE workflow_statistics (count int)", "shop")
    first = play("tables.yml")
    assert "changed=1" in first.stdout, first.stdout
    options = "SELECT reloptions FROM pg_class WHERE "
    assert query(f"{options} relname = 'execution_data'", "shop") == "{autovacuum_vacuum_scale_factor=0.03}"
    assert query(f"{options} relname = 'workflow_statistics'", "shop") == "{fillfactor=70}"
    toast = "oid = (SELECT reltoastrelid FROM pg_class WHERE relname = 'execution_data')"
    assert query(f"{options} {toast}", "shop") == "{autovacuum_vacuum_scale_factor=0.02}"
    again = play("tables.yml")
    assert again.returncode == 0, again.stdout
    assert "changed=0" in again.stdout


def test_other_hosts_need_tls_and_a_known_address(host: Any, play: Play, query: Query, secret: Any) -> None:
    done = play("multi_host.yml")
    assert done.returncode == 0, done.stdout
    address = host.check_output("hostname -I").split()[0]
    target = f"host={address} port=15432 dbname=shop user=shop_app password={secret('postgres_n8n_password')} "
    ask = "psql -XAt -c 'SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()' %s"
    verified = target + "sslmode=verify-full sslrootcert=/etc/n8n-platform/tls/ca.crt"
    assert host.check_output(ask, verified).startswith("t|TLSv1.")
    assert "no encryption" in host.run(ask, target + "sslmode=disable").stderr
    # Its own key, which nobody else reads.
    key = host.file("/run/n8n-platform-postgres/host.key")
    assert (key.user, key.mode) == ("postgres", 0o400)
    before = query("SELECT pg_postmaster_start_time()")
    # A renewed certificate is taken over without a restart.
    host.check_output("rm /run/n8n-platform-postgres/host.crt && systemctl reload postgresql@17-main")
    host.check_output("cmp /run/n8n-platform-postgres/host.crt /etc/n8n-platform/tls/host.crt")
    assert host.check_output(ask, verified).startswith("t|TLSv1.")
    assert query("SELECT pg_postmaster_start_time()") == before
    again = play("multi_host.yml")
    assert again.returncode == 0, again.stdout
    assert "changed=0" in again.stdout

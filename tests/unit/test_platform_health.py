# SPDX-License-Identifier: GPL-3.0-or-later
"""What the doctor finds on hosts that are ill in one way each."""

from __future__ import annotations

import http.server
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.dealscale.n8n_platform.plugins.module_utils import health
from ansible_collections.dealscale.n8n_platform.plugins.modules import platform_health

from tests.unit.fake_redis import INFO, FakeRedis, Queue

Run = Callable[..., dict[str, Any]]
Usage = namedtuple("Usage", "total used free")
Status = namedtuple("Status", "f_files f_ffree")
GIB = 2**30

UNIT = {
    "Id": "n8n-main.service",
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "Result": "success",
    "UnitFileState": "enabled",
    "NeedDaemonReload": "no",
    "ActiveEnterTimestamp": f"@{int(time.time())}",
    "MainPID": "4242",
    "NRestarts": "0",
    "MemoryCurrent": str(300 * 2**20),
    "MemoryMax": str(1024 * 2**20),
    "FragmentPath": "",
    "DropInPaths": "",
}
DATABASE = {
    "version": "17.11 (Debian 17.11-1)",
    "connections": 10,
    "max_connections": 100,
    "pending_restart": "",
    "size": 50 * 2**20,
    "oldest_transaction_s": 0,
    "checksum_failures": 0,
    "archive_failing": False,
    "freeze_age": 1000,
    "executions": True,
}
EXECUTIONS: dict[str, Any] = {"hour": {"success": 3}, "waiting_long": 0, "running_long": 0, "crashed": 0}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_command: Any) -> Path:
    """Return the root of a host that is well."""
    proc = tmp_path / "proc"
    (proc / "4242").mkdir(parents=True)
    (proc / "4242/exe").symlink_to("/usr/bin/node")
    (proc / "meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    (proc / "uptime").write_text("172800.5 1.0\n")
    (proc / "loadavg").write_text("0.10 0.20 0.30 1/100 1\n")
    monkeypatch.setattr(health, "PROC", proc)
    monkeypatch.setattr(health, "REBOOT_REQUIRED", tmp_path / "reboot-required")
    monkeypatch.setattr(health.shutil, "disk_usage", lambda _: Usage(100 * GIB, 40 * GIB, 60 * GIB))
    monkeypatch.setattr(os, "statvfs", lambda _: Status(100, 90))
    fake_command("timedatectl", stdout="yes\n")
    return tmp_path


@pytest.fixture
def look(run_module: Run, host: Path) -> Callable[..., tuple[list[str], dict[str, str]]]:
    """Return a function that runs the module and gives its findings, each on a line, and the summary."""

    def run(**options: Any) -> tuple[list[str], dict[str, str]]:
        result = run_module(platform_health, {"limits": str(host / "limits.json"), "backlog_interval": 0, **options})
        assert not result.get("failed"), result
        lines = [f"{one['severity']} {one['problem']} -> {one['advice']}" for one in result["findings"]]
        return lines, result["summary"]

    return run


Look = Callable[..., tuple[list[str], dict[str, str]]]


@pytest.fixture
def systemctl(fake_command: Any) -> Callable[..., None]:
    """Return a function that makes systemctl tell of these units, and of these failed ones."""

    def tell(*units: dict[str, str], failed: str = "") -> None:
        shown = "\n".join("\n".join(f"{name}={value}" for name, value in unit.items()) + "\n" for unit in units)
        fake_command("systemctl", script=f"if [ $1 = show ]; then cat <<'E'\n{shown}\nE\nelse echo '{failed}'; fi")

    return tell


def test_a_host_that_is_well(look: Look, host: Path) -> None:
    findings, summary = look()
    assert findings == []
    assert summary["host"] == "4.0 GiB of 8.0 GiB memory used, load 0.10 0.20 0.30, up 2 days"
    assert summary["disk"] == "/ 40 % (60.0 GiB free)"


def test_a_host_that_is_not(look: Look, host: Path, fake_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (host / "proc/meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 100000 kB\n")
    (host / "proc/uptime").unlink()
    (host / "reboot-required").touch()
    (host / "limits.json").write_text(json.dumps({"findings": [{"problem": "No swap.", "advice": "Add swap."}]}))
    fake_command("timedatectl", stdout="no\n")
    monkeypatch.setattr(health.shutil, "disk_usage", lambda _: Usage(100, 96, 4))
    monkeypatch.setattr(os, "statvfs", lambda _: Status(100, 10))
    text = "\n".join(look(disks=["/", str(host / "nothing/here")])[0])
    assert "warning Only 97 of 8192 MiB of memory are available." in text
    assert "warning The clock is not synchronised." in text
    assert "warning Security updates wait for a reboot." in text
    assert "warning No swap. -> Add swap." in text
    assert text.count("error / is 96 % full.") == 1
    assert "warning / has used 90 % of its inodes." in text


def test_a_damaged_report_of_limits(look: Look, host: Path) -> None:
    (host / "limits.json").write_text("{")
    assert look()[0] == []


def test_units_that_run(look: Look, systemctl: Callable[..., None]) -> None:
    systemctl(UNIT, {**UNIT, "Id": "postgresql@17-main.service", "MemoryCurrent": "[not set]", "MemoryMax": "infinity"})
    findings, summary = look(units=[{"name": "n8n-main.service"}, {"name": "postgresql@*.service"}])
    assert findings == []
    assert summary["units"] == "2 of 2 run; MiB: n8n-main 300"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ActiveState": "failed", "Result": "oom-kill"}, "error n8n-main.service is failed (oom-kill). -> journalctl"),
        ({"UnitFileState": "disabled"}, "warning n8n-main.service does not start at boot."),
        ({"NeedDaemonReload": "yes"}, "warning n8n-main.service was started before its unit file changed."),
        ({"NRestarts": "5"}, "warning n8n-main.service was restarted 5 times after failures."),
        ({"MemoryMax": str(310 * 2**20)}, "warning n8n-main.service uses 300 of 310 MiB."),
        ({"Id": "other.service"}, "error n8n-main.service does not exist."),
    ],
)
def test_a_unit_that_is_ill(look: Look, systemctl: Callable[..., None], change: dict[str, str], said: str) -> None:
    systemctl({**UNIT, **change})
    assert said in "\n".join(look(units=[{"name": "n8n-main.service"}])[0])


def test_units_started_before_their_files_changed(look: Look, host: Path, systemctl: Callable[..., None]) -> None:
    unit, env, program = host / "n8n-main.service", host / "n8n.env", host / "proc/4242/exe"
    for path in (unit, env):
        path.touch()
    program.unlink()
    program.symlink_to("/usr/bin/node (deleted)")
    old = {**UNIT, "ActiveEnterTimestamp": "@1000", "FragmentPath": str(unit), "DropInPaths": f"{host}/gone.conf"}
    systemctl(old)
    (line,) = look(units=[{"name": "n8n-main.service", "sources": [f"{host}/*.env"]}])[0]
    assert f"was started before {unit}, {env}, its program changed." in line


def test_a_unit_nobody_must_have(look: Look, systemctl: Callable[..., None]) -> None:
    wanted = [{"name": "n8n-main.service"}, {"name": "n8n-watchdog.timer", "optional": True}]
    systemctl(UNIT, {"Id": "n8n-watchdog.timer", "LoadState": "not-found", "ActiveState": "inactive"})
    assert look(units=wanted) == ([], {**look(units=wanted)[1], "units": "1 of 1 run; MiB: n8n-main 300"})
    systemctl(UNIT, {"Id": "n8n-watchdog.timer", "LoadState": "loaded", "ActiveState": "inactive"})
    assert "n8n-watchdog.timer is inactive" in look(units=wanted)[0][0]


def test_other_units_that_failed(look: Look, systemctl: Callable[..., None]) -> None:
    systemctl(UNIT, failed="apt-daily.service loaded failed failed Daily")
    (line,) = look(units=[{"name": "n8n-main.service"}])[0]
    assert line.startswith("warning apt-daily.service failed.")


@pytest.fixture
def web() -> Iterator[str]:
    """Serve 200 at /ok and 503 elsewhere; give the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/ok" else 204 if self.path == "/empty" else 503)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_readiness(look: Look, systemctl: Callable[..., None], web: str) -> None:
    systemctl(UNIT)
    said = {
        f"http://{web}/ok": "",
        f"tcp:{web}": "",
        f"http://{web}/healthz/readiness": "HTTP 503",
        f"http://{web}/empty": "HTTP 204",
        "http://127.0.0.1:1/": "Connection refused",
        "tcp:127.0.0.1:1": "Connection refused",
        f"https://{web}/": "WRONG_VERSION_NUMBER",
    }
    for probe, why in said.items():
        findings, _ = look(units=[{"name": "n8n-main.service", "probe": probe}])
        assert len(findings) == bool(why), probe
        assert not why or why.lower() in findings[0].lower()


def queue(
    look: Look, host: Path, answer: Callable[[list[str]], str | None], **more: Any
) -> tuple[list[str], dict[str, str]]:
    """Look at a queue that answers so."""
    with FakeRedis(host / "redis.sock", answer) as server:
        found = look(redis=[{"name": "queue", "socket": server.path, "prefix": "shop"}], **more)
    Path(host / "redis.sock").unlink()
    return found


def test_a_queue_that_is_well(look: Look, host: Path) -> None:
    findings, summary = queue(look, host, Queue({}, wait=2, active=3, delayed=1))
    assert findings == []
    assert summary["redis queue"] == "2 waiting, 3 active, 1 delayed; 10 MiB of 100 MiB, version 8.0.2"


def test_a_cache_may_be_full(look: Look, host: Path) -> None:
    full = {
        "maxmemory_policy": "allkeys-lru",
        "used_memory": INFO["maxmemory"],
        "evicted_keys": "9",
        "aof_enabled": "0",
    }
    with FakeRedis(host / "redis.sock", Queue(full)) as server:
        findings, summary = look(redis=[{"name": "cache", "socket": server.path}])
    assert findings == []
    assert summary["redis cache"] == "100 MiB of 100 MiB, version 8.0.2"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Queue({}, wait=5), "error 5 jobs wait and no worker takes one."),
        (Queue({}, wait=2000, active=1), "warning 2000 jobs wait."),
        (Queue({}, paused=4), "error The queue is paused with 4 jobs."),
        (Queue({"used_memory": str(80 * 2**20)}), "warning Redis queue has used 80 % of its memory"),
        (Queue({"used_memory": str(96 * 2**20)}), "error Redis queue has used 96 % of its memory"),
        (Queue({"evicted_keys": "3"}), "error 3 keys were evicted."),
        (Queue({"aof_last_write_status": "err"}), "error Redis cannot write its file (aof_last_write_status: err)."),
        (Queue({"rejected_connections": "2"}), "warning 2 connections were refused."),
        (lambda _: "-WRONGPASS invalid\r\n", "error Redis queue does not answer: WRONGPASS invalid."),
    ],
)
def test_a_queue_that_is_ill(look: Look, host: Path, answer: Any, said: str) -> None:
    (line,) = queue(look, host, answer)[0]
    assert said in line


def test_a_queue_that_only_paused_for_breath(look: Look, host: Path) -> None:
    assert queue(look, host, Queue({}, later={"wait": 1, "active": 2}, wait=5))[0] == []


def test_no_redis(look: Look, host: Path) -> None:
    (line,) = look(redis=[{"name": "queue", "socket": str(host / "gone")}])[0]
    assert "Redis queue does not answer" in line


@pytest.fixture
def psql(fake_command: Any) -> Callable[..., None]:
    """Return a function that makes psql answer with these rows."""

    def answer(database: dict[str, Any], executions: dict[str, Any] | None = EXECUTIONS) -> None:
        one, two = json.dumps({**DATABASE, **database}), json.dumps(executions)
        second = f"cat <<'E'\n{two}\nE" if executions is not None else "exit 1"
        fake_command(
            "runuser", script=f"case \"$*\" in *max_connections*) cat <<'E'\n{one}\nE\n;; *) {second}\n;; esac"
        )

    return answer


POSTGRES = {"port": 5432, "database": "n8n"}


def test_a_database_that_is_well(look: Look, psql: Callable[..., None]) -> None:
    psql({})
    findings, summary = look(postgres=POSTGRES)
    assert findings == []
    assert summary["database"] == "10 of 100 connections, 50 MiB, oldest transaction 0 s, version 17.11"
    assert summary["executions"] == "last hour: 3 success; crashed in 24 h: 0"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"connections": 85}, "warning 85 of 100 connections are in use."),
        ({"connections": 99}, "error 99 of 100 connections are in use."),
        ({"oldest_transaction_s": 4000}, "warning A transaction has been open for 4000 s"),
        ({"pending_restart": "shared_buffers"}, "warning Settings wait for a restart: shared_buffers."),
        ({"checksum_failures": 2}, "error 2 pages have a wrong checksum."),
        ({"archive_failing": True}, "error The write-ahead log cannot be archived."),
        ({"freeze_age": 1_900_000_000}, "warning Transaction numbers run out"),
    ],
)
def test_a_database_that_is_ill(look: Look, psql: Callable[..., None], change: dict[str, Any], said: str) -> None:
    psql(change)
    (line,) = look(postgres=POSTGRES)[0]
    assert said in line


def test_a_database_without_answers(look: Look, psql: Callable[..., None], fake_command: Any) -> None:
    psql({"executions": False})
    assert "executions" not in look(postgres=POSTGRES)[1]
    psql({}, None)
    assert "executions" not in look(postgres=POSTGRES)[1]
    fake_command("runuser", code=2)
    (line,) = look(postgres=POSTGRES)[0]
    assert "error PostgreSQL does not answer." in line


def test_executions_that_no_longer_move(look: Look, host: Path, psql: Callable[..., None]) -> None:
    psql({}, {"hour": {}, "waiting_long": 7, "running_long": 2, "crashed": 6})
    lines, summary = queue(look, host, Queue({}, wait=2, active=1), postgres=POSTGRES)
    assert "error 4 executions wait for more than 5 minutes and have no job." in lines[0]
    assert "error 1 executions count as running, but no worker has them." in lines[1]
    assert summary["executions"] == "last hour: none; crashed in 24 h: 6"
    # With the queue on another host the two cannot be compared.
    assert look(postgres=POSTGRES)[0] == []


GUARD: dict[str, Any] = {
    "lost": 0,
    "lost_without_payload": 0,
    "rerunning": 0,
    "payload_copy_active": True,
    "problems": [],
}


def guarded(look: Look, host: Path, age: int = 10, **said: Any) -> tuple[list[str], dict[str, str]]:
    """Look at a host whose guard said this so many seconds ago."""
    (host / "guard.json").write_text(
        json.dumps({**GUARD, "payload_copy_active": True, "at": time.time() - age, **said})
    )
    return look(guard=str(host / "guard.json"))


def test_no_guard(look: Look, host: Path, fake_command: Any) -> None:
    fake_command("systemctl", stdout="not-found\n")
    assert guarded(look, host, lost=3)[0] == []


def test_the_guard(look: Look, host: Path, fake_command: Any) -> None:
    fake_command("systemctl", stdout="loaded\n")
    assert "has not run yet" in look(guard=str(host / "guard.json"))[0][0]
    findings, summary = guarded(look, host)
    assert findings == []
    assert summary["guard"].startswith("0 lost, 0 running again, pass 1")


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"age": 900}, "error The guard of executions has not finished a pass for 90"),
        (
            {"lost": 3},
            "error 3 accepted executions did not come to an end, with their payload. -> n8n-platform executions",
        ),
        ({"lost": 3, "lost_without_payload": 1}, "did not come to an end, 1 of them without their payload."),
        ({"payload_copy_active": False}, "warning No copy of payloads is kept"),
        ({"problems": ["A trigger is missing."]}, "warning A trigger is missing. -> n8n-platform guard status"),
    ],
)
def test_the_guard_has_something_to_say(
    look: Look, host: Path, fake_command: Any, said: dict[str, Any], line: str
) -> None:
    fake_command("systemctl", stdout="loaded\n")
    (found,) = guarded(look, host, **said)[0]
    assert line in found


def certificate(directory: Path, days: int) -> tuple[Path, Path]:
    """Make a certificate that ends in so many days."""
    key, cert = directory / f"{days}.key", directory / f"{days}.crt"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=x -days"
    subprocess.run([*command.split(), str(days), "-keyout", key, "-out", cert], check=True, capture_output=True)
    return key, cert


def test_certificates(look: Look, host: Path) -> None:
    files = {name: str(certificate(host, days)[1]) for name, days in (("long", 90), ("short", 11), ("ending", 2))}
    lines, summary = look(certificates={**files, "none": str(host / "none.crt")})
    assert summary["certificates"] == "long 89 days, short 10 days, ending 1 days"
    assert lines[0].startswith("warning The certificate of short ends in 10 days.")
    assert lines[1].startswith("error The certificate of ending ends in 1 days.")
    assert lines[2].startswith("error The certificate of none cannot be read")


def test_a_certificate_that_has_ended(look: Look, fake_command: Any) -> None:
    fake_command("openssl", stdout="notAfter=Jan  1 00:00:00 2020 GMT\n")
    (line,) = look(certificates={"old": "/old.crt"})[0]
    assert line.startswith("error The certificate of old has ended.")


def test_the_certificate_of_a_server(look: Look, host: Path) -> None:
    key, cert = certificate(host, 30)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(1)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    port = listener.getsockname()[1]
    findings, summary = look(certificates={"web": f"tls:127.0.0.1:{port}:x"})
    assert (findings, summary["certificates"]) == ([], "web 29 days")
    thread.join(5)
    listener.close()
    assert "cannot be read" in look(certificates={"web": f"tls:127.0.0.1:{port}:x"})[0][0]


def test_versions(look: Look, host: Path) -> None:
    (host / "n8n").mkdir()
    (host / "n8n/current").symlink_to("2.40.0")
    versions = {
        "n8n": {"link": str(host / "n8n/current"), "wanted": "2.41.1"},
        "traefik": {"link": str(host / "traefik/current"), "wanted": "3.7.15"},
    }
    lines, summary = look(versions=versions)
    assert "warning n8n is 2.40.0, the inventory asks for 2.41.1. -> Run site.yml." in lines[0]
    assert "traefik is missing" in lines[1]
    assert summary["versions"] == "n8n 2.40.0, traefik missing"

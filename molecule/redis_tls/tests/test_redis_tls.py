"""Redis on one host of several: reachable from the others by TLS, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

CA = "/etc/n8n-platform/tls/ca.crt"
PASSWORD = "/etc/n8n-platform/secrets/redis_n8n_password"


@pytest.fixture
def address(host: Any) -> str:
    """Return the private address of the host."""
    return str(host.check_output("hostname -I").split()[0])


def ask(host: Any, address: str, options: str, words: str) -> str:
    """Send one command as n8n and return whatever comes back, errors included."""
    result = host.run(f"REDISCLI_AUTH=$(cat {PASSWORD}) timeout 5 redis-cli -h {address} {options} --user n8n {words}")
    return str(result.stdout + result.stderr)


def test_unit(host: Any, running: Callable[[str], None], exposure: Callable[[str], float]) -> None:
    running("redis-queue.service")
    assert exposure("redis-queue.service") <= 2.0


def test_n8n_uses_tls_from_either_address(host: Any, address: str) -> None:
    for name in (address, "127.0.0.1"):
        assert ask(host, name, f"--tls --cacert {CA}", "SET n8n-test:a 1").strip() == "OK"


def test_plain_text_is_refused(host: Any, address: str) -> None:
    for name in (address, "127.0.0.1"):
        assert "OK" not in ask(host, name, "", "SET n8n-test:b 1")


def test_a_server_with_another_certificate_is_noticed(host: Any, address: str) -> None:
    assert "certificate verify failed" in ask(host, address, "--tls --cacert /etc/ssl/certs/ISRG_Root_X1.pem", "PING")


def test_old_tls_is_refused(host: Any, address: str) -> None:
    host.check_output("command -v openssl")
    old = host.run(f"openssl s_client -connect {address}:6379 -tls1_1 -cipher 'ALL:@SECLEVEL=0' </dev/null")
    assert "Cipher is (NONE)" in old.stdout
    new = host.run(f"openssl s_client -connect {address}:6379 -CAfile {CA} -verify_return_error </dev/null")
    assert "TLSv1.3" in new.stdout


def test_nothing_else_listens(address: str, listeners: Callable[[], set[tuple[str, int]]]) -> None:
    assert listeners() == {("127.0.0.1", 6379), (address, 6379)}


def test_the_key_is_for_the_service_only(host: Any) -> None:
    assert host.file("/etc/n8n-platform/tls/host.key").mode & 0o077 == 0
    seen = host.check_output("su -s /bin/sh nobody -c 'cat /run/credentials/redis-queue.service/host.key 2>&1 || true'")
    assert "Permission denied" in seen


def test_the_cache_is_not_there(host: Any) -> None:
    assert not host.file("/etc/systemd/system/redis-cache.service").exists


def test_a_renewed_certificate_is_taken_up(host: Any, address: str, running: Callable[[str], None]) -> None:
    running("redis-certificate.path")
    before = host.check_output("systemctl show -P MainPID redis-queue.service")
    host.check_output(
        "cp /etc/n8n-platform/tls/host.crt /run/renewed && cp /run/renewed /etc/n8n-platform/tls/host.crt"
    )
    changed = f"until [ $(systemctl show -P MainPID redis-queue.service) != {before} ]; do sleep 0.2; done"
    host.check_output(f"timeout 20 bash -c '{changed}'")
    host.check_output("systemctl start redis-queue.service")
    assert ask(host, address, f"--tls --cacert {CA}", "PING").strip() == "PONG"

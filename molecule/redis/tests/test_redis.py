"""Ask the running Redis instances what they do; nothing here reads back the files the role wrote."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any

import pytest

PORTS = {"queue": 16379, "cache": 16380}
SECRETS = "/etc/n8n-platform/secrets"
INSTANCES = ["queue", "cache"]


def ask(host: Any, instance: str, user: str, *words: str, stdin: str = "") -> str:
    """Send one command, or the lines of ``stdin``, to an instance as a user over TCP and return the answer."""
    command = (
        "REDISCLI_AUTH=$(cat {secrets}/redis_{user}_password) redis-cli -h 127.0.0.1 -p {port} --user {user} {words}"
    )
    quoted = shlex.join(words)
    line = command.format(secrets=SECRETS, user=user, port=PORTS[instance], words=quoted)
    return str(host.check_output(f"{stdin} {line}" if stdin else line))


def admin(host: Any, instance: str, *words: str) -> str:
    """Send one command to an instance as the administrator over its UNIX socket."""
    quoted = shlex.join(words)
    return str(
        host.check_output(
            f"REDISCLI_AUTH=$(cat {SECRETS}/redis_admin_password) "
            f"redis-cli -s /run/redis-{instance}/redis.sock --user admin {quoted}"
        )
    )


def setting(host: Any, instance: str, name: str) -> str:
    """Return a setting as the server has it now."""
    lines = admin(host, instance, "CONFIG", "GET", name).splitlines()
    return lines[1] if len(lines) > 1 else ""


@pytest.fixture
def clean(host: Any) -> Any:
    """Empty both instances before and after a test."""
    for instance in INSTANCES:
        admin(host, instance, "FLUSHALL")
    yield
    for instance in INSTANCES:
        admin(host, instance, "FLUSHALL")


@pytest.mark.parametrize("instance", INSTANCES)
def test_unit(host: Any, instance: str, running: Callable[[str], None], exposure: Callable[[str], float]) -> None:
    running(f"redis-{instance}.service")
    assert exposure(f"redis-{instance}.service") <= 2.0


def test_nothing_else_listens(host: Any, listeners: Callable[[], set[tuple[str, int]]]) -> None:
    assert listeners() == {("127.0.0.1", 16379), ("127.0.0.1", 16380)}
    assert host.run("systemctl is-enabled redis-server.service").stdout.strip() == "masked"


@pytest.mark.parametrize("instance", INSTANCES)
def test_n8n_reads_and_writes_its_own_keys(host: Any, instance: str, clean: None) -> None:
    assert ask(host, instance, "n8n", "SET", "shop:greeting", "hello") == "OK"
    assert ask(host, instance, "n8n", "GET", "shop:greeting") == "hello"
    assert ask(host, instance, "n8n", "EVAL", "return redis.call('GET', KEYS[1])", "1", "shop:greeting") == "hello"
    assert ask(host, instance, "n8n", "CLIENT", "SETNAME", "shop") == "OK"
    assert "redis_version" in ask(host, instance, "n8n", "INFO")


@pytest.mark.parametrize(
    "words",
    [
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("ACL", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("CLIENT", "LIST"),
        ("SHUTDOWN", "NOSAVE"),
        ("MODULE", "LIST"),
        ("FUNCTION", "FLUSH"),
        ("SCRIPT", "FLUSH"),
        ("REPLICAOF", "NO", "ONE"),
        ("MONITOR",),
        ("GET", "other:key"),
        ("SET", "other:key", "1"),
        ("RENAME", "shop:a", "other:a"),
        ("EVAL", "return redis.call('GET', 'other:key')", "0"),
        ("EVAL", "return redis.call('FLUSHALL')", "0"),
        ("PUBLISH", "other:channel", "1"),
    ],
    ids=" ".join,
)
def test_n8n_is_refused(host: Any, words: tuple[str, ...]) -> None:
    answer = ask(host, "queue", "n8n", *words)
    assert "NOPERM" in answer or "can't access at least one of the keys" in answer or "ACL failure" in answer, answer


@pytest.mark.parametrize("event", ["active", "waiting", "stalled", "duplicated", "debounced"])
def test_n8n_may_listen_to_the_patterns_bull_uses(host: Any, event: str) -> None:
    answer = admin(host, "queue", "ACL", "DRYRUN", "n8n", "PSUBSCRIBE", f"shop:jobs:{event}*")
    assert answer == "OK"


def test_a_user_of_the_inventory(host: Any) -> None:
    assert ask(host, "queue", "reader", "GET", "shop:greeting") == ""
    assert "NOPERM" in ask(host, "queue", "reader", "SET", "shop:greeting", "x")


def test_strangers_are_refused(host: Any) -> None:
    for instance, port in PORTS.items():
        assert "NOAUTH" in host.run(f"redis-cli -p {port} GET shop:greeting").stdout
        assert "NOAUTH" in host.run(f"redis-cli -s /run/redis-{instance}/redis.sock PING").stdout
        wrong = host.run(f"redis-cli -p {port} --user n8n --pass wrong PING")
        assert "WRONGPASS" in wrong.stdout + wrong.stderr
        default = host.run(f"redis-cli -p {port} --user default --pass '' PING")
        assert "PONG" not in default.stdout
    assert "Permission denied" in host.run("su -s /bin/sh nobody -c 'ls /run/redis-queue'").stderr


def test_passwords_lie_on_the_host_once(host: Any) -> None:
    password = host.check_output(f"cat {SECRETS}/redis_n8n_password").strip()
    found = host.run(f"grep -rlF -e {password} /etc /run/redis-queue /srv/redis /var/log /tmp").stdout.split()
    assert found == [f"{SECRETS}/redis_n8n_password"]
    acl = host.file("/etc/n8n-platform/redis/users.acl")
    assert (acl.user, acl.group, acl.mode) == ("root", "redis", 0o640)


@pytest.mark.parametrize(
    ("instance", "name", "value"),
    [
        ("queue", "maxmemory", str(48 * 2**20)),
        ("queue", "maxmemory-policy", "noeviction"),
        ("queue", "appendonly", "yes"),
        ("queue", "appendfsync", "always"),
        ("queue", "aof-use-rdb-preamble", "yes"),
        ("queue", "save", ""),
        ("queue", "maxclients", "300"),
        ("queue", "slowlog-log-slower-than", "5000"),
        ("queue", "dir", "/srv/redis/queue"),
        ("cache", "maxmemory", str(16 * 2**20)),
        ("cache", "maxmemory-policy", "allkeys-lru"),
        ("cache", "appendonly", "no"),
        ("cache", "save", ""),
        ("cache", "slowlog-log-slower-than", "10000"),
    ],
)
def test_setting(host: Any, instance: str, name: str, value: str) -> None:
    assert setting(host, instance, name) == value


def test_the_memory_limit_is_above_maxmemory(host: Any) -> None:
    for instance in INSTANCES:
        limit = int(host.check_output("systemctl show -P MemoryMax %s", f"redis-{instance}.service"))
        assert limit > 1.25 * int(setting(host, instance, "maxmemory"))


def test_jobs_survive_a_killed_server(host: Any, clean: None) -> None:
    """Bull writes in transactions, and Redis drops those it reads back when its default user may do nothing."""
    job = 'echo MULTI; echo "INCR shop:jobs:id"; echo "LPUSH shop:jobs:wait $i"; echo EXEC'
    pushes = f"for i in $(seq 200); do {job}; done |"
    assert ask(host, "queue", "n8n", stdin=pushes).splitlines()[-1] == "200"
    before = host.check_output("systemctl show -P MainPID redis-queue.service")
    host.check_output("systemctl kill --signal=KILL redis-queue.service")
    # Returns when the server has read its file back (Type=notify).
    host.check_output("systemctl start redis-queue.service")
    assert host.check_output("systemctl show -P MainPID redis-queue.service") != before
    assert ask(host, "queue", "n8n", "LLEN", "shop:jobs:wait") == "200"
    host.check_output("systemctl restart redis-queue.service")
    assert ask(host, "queue", "n8n", "LLEN", "shop:jobs:wait") == "200"


def test_the_cache_forgets(host: Any, clean: None) -> None:
    ask(host, "cache", "n8n", "SET", "shop:a", "1")
    host.check_output("systemctl restart redis-cache.service")
    assert ask(host, "cache", "n8n", "EXISTS", "shop:a") == "0"


def fill(host: Any, instance: str) -> str:
    """Write 80 MiB in values of one MiB and return the answers."""
    lines = 'for i in $(seq 80); do echo "SETRANGE shop:fill:$i 1048575 x"; done |'
    return ask(host, instance, "n8n", stdin=lines)


def statistic(host: Any, instance: str, name: str) -> int:
    """Return a number of INFO."""
    found = re.search(rf"^{name}:(\d+)", admin(host, instance, "INFO"), re.MULTILINE)
    return int(found.group(1)) if found else -1


def test_a_full_queue_answers_errors_and_evicts_nothing(host: Any, clean: None) -> None:
    answers = fill(host, "queue")
    assert "OOM command not allowed" in answers
    assert statistic(host, "queue", "evicted_keys") == 0
    written = answers.split().count("1048576")
    assert written >= 30
    assert ask(host, "queue", "n8n", "EXISTS", *[f"shop:fill:{i}" for i in range(1, written + 1)]) == str(written)


def test_a_full_cache_evicts_and_answers_no_errors(host: Any, clean: None) -> None:
    assert set(fill(host, "cache").split()) == {"1048576"}
    assert statistic(host, "cache", "evicted_keys") > 0


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("maxmemory plenty", "argument must be a memory value"),
        ("appendfsink always", "Unresolved Configuration"),
        ("maxmemory-policy never", "argument(s) must be one of the following"),
    ],
)
def test_a_faulty_configuration_is_refused(host: Any, line: str, complaint: str) -> None:
    check = "/usr/local/lib/n8n-platform/check-redis-config"
    host.check_output(f"cp /etc/n8n-platform/redis/queue.conf /tmp/queue.conf && {check} /tmp/queue.conf")
    host.check_output(f"echo '{line}' >>/tmp/queue.conf")
    refused = host.run(f"{check} /tmp/queue.conf")
    assert refused.rc == 1
    assert complaint in refused.stderr


def test_the_kernel_gives_memory_as_redis_wants_it(host: Any) -> None:
    """Redis warns of a kernel that may refuse memory to its rewrites; the baseline role sets that right."""
    overcommit = host.check_output("cat /proc/sys/vm/overcommit_memory")
    log = host.check_output("journalctl --no-pager -u redis-queue.service -u redis-cache.service --since -1min")
    assert ("Memory overcommit must be enabled" in log) == (overcommit != "1")

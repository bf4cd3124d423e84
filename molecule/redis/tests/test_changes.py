"""Run the role again with other variables and see what it restarts, and what it refuses.

In this order: each test leaves to the next what it has changed, the last run has the scenario's own variables again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SECRETS = "/etc/n8n-platform/secrets"


def pids(host: Any) -> tuple[str, str]:
    """Return the processes of the queue and the cache."""
    queue, cache = (host.check_output(f"systemctl show -P MainPID redis-{name}") for name in ("queue", "cache"))
    return str(queue), str(cache)


def ask(host: Any, user: str, words: str) -> str:
    """Send one command to the queue as a user."""
    secret = f"$(cat {SECRETS}/redis_{user}_password)"
    return str(host.check_output(f"REDISCLI_AUTH={secret} redis-cli -p 16379 --user {user} {words}"))


def test_a_change_restarts_only_what_it_concerns(host: Any, converge: Callable[..., Any]) -> None:
    queue, cache = pids(host)
    rules = "~shop:* -@all +@read +set"
    done = converge(
        redis_cache_maxmemory_mb=20,
        redis_extra_users=[{"name": "reader", "secret": "redis_reader_password", "rules": rules}],
    )
    assert done.returncode == 0, done.stdout
    assert pids(host)[0] == queue
    assert pids(host)[1] != cache
    # The users were loaded without a restart.
    assert ask(host, "reader", "SET shop:a 1") == "OK"


def test_a_faulty_setting_never_reaches_the_service(host: Any, converge: Callable[..., Any]) -> None:
    before = pids(host), host.file("/etc/n8n-platform/redis/queue.conf").content_string
    done = converge(redis_queue_settings={"maxmemory-policy": "sometimes"})
    assert done.returncode != 0
    assert "argument(s) must be one of the following" in done.stdout
    assert (pids(host), host.file("/etc/n8n-platform/redis/queue.conf").content_string) == before


def test_faulty_rules_are_taken_back(host: Any, converge: Callable[..., Any]) -> None:
    before = pids(host)
    users = [{"name": "reader", "secret": "redis_reader_password", "rules": "+nonsense"}]
    done = converge(redis_extra_users=users)
    assert done.returncode != 0
    assert "refused the users; the previous file is back" in done.stdout
    assert ask(host, "reader", "GET shop:nothing") == ""
    assert pids(host) == before


def test_new_passwords(host: Any, converge: Callable[..., Any]) -> None:
    queue, _ = pids(host)
    host.check_output(f"printf new-password-of-n8n >{SECRETS}/redis_n8n_password")
    done = converge("--diff")
    assert done.returncode == 0, done.stdout
    assert ask(host, "n8n", "PING") == "PONG"
    assert pids(host)[0] == queue
    host.check_output(f"printf new-password-of-admin >{SECRETS}/redis_admin_password")
    done = converge("--diff")
    assert done.returncode == 0, done.stdout
    assert ask(host, "admin", "PING") == "PONG"
    assert "new-password" not in done.stdout


def test_an_interrupted_run_is_made_good(host: Any, converge: Callable[..., Any]) -> None:
    queue, cache = pids(host)
    host.check_output("touch -d '+5 seconds' /etc/n8n-platform/redis/queue.conf")
    done = converge()
    assert done.returncode == 0, done.stdout
    assert pids(host)[0] != queue
    assert pids(host)[1] == cache
    host.check_output("touch -d '-5 seconds' /etc/n8n-platform/redis/queue.conf")

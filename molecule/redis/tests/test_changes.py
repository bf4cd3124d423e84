"""Run the role again with other variables and see what it restarts, and what it refuses.

In this order: each test leaves to the next what it has changed, the last run has the scenario's own variables again.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

CONVERGE = Path(__file__).parents[1] / "converge.yml"
SECRETS = "/etc/n8n-platform/secrets"


def converge(**variables: Any) -> tuple[bool, str]:
    """Run the scenario's playbook with some variables changed; return whether it passed and its output."""
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(CONVERGE)]
    done = subprocess.run(
        [*command, "-e", json.dumps(variables), "--diff"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"},
    )
    return done.returncode == 0, done.stdout + done.stderr


def pids(host: Any) -> tuple[str, str]:
    """Return the processes of the queue and the cache."""
    queue, cache = (host.check_output(f"systemctl show -P MainPID redis-{name}") for name in ("queue", "cache"))
    return str(queue), str(cache)


def ask(host: Any, user: str, words: str) -> str:
    """Send one command to the queue as a user."""
    secret = f"$(cat {SECRETS}/redis_{user}_password)"
    return str(host.check_output(f"REDISCLI_AUTH={secret} redis-cli -p 16379 --user {user} {words}"))


def test_a_change_restarts_only_what_it_concerns(host: Any) -> None:
    queue, cache = pids(host)
    rules = "~shop:* -@all +@read +set"
    passed, output = converge(
        redis_cache_maxmemory_mb=20,
        redis_extra_users=[{"name": "reader", "secret": "redis_reader_password", "rules": rules}],
    )
    assert passed, output
    assert pids(host)[0] == queue
    assert pids(host)[1] != cache
    # The users were loaded without a restart.
    assert ask(host, "reader", "SET shop:a 1") == "OK"


def test_a_faulty_setting_never_reaches_the_service(host: Any) -> None:
    before = pids(host), host.file("/etc/n8n-platform/redis/queue.conf").content_string
    passed, output = converge(redis_queue_settings={"maxmemory-policy": "sometimes"})
    assert not passed
    assert "argument(s) must be one of the following" in output
    assert (pids(host), host.file("/etc/n8n-platform/redis/queue.conf").content_string) == before


def test_faulty_rules_are_taken_back(host: Any) -> None:
    before = pids(host)
    users = [{"name": "reader", "secret": "redis_reader_password", "rules": "+nonsense"}]
    passed, output = converge(redis_extra_users=users)
    assert not passed
    assert "refused the users; the previous file is back" in output
    assert ask(host, "reader", "GET shop:nothing") == ""
    assert pids(host) == before


def test_new_passwords(host: Any) -> None:
    queue, _ = pids(host)
    host.check_output(f"printf new-password-of-n8n >{SECRETS}/redis_n8n_password")
    passed, output = converge()
    assert passed, output
    assert ask(host, "n8n", "PING") == "PONG"
    assert pids(host)[0] == queue
    host.check_output(f"printf new-password-of-admin >{SECRETS}/redis_admin_password")
    passed, output = converge()
    assert passed, output
    assert ask(host, "admin", "PING") == "PONG"
    assert "new-password" not in output


def test_an_interrupted_run_is_made_good(host: Any) -> None:
    queue, cache = pids(host)
    host.check_output("touch -d '+5 seconds' /etc/n8n-platform/redis/queue.conf")
    passed, output = converge()
    assert passed, output
    assert pids(host)[0] != queue
    assert pids(host)[1] == cache
    host.check_output("touch -d '-5 seconds' /etc/n8n-platform/redis/queue.conf")

"""Make the queue ill and read what the doctor says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PLAYBOOK = Path(__file__).parents[3] / "playbooks/doctor.yml"
Doctor = Callable[..., tuple[bool, str]]
ADMIN = (
    "REDISCLI_AUTH=$(cat /etc/n8n-platform/secrets/redis_admin_password) "
    "redis-cli -s /run/redis-queue/redis.sock --user admin"
)


@pytest.fixture
def doctor(play: Callable[..., Any]) -> Callable[..., tuple[bool, str]]:
    """Return a function that runs the playbook and says whether it passed, and its output with single blanks."""

    def run(**variables: Any) -> tuple[bool, str]:
        done = play(PLAYBOOK, **{"platform_redis_prefix": "shop", **variables})
        return done.returncode == 0, " ".join(done.stdout.split())

    return run


@pytest.fixture
def jobs(host: Any) -> Iterator[None]:
    """Let three jobs wait, which nobody takes here."""
    host.check_output(f"{ADMIN} RPUSH shop:jobs:wait 1 2 3")
    yield
    host.check_output(f"{ADMIN} DEL shop:jobs:wait")


@pytest.fixture
def stopped(host: Any) -> Iterator[None]:
    """Stop the cache."""
    host.check_output("systemctl stop redis-cache.service")
    yield
    host.check_output("systemctl start redis-cache.service")


@pytest.fixture
def changed(host: Any) -> Iterator[None]:
    """Change the configuration behind the service's back."""
    path = "/etc/n8n-platform/redis/queue.conf"
    before = host.check_output(f"stat -c %y {path}")
    host.check_output(f"touch -d '+1 hour' {path}")
    yield
    host.check_output(f"touch -d '{before}' {path}")


def test_a_platform_that_is_well(doctor: Doctor) -> None:
    passed, output = doctor()
    assert passed, output
    assert "units 2 of 2 run" in output
    assert "redis queue 0 waiting, 0 active, 0 delayed;" in output


def test_a_platform_that_is_ill(doctor: Doctor, jobs: None, stopped: None, changed: None) -> None:
    passed, output = doctor()
    assert not passed
    assert "ERROR 3 jobs wait and no worker takes one." in output
    assert "ERROR redis-cache.service is inactive (success)." in output
    assert "ERROR Redis cache does not answer" in output
    assert "redis-queue.service was started before /etc/n8n-platform/redis/queue.conf changed." in output
    assert "3 of the findings above are errors" in output


def test_a_host_that_does_not_answer(doctor: Doctor) -> None:
    passed, output = doctor(ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=1)
    assert not passed
    assert "ERROR The host does not answer." in output


def test_a_check_that_breaks(doctor: Doctor) -> None:
    passed, output = doctor(ansible_host="n8n-platform-nobody")
    assert not passed
    assert "ERROR The check itself failed" in output

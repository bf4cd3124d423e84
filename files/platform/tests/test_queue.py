"""What the queue is read for."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from n8n_platform import queue
from n8n_platform.settings import Queue as QueueSettings
from n8n_platform.settings import Settings

from files.platform.tests.fakes import FakeRedis

NAMES = QueueSettings("127.0.0.1", 6379, "n8n", "n8n")


def job(execution_id: object) -> dict[str, str]:
    return {"data": json.dumps({"executionId": execution_id})}


def test_live_executions_are_those_of_all_jobs_that_can_still_run() -> None:
    client = FakeRedis(
        {
            "n8n:jobs:wait": ["1"],
            "n8n:jobs:active": ["2"],
            "n8n:jobs:paused": ["3"],
            "n8n:jobs:delayed": ["4"],
            "n8n:jobs:failed": ["5"],
            "n8n:jobs:1": job("11"),
            "n8n:jobs:2": job(12),
            "n8n:jobs:3": job("13"),
            # 4 ended while we looked
            "n8n:jobs:5": job("15"),
        }
    )
    assert queue.Queue(client, NAMES).live_executions() == {11, 12, 13}


@pytest.mark.parametrize("data", ["[]", "{}", "nonsense", '{"executionId": null}', '{"executionId": "abc"}'])
def test_strange_jobs_are_passed_over(data: str) -> None:
    assert list(queue.execution_ids([data, None, '{"executionId": "7"}'])) == [7]


def test_active_jobs_without_a_lock_are_silent() -> None:
    client = FakeRedis(
        {"n8n:jobs:wait": ["1", "2"], "n8n:jobs:active": ["3", "4", "5"], "n8n:jobs:4:lock": "token"},
    )
    assert queue.Queue(client, NAMES).counts() == queue.Counts(waiting=2, active=1, silent=2)


def test_members_prove_the_prefix() -> None:
    assert queue.Queue(FakeRedis(), NAMES).has_members()
    assert not queue.Queue(FakeRedis({}), NAMES).has_members()


def test_errors_of_redis_become_one_kind() -> None:
    found = queue.Queue(FakeRedis(error=OSError("refused")), NAMES)
    with pytest.raises(queue.QueueError, match="Redis does not answer: refused"):
        found.uptime()


@pytest.mark.parametrize("ca_file", ["", "/etc/tls/ca.crt"])
def test_connecting(settings: Settings, monkeypatch: pytest.MonkeyPatch, ca_file: str) -> None:
    given: dict[str, Any] = {}

    def client(**options: Any) -> FakeRedis:
        given.update(options)
        return FakeRedis()

    monkeypatch.setitem(sys.modules, "redis", SimpleNamespace(Redis=client, RedisError=RuntimeError))
    changed = Settings(**{**vars(settings), "queue": QueueSettings("h", 1, "n8n", "n8n", ca_file)})
    assert queue.connect(changed).uptime() == 1000
    assert given["password"] == "redis_n8n_password-value"
    assert given.get("ssl_ca_certs", "") == ca_file

# SPDX-License-Identifier: GPL-3.0-or-later
"""The Redis client, against a server that answers what the test says."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.dealscale.n8n_platform.plugins.module_utils.resp import Redis, RedisError

from tests.unit.fake_redis import FakeRedis


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("+OK\r\n", "OK"),
        (":42\r\n", 42),
        ("$5\r\nhe\r\no\r\n", "he\r\no"),
        ("$-1\r\n", None),
        ("*-1\r\n", None),
        ("*3\r\n$1\r\na\r\n:1\r\n*1\r\n+x\r\n", ["a", 1, ["x"]]),
    ],
)
def test_answers(tmp_path: Path, raw: str, answer: object) -> None:
    with FakeRedis(tmp_path / "s", lambda words: raw) as server, Redis(server.path) as redis:
        assert redis.call("GET", "key", 1) == answer
    assert server.calls == [["GET", "key", "1"]]


def test_a_refusal_is_an_error_with_its_kind(tmp_path: Path) -> None:
    with FakeRedis(tmp_path / "s", lambda words: "-WRONGPASS invalid\r\n") as server, Redis(server.path) as redis:
        with pytest.raises(RedisError, match="invalid") as caught:
            redis.call("AUTH", "a", "b")
        assert caught.value.kind == "WRONGPASS"


def test_a_server_that_hangs_up(tmp_path: Path) -> None:
    with FakeRedis(tmp_path / "s", lambda words: None) as server, pytest.raises(ConnectionError):
        Redis(server.path).call("PING")


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Redis(str(tmp_path / "absent"))


def test_info_and_pairs(tmp_path: Path) -> None:
    text = "# Memory\r\nused_memory:10\r\npolicy:a:b\r\n"
    answers = {
        "INFO": f"${len(text)}\r\n{text}\r\n",
        "CONFIG": "*2\r\n$3\r\ndir\r\n$4\r\n/srv\r\n",
        "PING": "+PONG\r\n",
    }
    with FakeRedis(tmp_path / "s", lambda words: answers[words[0]]) as server, Redis(server.path) as redis:
        assert redis.info("memory") == {"used_memory": "10", "policy": "a:b"}
        assert redis.pairs("CONFIG", "GET", "dir") == {"dir": "/srv"}
        assert redis.pairs("PING") == {}

# SPDX-License-Identifier: GPL-3.0-or-later
"""The users of Redis: what is written, what is loaded, what never shows."""

from __future__ import annotations

import grp
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.dealscale.n8n_platform.plugins.modules import redis_acl

from tests.unit.fake_redis import FakeRedis, bulk

Run = Callable[..., dict[str, Any]]
SESAME = "open sesame"
HASH = hashlib.sha256(SESAME.encode()).hexdigest()


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return options that work, for a test that may not be root."""
    monkeypatch.setattr(os, "fchown", lambda *_: None)
    (tmp_path / "admin_password").write_text("open sesame\n")
    (tmp_path / "n8n_password").write_text("n8n's own\n")
    return {
        "path": str(tmp_path / "users.acl"),
        "secrets_dir": str(tmp_path),
        "group": grp.getgrgid(os.getgid()).gr_name,
        "users": [
            {"name": "admin", "secret": "admin_password", "rules": "~* &* +@all"},
            {"name": "n8n", "secret": "n8n_password", "rules": "~shop:* +get"},
        ],
        "sockets": [str(tmp_path / "socket")],
    }


class Server:
    """Answers as Redis would: it knows the users it read when ``ACL LOAD`` came last."""

    def __init__(self, file: str, password: str = SESAME, refuse: str = "", kind: str = "WRONGPASS") -> None:
        self.file, self.password, self.refuse, self.kind = Path(file), password, refuse, kind
        self.users: list[str] = ["default"]

    def __call__(self, words: list[str]) -> str:
        if words[0] == "AUTH":
            return "+OK\r\n" if words[2] == self.password else f"-{self.kind} no\r\n"
        if words[1] == "USERS":
            return bulk(*self.users)
        if self.refuse:
            return f"-ERR {self.refuse}\r\n"
        self.users = [line.split()[1] for line in self.file.read_text().splitlines()]
        return "+OK\r\n"


def test_writes_hashes_only(run_module: Run, options: dict[str, Any]) -> None:
    result = run_module(redis_acl, options, diff=True)
    assert result["changed"]
    text = Path(options["path"]).read_text()
    assert f"user admin on #{HASH} ~* &* +@all\n" in text
    assert text.startswith("user default off ")
    assert "sesame" not in text + json.dumps(result)
    assert HASH not in json.dumps(result)
    assert Path(options["path"]).stat().st_mode & 0o777 == 0o640


def test_second_run_changes_nothing(run_module: Run, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run_module(redis_acl, options)
    monkeypatch.setattr(redis_acl, "ROOT", os.getuid())
    assert not run_module(redis_acl, options)["changed"]
    Path(options["path"]).chmod(0o644)
    assert run_module(redis_acl, options)["changed"]


def test_a_running_server_loads_a_new_file_once(
    run_module: Run, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_acl, "ROOT", os.getuid())
    with FakeRedis(Path(options["sockets"][0]), Server(options["path"])) as server:
        assert run_module(redis_acl, options)["loaded"] == options["sockets"]
        assert run_module(redis_acl, options)["loaded"] == []
        assert server.calls.count(["ACL", "LOAD"]) == 1
        # A play that died between writing and loading is made up for.
        options["users"][1]["rules"] += " +set"
        run_module(redis_acl, {**options, "sockets": []})
        again = run_module(redis_acl, options)
        assert (again["changed"], again["loaded"]) == (True, options["sockets"])


def test_check_mode_touches_nothing(run_module: Run, options: dict[str, Any]) -> None:
    with FakeRedis(Path(options["sockets"][0]), Server(options["path"])) as server:
        result = run_module(redis_acl, options, check=True)
    assert result["changed"]
    assert ["ACL", "LOAD"] not in server.calls
    assert not Path(options["path"]).exists()


def test_a_new_password_of_the_administrator_needs_a_restart(run_module: Run, options: dict[str, Any]) -> None:
    with FakeRedis(Path(options["sockets"][0]), Server(options["path"], password="the old one")):
        assert run_module(redis_acl, options)["restart"] == options["sockets"]


def test_a_server_that_loads_its_data_is_left_alone(run_module: Run, options: dict[str, Any]) -> None:
    with FakeRedis(Path(options["sockets"][0]), Server(options["path"], password="", kind="LOADING")):
        result = run_module(redis_acl, options)
    assert (result["loaded"], result["restart"]) == ([], [])


def test_refused_users_are_taken_back(run_module: Run, options: dict[str, Any]) -> None:
    run_module(redis_acl, options)
    before = Path(options["path"]).read_text()
    options["users"][1]["rules"] = "+nonsense"
    refusal = f"/users.acl:3: unknown command in #{HASH}. WARNING: unchanged"
    with FakeRedis(Path(options["sockets"][0]), Server(options["path"], refuse=refusal)):
        result = run_module(redis_acl, options)
    assert result["failed"]
    assert "the previous file is back" in result["msg"]
    assert HASH not in json.dumps(result)
    assert Path(options["path"]).read_text() == before


def test_an_error_on_the_way_in_is_told(run_module: Run, options: dict[str, Any]) -> None:
    with FakeRedis(Path(options["sockets"][0]), Server(options["path"], password="", kind="NOPROTO")):
        assert "NOPROTO no" in run_module(redis_acl, options)["msg"]


def test_missing_and_empty_secrets(run_module: Run, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "n8n_password").write_text("\n")
    assert "n8n_password is empty" in run_module(redis_acl, options)["msg"]
    (tmp_path / "n8n_password").unlink()
    assert "run the secrets role first" in run_module(redis_acl, options)["msg"]
    assert run_module(redis_acl, options, check=True)["changed"]


def test_nobody_could_load_the_file(run_module: Run, options: dict[str, Any]) -> None:
    assert "not among the users" in run_module(redis_acl, {**options, "admin": "root"})["msg"]


def test_an_interrupted_write_leaves_nothing(
    run_module: Run, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(KeyboardInterrupt):
        redis_acl.write(tmp_path / "users.acl", "text", options["group"])
    assert not list(tmp_path.glob("*users.acl*"))

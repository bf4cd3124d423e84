# SPDX-License-Identifier: GPL-3.0-or-later
"""What the units of Pulsar need beside it: asking ZooKeeper, waiting, watching the bookie's registration."""

from __future__ import annotations

import importlib
import json
import socketserver
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "roles/pulsar/files"))
keeper: Any = importlib.import_module("pulsar_zookeeper")
tool: Any = importlib.import_module("pulsar_tool")

PLACE = "/ledgers/available/b1"


class FakeZooKeeper:
    """A server with some nodes: path to the transaction that made it. ``script`` changes them before an answer."""

    def __init__(self) -> None:
        self.nodes: dict[str, int] = {"/": 0}
        self.script: list[dict[str, int]] = []
        self.code: int | None = None
        self.greeting: bytes | None = None
        outer = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                if outer.greeting is not None:
                    self.request.sendall(outer.greeting)
                    return
                while header := self.request.recv(4):
                    body = self.request.recv(struct.unpack(">i", header)[0])
                    answer = b"\0" * 37 if len(body) > 40 and body[:4] == b"\0" * 4 else outer.answer(body)
                    self.request.sendall(struct.pack(">i", len(answer)) + answer)

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"127.0.0.1:{self.server.server_address[1]}"

    def data(self, path: str) -> bytes:
        """Return what a node holds: the address of a bookie here, or of another."""
        return b"\x0a\x09127.0.0.1\x10" if self.nodes[path] < 100 else b"\x0a\x0810.0.0.9"

    def answer(self, body: bytes) -> bytes:
        """Answer a question about a node or its children."""
        number, kind, length = struct.unpack(">iii", body[:12])
        path = body[12 : 12 + length].decode()
        if kind == keeper.EXISTS and path == PLACE and self.script:
            self.nodes = {"/": 0, **self.script.pop(0)}
        children = sorted(name.removeprefix(f"{path}/") for name in self.nodes if name.startswith(f"{path}/"))
        code = keeper.OK if path in self.nodes or children else keeper.NO_NODE
        head = struct.pack(">iqi", number, 1, code if self.code is None else self.code)
        if code:
            return head
        if kind == keeper.DELETE:
            del self.nodes[path]
            return head
        if kind == keeper.GET_DATA:
            return head + struct.pack(">i", len(self.data(path))) + self.data(path)
        if kind == keeper.GET_CHILDREN:
            return (
                head
                + struct.pack(">i", len(children))
                + b"".join(struct.pack(">i", len(name)) + name.encode() for name in children)
            )
        return head + struct.pack(">qqqqiiiqiiq", self.nodes[path], 0, 0, 0, 0, 0, 0, 99, 0, 0, 0)


@pytest.fixture
def zookeeper() -> Iterator[FakeZooKeeper]:
    fake = FakeZooKeeper()
    threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()


@pytest.fixture
def settings(zookeeper: FakeZooKeeper, tmp_path: Path) -> Any:
    return tool.Settings(
        zookeeper=["127.0.0.1:9", zookeeper.address],
        cluster="trial",
        bookie_id="b1",
        bookie_address=zookeeper.address,
        broker_status="http://127.0.0.1:9/status.html",
        tls_dir="",
        state_file=str(tmp_path / "state.json"),
        metrics_file=str(tmp_path / "bookie.prom"),
    )


@pytest.fixture
def systemctl(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the restarts that were asked for; the bookie runs since long ago, and nobody waits."""
    restarted: list[str] = []
    monkeypatch.setattr(tool, "running_since", lambda: 3600.0)
    monkeypatch.setattr(tool.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(tool.subprocess, "run", lambda command, **_more: restarted.append(command[-1]))
    return restarted


def outcome(settings: Any) -> dict[str, Any]:
    return dict(json.loads(Path(settings.state_file).read_text(encoding="utf-8")))


def test_nodes_and_children(zookeeper: FakeZooKeeper) -> None:
    zookeeper.nodes |= {"/a": 7, "/a/two": 9, "/a/one": 8}
    with keeper.ZooKeeper(zookeeper.address) as session:
        assert session.node("/a") == keeper.Node(created=7, owner=99)
        assert session.node("/b") is None
        assert session.children("/a") == ["one", "two"]
        assert session.children("/b") == []


def test_what_is_no_zookeeper_is_told(zookeeper: FakeZooKeeper) -> None:
    zookeeper.greeting = b"HTTP/1.1 400 Bad Request\r\n"
    with pytest.raises(keeper.ZooKeeperError, match="is this ZooKeeper"):
        keeper.ZooKeeper(zookeeper.address).__enter__()
    zookeeper.greeting = b""
    with pytest.raises(keeper.ZooKeeperError):
        keeper.ZooKeeper(zookeeper.address).__enter__()


def test_an_error_of_the_server_is_told(zookeeper: FakeZooKeeper) -> None:
    zookeeper.code = -4
    with keeper.ZooKeeper(zookeeper.address) as session, pytest.raises(keeper.ZooKeeperError, match="error -4"):
        session.node("/")


def test_metadata_is_complete_or_not(settings: Any, zookeeper: FakeZooKeeper, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(vars(settings)), encoding="utf-8")
    assert tool.main([str(path), "initialised"]) == 1
    zookeeper.nodes |= {"/ledgers/INSTANCEID": 1, "/admin/clusters/trial": 2, "/admin/policies/public/default": 3}
    assert tool.main([str(path), "initialised"]) == 1
    zookeeper.nodes["/admin/policies/pulsar/system"] = 4
    assert tool.main([str(path), "initialised"]) == 0
    zookeeper.server.shutdown()
    zookeeper.server.server_close()
    assert tool.main([str(path), "initialised"]) == 2


def test_a_killed_bookie_leaves_no_registration(
    settings: Any, zookeeper: FakeZooKeeper, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(vars(settings)), encoding="utf-8")
    assert tool.main([str(path), "vacate"]) == 0
    zookeeper.nodes[PLACE] = 100
    tool.main([str(path), "vacate"])
    assert PLACE in zookeeper.nodes, "that of another host stays"
    assert capsys.readouterr().out == ""
    zookeeper.nodes[PLACE] = 5
    tool.main([str(path), "vacate"])
    assert PLACE not in zookeeper.nodes
    assert "killed bookie" in capsys.readouterr().out


def test_parts_work_or_not(settings: Any, zookeeper: FakeZooKeeper, systemctl: list[str]) -> None:
    assert not tool.works(settings, "zookeeper"), "this host's own server is the first"
    assert not tool.works(settings, "bookie")
    zookeeper.nodes["/ledgers/available/readonly/b1"] = 5
    assert tool.works(settings, "bookie")
    assert not tool.works(settings, "broker")
    assert tool.wait(settings, "bookie") == 0
    assert tool.wait(settings, "broker", seconds=-1) == 0


def test_a_registered_bookie_is_left_alone(settings: Any, zookeeper: FakeZooKeeper, systemctl: list[str]) -> None:
    zookeeper.nodes[PLACE] = 5
    tool.watch(settings)
    assert outcome(settings) == {"outcome": "well", "restarts": 0}
    metrics = Path(settings.metrics_file).read_text(encoding="utf-8")
    assert "n8n_pulsar_bookie_registered 1" in metrics
    assert "n8n_pulsar_bookie_watch_restarts_total 0" in metrics
    assert systemctl == []


def test_a_missing_bookie_is_restarted_at_the_second_look(
    settings: Any, zookeeper: FakeZooKeeper, systemctl: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tool.watch(settings)
    assert outcome(settings)["outcome"] == "missing"
    tool.watch(settings)
    assert systemctl == [tool.UNIT]
    assert outcome(settings) == {"outcome": "lost", "restarts": 1}
    assert "not registered" in capsys.readouterr().out
    zookeeper.nodes[PLACE] = 6
    tool.watch(settings)
    assert outcome(settings) == {"outcome": "well", "restarts": 1}


def test_a_bookie_that_comes_and_goes_is_restarted_at_once(
    settings: Any, zookeeper: FakeZooKeeper, systemctl: list[str]
) -> None:
    zookeeper.script = [{PLACE: 5}, {}, {PLACE: 6}, {}, {PLACE: 7}]
    tool.watch(settings)
    assert systemctl == [tool.UNIT]


@pytest.mark.parametrize("age", [None, 5.0])
def test_a_bookie_that_starts_or_is_stopped_is_left_alone(
    settings: Any, systemctl: list[str], monkeypatch: pytest.MonkeyPatch, age: float | None
) -> None:
    monkeypatch.setattr(tool, "running_since", lambda: age)
    for _ in range(3):
        tool.watch(settings)
    assert systemctl == []
    assert outcome(settings)["outcome"] == "unknown"


def test_without_zookeeper_nothing_is_known(settings: Any, zookeeper: FakeZooKeeper, systemctl: list[str]) -> None:
    tool.watch(settings)
    zookeeper.server.shutdown()
    zookeeper.server.server_close()
    tool.watch(settings)
    assert outcome(settings)["outcome"] == "unknown"
    assert systemctl == []


def test_systemd_says_how_long_the_bookie_runs(fake_command: Any) -> None:
    fake_command("systemctl", stdout="ActiveState=active\nActiveEnterTimestampMonotonic=1000000\n")
    assert tool.running_since() > 0
    fake_command("systemctl", stdout="ActiveState=failed\nActiveEnterTimestampMonotonic=0\n")
    assert tool.running_since() is None


def test_tls_speaks_by_the_units_certificate(settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []

    class Context:
        def load_cert_chain(self, *paths: str) -> None:
            seen.extend(paths)

    def made(cafile: str) -> Context:
        seen.append(cafile)
        return Context()

    monkeypatch.setattr(tool.ssl, "create_default_context", made)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
    secured = tool.Settings(**{**vars(settings), "tls_dir": "/etc/tls"})
    assert secured.context() is not None
    assert seen == ["/etc/tls/ca.crt", "/run/credentials/x/host.crt", "/run/credentials/x/host.key"]
    assert settings.context() is None

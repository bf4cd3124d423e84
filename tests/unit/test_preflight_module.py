# SPDX-License-Identifier: GPL-3.0-or-later
"""What preflight says of hosts that are broken in one way each; the host is a directory tree."""

from __future__ import annotations

import os
import socket
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.dealscale.n8n_platform.plugins.modules import preflight

Run = Callable[..., dict[str, Any]]
Usage = namedtuple("Usage", "total used free")
HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


class Tree:
    """A host's files, good until a test spoils one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("etc/os-release", 'PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"\n')
        self.write("proc/sys/kernel/osrelease", "6.12.0-1-amd64\n")
        self.write("proc/1/comm", "systemd\n")
        self.write("proc/meminfo", "MemTotal:        8388608 kB\nMemFree: 1 kB\n")
        self.write("proc/mounts", "overlay / overlay rw 0 0\n")
        self.write("proc/net/tcp", HEADER)
        self.write("sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n")
        (root / "run/systemd/system").mkdir(parents=True)

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def listen(self, port: int, pid: int, comm: str, unit: str, address: str = "0100007F") -> None:
        """Let a process listen."""
        file = self.root / "proc/net/tcp"
        file.write_text(file.read_text() + f"   0: {address}:{port:04X} 00000000:0000 0A 0:0 00:0 0 0 0 9{port} 1 x\n")
        if pid:
            self.write(f"proc/{pid}/comm", f"{comm}\n")
            self.write(f"proc/{pid}/cgroup", f"0::/n8n.slice/{unit}\n")
            (self.root / f"proc/{pid}/fd").mkdir()
            (self.root / f"proc/{pid}/fd/3").symlink_to(f"socket:[9{port}]")
            (self.root / f"proc/{pid}/fd/4").symlink_to("/dev/null")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Return a good host."""
    for name, path in (("PROC", "proc"), ("SYS", "sys"), ("RUN", "run"), ("OS_RELEASE", "etc/os-release")):
        monkeypatch.setattr(preflight, name, tmp_path / path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return Tree(tmp_path)


@pytest.fixture
def look(run_module: Run, tree: Tree) -> Callable[..., list[str]]:
    """Return a function that runs the module and gives its problems as ``severity problem -> advice``."""

    def run(**options: Any) -> list[str]:
        result = run_module(preflight, {"groups": ["platform", "postgres"], "memory_mb": 8192, **options})
        assert not result["changed"]
        return [f"{one['severity']} {one['problem']} -> {one['advice']}" for one in result["problems"]]

    return run


Look = Callable[..., list[str]]


def test_a_good_host(look: Look) -> None:
    assert look() == []


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        (
            "etc/os-release",
            'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n',
            "The operating system is Debian 12.",
        ),
        ("etc/os-release", "", "The operating system is unknown."),
        ("proc/sys/kernel/osrelease", "4.19.0\n", "Install a kernel from 5.10 and reboot."),
        ("proc/sys/kernel/osrelease", "4.19.0-microsoft-standard-WSL2\n", "Run wsl --update on Windows."),
        ("proc/1/comm", "init\n", "Boot the host with systemd as process 1."),
        ("sys/fs/cgroup/cgroup.controllers", "cpu\n", "Boot with cgroup_enable=memory"),
        ("proc/meminfo", "MemTotal: 4194304 kB\n", "platform_memory_mb is 8192, but the host has 4096 MiB."),
        ("proc/meminfo", "", "the host has 0 MiB."),
    ],
)
def test_one_thing_wrong(look: Look, tree: Tree, path: str, text: str, said: str) -> None:
    tree.write(path, text)
    (line,) = look()
    assert line.startswith("error ")
    assert said in line


def test_ubuntu_and_the_old_kind_of_cgroups_are_fine(look: Look, tree: Tree) -> None:
    tree.write("etc/os-release", 'ID=ubuntu\nVERSION_ID="24.04"\n')
    tree.write("sys/fs/cgroup/cgroup.controllers", "")
    (tree.root / "sys/fs/cgroup/memory").mkdir()
    assert look() == []


def test_wsl_without_systemd(look: Look, tree: Tree) -> None:
    tree.write("proc/sys/kernel/osrelease", "6.6.87-microsoft-standard-WSL2\n")
    (tree.root / "run/systemd/system").rmdir()
    (line,) = look()
    assert "systemd=true to /etc/wsl.conf" in line


def test_neither_root_nor_a_known_machine(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    machine = namedtuple("machine", "machine")
    monkeypatch.setattr(os, "uname", lambda: machine("riscv64"))
    lines = look()
    assert "The machine is riscv64" in lines[0]
    assert "does not run as root" in lines[1]


def entry(path: Path, **more: Any) -> dict[str, Any]:
    """Return a need for space."""
    return {"what": "a database", "groups": ["postgres"], "path": str(path), "needs_mb": 100, **more}


def test_space_is_added_up_by_file_system(
    look: Look, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage(0, 0, 150 * 2**20))
    one, two = entry(tmp_path / "a/b/c"), entry(tmp_path / "d", what="its log")
    assert look(disk=[one]) == []
    (line,) = look(disk=[one, two])
    assert "/ has 150 MiB free, 200 are needed (a database: 100, its log: 100)." in line
    assert look(disk=[one, {**two, "groups": ["redis"]}]) == []
    assert look(disk=[one, {**two, "unless": f"{tmp_path}/et?/os-release"}]) == []


def test_inodes(look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: Usage(0, 0, 2**30))
    status = namedtuple("status", "f_files f_favail")
    monkeypatch.setattr(os, "statvfs", lambda _: status(1000, 10))
    (line,) = look(disk=[entry(tmp_path, needs_mb=0, needs_files=11)])
    assert "/ has 10 inodes free, 11 are needed." in line
    # btrfs makes inodes as it needs them and says 0.
    monkeypatch.setattr(os, "statvfs", lambda _: status(0, 0))
    assert look(disk=[entry(tmp_path, needs_mb=0, needs_files=11)]) == []


def test_a_database_on_a_windows_drive(look: Look, tree: Tree) -> None:
    tree.write("proc/mounts", f"overlay / overlay rw 0 0\nC:\\134 {tree.root} 9p rw 0 0\n")
    (line,) = look(disk=[entry(tree.root / "data", needs_mb=0, data=True)])
    assert f"would lie on {tree.root}, a 9p file system" in line


def test_mount_points(look: Look, tmp_path: Path) -> None:
    (line,) = look(mount_points=["/", str(tmp_path)])
    assert f"{tmp_path} is declared as a mount point" in line


PORT = {"name": "postgres", "groups": ["postgres"], "port": 5432, "units": ["postgresql@*.service"]}


def test_a_port_of_ours_and_one_of_a_stranger(look: Look, tree: Tree) -> None:
    assert look(ports=[PORT]) == []
    tree.listen(5432, 77, "postgres", "postgresql@17-main.service")
    assert look(ports=[PORT]) == []
    tree.listen(5433, 78, "mysqld", "mysql.service")
    tree.listen(9999, 79, "other", "other.service")
    (line,) = look(ports=[{**PORT, "port": 5430, "first": 1, "count": 3}])
    assert "Port 5433 (postgres) is held by mysqld (process 78, mysql.service)." in line
    assert "systemctl disable --now mysql.service" in line
    assert look(ports=[{**PORT, "port": 5433, "groups": ["redis"]}]) == []


def test_a_port_held_out_of_sight(look: Look, tree: Tree) -> None:
    tree.listen(5432, 0, "", "")
    (line,) = look(ports=[PORT])
    assert "is held by a process that cannot be seen from here" in line


def test_a_port_held_by_systemd_for_a_unit(look: Look, tree: Tree, fake_command: Any) -> None:
    (tree.root / "proc/1/comm").unlink()
    tree.listen(443, 1, "systemd", "init.scope")
    web = {"name": "traefik_https", "groups": ["platform"], "port": 443, "units": ["traefik*"]}
    fake_command("systemctl", stdout="/run/x.sock x.socket x.service\n[::]:443 traefik.socket traefik.service\n")
    assert look(ports=[web]) == []


def test_a_port_held_by_systemd_for_another_unit(look: Look, tree: Tree, fake_command: Any) -> None:
    (tree.root / "proc/1/comm").unlink()
    tree.listen(443, 1, "systemd", "init.scope")
    web = {"name": "traefik_https", "groups": ["platform"], "port": 443, "units": ["traefik*"]}
    fake_command("systemctl", code=1)
    (line,) = look(ports=[web])
    assert "held by systemd (process 1)" in line


def test_the_same_port_twice(look: Look) -> None:
    (line,) = look(ports=[PORT, {**PORT, "name": "redis_queue", "groups": ["platform"]}])
    assert "postgres and redis_queue would both use port 5432 on this host." in line


@pytest.mark.parametrize(("off", "severity"), [(0, None), (10, "warning"), (-40, "error")])
def test_the_clock(look: Look, monkeypatch: pytest.MonkeyPatch, off: int, severity: str | None) -> None:
    monkeypatch.setattr(preflight.time, "time", lambda: 1_000_000.0 + off)
    lines = look(time=1_000_000.0)
    assert [line.split()[0] for line in lines] == ([severity] if severity else [])


def test_the_name(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    assert look(domain="n8n.example.com") == []

    def unknown(*_: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    (line,) = look(domain="n8n.example.com")
    assert line.startswith("warning n8n.example.com does not resolve on this host (Name or service not known)")

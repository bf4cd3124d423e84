"""Kernel settings are applied, read back and reported."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plugins.modules import host_limits

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root of a /proc and /sys of a comfortable host."""
    files = {
        "proc/sys/kernel/osrelease": "6.12.0",
        "proc/sys/vm/swappiness": "60",
        "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999",
        "proc/1/limits": "Max processes 1 2 processes\nMax open files     1024       524288      files",
        "proc/meminfo": "MemTotal:       16777216 kB\nSwapTotal:       2097152 kB",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
        "sys/fs/cgroup/cgroup.controllers": "cpu memory pids",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n", encoding="ascii")
    monkeypatch.setattr(host_limits, "PROC", tmp_path / "proc")
    monkeypatch.setattr(host_limits, "SYS", tmp_path / "sys")
    return tmp_path


@pytest.fixture
def limits(run_module: Run, kernel: Path) -> Run:
    """Run the module against that kernel."""

    def run(check: bool = False, **arguments: Any) -> dict[str, Any]:
        given = {"kind": "server", "report": str(kernel / "limits.json"), "transparent_hugepages": "madvise"}
        return run_module(host_limits, {**given, **arguments}, check=check)

    return run


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the kernel read-only."""

    def refuse(path: Path, value: str, **_options: Any) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    write_text = Path.write_text
    monkeypatch.setattr(
        Path,
        "write_text",
        lambda path, value, **options: (refuse if "proc" in path.parts else write_text)(path, value, **options),
    )
    monkeypatch.setattr("os.access", lambda *_: False)


def names(result: dict[str, Any]) -> list[str]:
    return [finding["name"] for finding in result["findings"]]


def test_settings_are_applied_once(limits: Run, kernel: Path) -> None:
    wanted = {"vm.swappiness": 10, "net.ipv4.ip_local_port_range": "32768 60999"}
    result = limits(sysctl=wanted)
    assert result["applied"] == ["vm.swappiness"]
    assert (kernel / "proc/sys/vm/swappiness").read_text(encoding="ascii") == "10\n"
    assert not limits(sysctl=wanted)["changed"]
    report = json.loads((kernel / "limits.json").read_text(encoding="utf-8"))
    assert report["sysctl"]["vm.swappiness"] == {"wanted": "10", "actual": "10", "reason": ""}
    assert (report["kind"], report["memory_mb"], report["swap_mb"]) == ("server", 16384, 2048)
    assert report["findings"] == []


def test_check_mode_writes_nothing(limits: Run, kernel: Path) -> None:
    result = limits(check=True, sysctl={"vm.swappiness": 10})
    assert result["changed"]
    assert result["applied"] == ["vm.swappiness"]
    assert (kernel / "proc/sys/vm/swappiness").read_text(encoding="ascii") == "60\n"
    assert not (kernel / "limits.json").exists()


def test_server_that_refuses_is_an_error(limits: Run, kernel: Path, refusing: None) -> None:
    result = limits(sysctl={"vm.swappiness": 10})
    assert result["failed"]
    assert "has vm.swappiness = 60 instead of 10 (read-only)" in result["msg"]
    assert "vm.swappiness" in (kernel / "limits.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(("kind", "advice"), [("container", "host of the container"), ("wsl2", ".wslconfig")])
@pytest.mark.parametrize("check", [False, True])
def test_kernel_of_somebody_else_is_reported(limits: Run, refusing: None, kind: str, advice: str, check: bool) -> None:
    result = limits(kind=kind, sysctl={"vm.swappiness": 10}, check=check)
    assert not result.get("failed")
    assert names(result) == ["vm.swappiness"]
    assert advice in result["findings"][0]["advice"]
    assert result["applied"] == []
    if not check:
        assert not limits(kind=kind, sysctl={"vm.swappiness": 10})["changed"]


def test_unknown_setting_is_reported(limits: Run) -> None:
    result = limits(kind="wsl2", sysctl={"net.no.such_thing": 1})
    assert "= nothing instead of 1 (unknown to this kernel)" in result["findings"][0]["problem"]


def test_value_the_kernel_changes_is_reported(limits: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_limits, "write", lambda *_: "")
    result = limits(kind="container", sysctl={"vm.swappiness": 10})
    assert "(the kernel kept another value)" in result["findings"][0]["problem"]


def test_what_a_small_bare_host_lacks_is_reported(limits: Run, kernel: Path) -> None:
    (kernel / "proc/meminfo").write_text("MemTotal: 4194304 kB\nSwapTotal: 0 kB\n", encoding="ascii")
    (kernel / "sys/fs/cgroup/cgroup.controllers").write_text("cpu pids\n", encoding="ascii")
    (kernel / "sys/kernel/mm/transparent_hugepage/enabled").write_text("[always] madvise never\n", encoding="ascii")
    result = limits(open_files=600000, swap_below_mb=12288)
    assert names(result) == ["transparent_hugepages", "open_files", "memory_controller", "swap"]
    assert all(finding["advice"].endswith(".") or ")" in finding["advice"] for finding in result["findings"])


def test_old_control_groups_count(limits: Run, kernel: Path) -> None:
    (kernel / "sys/fs/cgroup/cgroup.controllers").unlink()
    (kernel / "sys/fs/cgroup/memory").mkdir()
    assert limits()["findings"] == []


def test_kernel_without_huge_pages_has_no_finding(limits: Run, kernel: Path) -> None:
    (kernel / "sys/kernel/mm/transparent_hugepage/enabled").unlink()
    assert limits()["findings"] == []


@pytest.mark.parametrize(("number", "reason"), [(errno.EPERM, "not permitted"), (errno.EINVAL, "Invalid argument")])
def test_reasons_are_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(number, "Invalid argument")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert host_limits.write(tmp_path / "x", "1") == reason

"""What the role baseline does on WSL2, whose kernel refuses settings."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

testinfra_hosts = ["ansible://n8n-platform-baseline-wsl2"]
RunRole = Callable[..., subprocess.CompletedProcess[str]]


def test_wsl2_is_seen_and_what_its_kernel_refuses_is_reported(limits: dict[str, Any]) -> None:
    assert limits["kind"] == "wsl2"
    refused = {item["name"]: item for item in limits["findings"]}
    assert limits["sysctl"]["net.core.somaxconn"]["reason"] in ("", "read-only")
    # The name spaces of a new container start with the kernel's own default, so this one is really refused.
    assert limits["sysctl"]["net.ipv4.tcp_max_syn_backlog"]["reason"] == "read-only"
    assert "instead of 4096 (read-only)" in refused["net.ipv4.tcp_max_syn_backlog"]["problem"]
    assert ".wslconfig" in refused["net.ipv4.tcp_max_syn_backlog"]["advice"]
    assert {"open_files", "swap"} <= set(refused)


def test_chrony_steps_the_clock_after_windows_slept(host: Any) -> None:
    configuration = host.check_output("chronyd -p -f /etc/chrony/chrony.conf")
    assert "makestep 1 -1" in configuration
    assert "server 192.0.2.1 iburst prefer" in configuration


def test_updates_can_be_left_to_others(host: Any) -> None:
    assert not host.package("unattended-upgrades").is_installed
    assert not host.file("/etc/apt/apt.conf.d/90n8n-platform").exists


def test_a_server_whose_kernel_refuses_is_an_error(run_role: RunRole) -> None:
    try:
        result = run_role(test_host="n8n-platform-baseline-wsl2", test_part="verify", _baseline_kind="server")
        assert result.returncode != 0
        assert "instead of 4096 (read-only)" in " ".join(result.stdout.split())
    finally:
        restored = run_role(test_host="n8n-platform-baseline-wsl2", test_part="verify", _baseline_kind="wsl2")
        assert restored.returncode == 0

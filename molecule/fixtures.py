"""Fixtures every scenario's tests may use; loaded by .config/molecule/config.yml."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest


def journal(host: Any, unit: str, lines: int = 60) -> str:
    """Return the last lines a unit logged."""
    return str(host.run("journalctl --no-pager -n %s -u %s", str(lines), unit).stdout)


@pytest.fixture
def running(host: Any) -> Callable[[str], None]:
    """Return a check that a unit is enabled and active, which prints its journal when it is not."""

    def check(unit: str, enabled: bool = True) -> None:
        service = host.service(unit)
        if not service.is_running or (enabled and not service.is_enabled):
            pytest.fail(f"{unit}: running={service.is_running} enabled={service.is_enabled}\n{journal(host, unit)}")

    return check


@pytest.fixture
def exposure(host: Any) -> Callable[[str], float]:
    """Return what `systemd-analyze security` says of a unit, 0 (safe) to 10."""

    def measure(unit: str) -> float:
        output = host.check_output("systemd-analyze security --no-pager %s", unit)
        return float(output.rsplit("Overall exposure level for", 1)[1].split(":", 1)[1].split()[0])

    return measure


@pytest.fixture
def listeners(host: Any) -> Callable[[], set[tuple[str, int]]]:
    """Return a function that lists the (address, port) pairs on which anything listens by TCP."""
    container_resolver = "127.0.0.11"

    def list_them() -> set[tuple[str, int]]:
        found = set()
        for line in host.check_output("ss --no-header --listening --tcp --numeric").splitlines():
            address, port = line.split()[3].rsplit(":", 1)
            if address != container_resolver:
                found.add((address.strip("[]"), int(port)))
        return found

    return list_them


def run_playbook(
    playbook: str | Path, *options: str, inventory: str = "", cached_facts: bool = False, **variables: Any
) -> subprocess.CompletedProcess[str]:
    """Run a playbook, by default of the scenario's directory and with its inventory.

    The result has .returncode and .stdout, which is all that Ansible said. With `cached_facts` they are gathered by the
    first of these runs only.
    """
    path = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"]) / playbook
    cache = {
        "ANSIBLE_GATHERING": "smart",
        "ANSIBLE_CACHE_PLUGIN": "jsonfile",
        "ANSIBLE_CACHE_PLUGIN_CONNECTION": f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/facts",
    }
    command = ["ansible-playbook", "-i", inventory or os.environ["MOLECULE_INVENTORY_FILE"], str(path), *options]
    return subprocess.run(
        [*command, "-e", json.dumps(variables)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=900,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", **(cache if cached_facts else {})},
    )


@pytest.fixture(scope="session")
def play() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return `play(playbook, *options, **variables)`: see `run_playbook`."""
    return run_playbook


@pytest.fixture(scope="session")
def converge() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return `converge(*options, **variables)`, which runs the scenario's converge.yml again."""
    return partial(run_playbook, "converge.yml", cached_facts=True)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Print the journal of failed units below a failed test."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.when == "call" and report.failed and "host" in getattr(item, "funcargs", {}):
        host = item.funcargs["host"]
        failed = host.run("systemctl --failed --no-legend --plain").stdout
        if failed.strip():
            report.sections.append(("failed units", failed))
            for line in failed.splitlines():
                report.sections.append((f"journal of {line.split()[0]}", journal(host, line.split()[0])))

"""Nothing that n8n acknowledged is lost in silence, whatever dies."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from molecule.breaking import table
from molecule.faults.driver import FAULTS, Platform, Row
from molecule.waiting import until

# The promise.
SETTLE_SECONDS = 300


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    """Return the platform, with the client stopped at the end whatever happens."""
    found = Platform(os.environ.get("FAULTS_CONTAINER", "n8n-platform-faults"))
    found.prepare()
    yield found
    found.stop_client()


@pytest.fixture(scope="module")
def reckoning(platform: Platform, request: pytest.FixtureRequest) -> dict[str, Row]:
    """Break everything once under load, wait until the platform has settled it, return the rows by fault."""
    platform.phase("none")
    platform.start_client()
    platform.wait_for("none", 10)
    for name, inject in FAULTS.items():
        platform.phase(name)
        platform.wait_for(name, 6)
        inject(platform)
        platform.wait_for(name, 20, seconds=240)
    platform.phase("converge")
    platform.wait_for("converge", 6)
    platform.converge()
    platform.wait_for("converge", 20)
    platform.phase("power")
    platform.wait_for("power", 15)
    platform.power_cut()
    platform.wait_for("power", 10)
    platform.stop_client()
    try:
        seconds = until(platform.settled, SETTLE_SECONDS, "every acknowledged id succeeded or is listed", every=5)
    except AssertionError:
        print(table(platform.reckon()), platform.report(), sep="\n")
        raise
    rows = platform.reckon()
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nsettled {seconds:.0f} s after the last fault", table(rows), sep="\n")
    return {row.phase: row for row in rows}


@pytest.mark.parametrize("fault", ["none", *FAULTS, "converge", "power"])
def test_what_was_acknowledged_succeeded_once_or_is_listed(reckoning: dict[str, Row], fault: str) -> None:
    """Each fault hit requests, and none of them is lost, stuck or done twice."""
    row = reckoning[fault]
    assert row.acknowledged >= 10
    assert (row.lost, row.stuck, row.duplicates) == (0, 0, 0), table([row])


def test_without_a_fault_everything_succeeds(reckoning: dict[str, Row]) -> None:
    """The measure itself is right."""
    row = reckoning["none"]
    assert row.succeeded == row.acknowledged == row.sent


def test_a_killed_worker_leaves_something_to_list(reckoning: dict[str, Row]) -> None:
    """The fault was real: executions were under way."""
    assert sum(row.listed for row in reckoning.values()) > 0


def test_metric_and_report_count_what_is_listed(platform: Platform, reckoning: dict[str, Row]) -> None:
    """Doctor and Prometheus see the same number as the list."""
    platform.run("systemctl start n8n-guard.service")
    entries = json.loads(platform.run("n8n-platform executions lost --json"))
    assert all(entry["command"] == f"n8n-platform executions rerun {entry['id']}" for entry in entries)
    assert all(entry["payload_bytes"] > 0 for entry in entries)
    report = json.loads(platform.run("cat /var/lib/n8n-platform/guard.json"))
    assert report["lost"] == len(entries)
    metrics = platform.run("cat /var/lib/n8n-platform/metrics/n8n_guard.prom")
    assert f"n8n_guard_lost_executions {len(entries)}\n" in metrics


def test_one_command_runs_all_of_them_again(platform: Platform, reckoning: dict[str, Row]) -> None:
    """After it every acknowledged id has succeeded, each exactly once."""
    platform.run("n8n-platform executions rerun --all", timeout=600)
    assert "Nothing to run again" in platform.run("n8n-platform executions rerun --all")

    def empty() -> bool:
        platform.run("systemctl start n8n-guard.service")
        return bool(json.loads(platform.run("n8n-platform executions lost --json")) == [])

    until(empty, 180, "all reruns have ended", every=3)
    rows = platform.reckon()
    print(table(rows))
    assert all(row.succeeded == row.acknowledged and not row.duplicates for row in rows), table(rows)


def test_every_unit_came_back_by_itself(platform: Platform, reckoning: dict[str, Row]) -> None:
    """Nothing failed for good."""
    assert platform.run("systemctl --failed --no-legend").strip() == ""

"""The right alert, and no other, reaches a person within its promised time, and is taken back afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from molecule.observability.driver import Stack
from molecule.observability.tests.conftest import Runs
from molecule.waiting import until

# Seconds beyond the rule's own `for`: scrape 15, evaluation 15, Alertmanager's wait 10 (40 together), and some.
MARGIN = 60
# What was run before the first test of this file: executions that fail, and a backup.
OF_RUNS = {"N8nExecutionsBurnsFast", "N8nBackupRunFailed"}
STORE = "/etc/n8n-platform/object-store/settings.json"


@pytest.fixture(scope="module")
def before(stack: Stack, runs: Runs) -> set[str]:
    """Return the alerts that were there before any fault of this module: those of what was run."""
    assert runs.good
    return set(stack.alerts())


def test_failing_executions_page_and_nothing_else_did(stack: Stack, runs: Runs, before: set[str]) -> None:
    """One in nine fails, where the goal allows one in a hundred."""
    assert runs.bad * 20 > len(runs.good)
    until(lambda: "N8nExecutionsBurnsFast" in stack.alerts(), 120, "the page for failing executions")
    assert labels(stack, "N8nExecutionsBurnsFast")["severity"] == "page"
    assert before <= OF_RUNS


def test_stopped_workers_page_and_nothing_else_does(
    stack: Stack, before: set[str], show: Callable[[str], None]
) -> None:
    began = time.time()
    stack.run("systemctl stop n8n-worker@1 n8n-worker@2")
    try:
        until(lambda: "N8nWorkersDown" in stack.alerts(), 120 + 40 + MARGIN, "the page for stopped workers")
    finally:
        stack.run("systemctl start n8n-worker@1 n8n-worker@2")
    took = stack.alerts()["N8nWorkersDown"]["firing"] - began
    show(f"workers stopped to page: {took:.0f} s")
    assert took <= 120 + 40 + MARGIN
    assert set(stack.alerts()) - before - OF_RUNS == {"N8nWorkersDown"}
    page = labels(stack, "N8nWorkersDown")
    assert page["severity"] == "page"
    assert page["service"] == "queue"
    until(lambda: "resolved" in stack.alerts()["N8nWorkersDown"], 240, "the page is taken back", every=3)


def labels(stack: Stack, name: str) -> dict[str, str]:
    """Return the labels of an alert that was received."""
    for message in stack.received("alerts"):
        for alert in json.loads(message["body"])["alerts"]:
            if alert["labels"]["alertname"] == name:
                assert alert["annotations"]["runbook_url"].startswith("https://")
                assert any(character.isdigit() for character in alert["annotations"]["summary"])
                return dict(alert["labels"])
    raise AssertionError(f"{name} was not received")


def test_a_disk_without_room_for_backups_pages(stack: Stack, before: set[str], show: Callable[[str], None]) -> None:
    """The store thinks so: filling the disk would take the whole machine down."""
    known = set(stack.alerts())
    settings = json.loads(stack.run(f"cat {STORE}"))
    stack.run(f"cp -p {STORE} /root/store.json")
    full = json.dumps({**settings, "minimum_free_mb": 10**9})
    began = time.time()
    stack.run(f"cat > {STORE} <<'END'\n{full}\nEND")
    try:
        until(lambda: "N8nObjectStoreFull" in stack.alerts(), 60 + 40 + MARGIN, "the page for a full disk")
    finally:
        stack.run(f"cp -p /root/store.json {STORE} && systemctl start object-store-guard.service")
    took = stack.alerts()["N8nObjectStoreFull"]["firing"] - began
    show(f"no room for backups to page: {took:.0f} s")
    assert labels(stack, "N8nObjectStoreFull")["severity"] == "page"
    assert set(stack.alerts()) - known - before - OF_RUNS == {"N8nObjectStoreFull"}


def test_a_broken_backup_is_a_ticket(stack: Stack, runs: Runs, show: Callable[[str], None]) -> None:
    """It broke before the other tests, because a ticket waits five minutes whether the next run mends it."""
    left = runs.broken_at + 300 + 40 + 2 * MARGIN - time.time()
    until(lambda: "N8nBackupRunFailed" in stack.alerts(), max(left, 1), "the ticket for a failed backup", every=3)
    took = stack.alerts()["N8nBackupRunFailed"]["firing"] - runs.broken_at
    show(f"failed backup to ticket: {took:.0f} s")
    assert labels(stack, "N8nBackupRunFailed")["severity"] == "ticket"
    stack.run("n8n-platform-backup run", timeout=300)
    until(lambda: stack.value("max(n8n_backup_last_run_failed)") == 0, 90, "the metric says so", every=3)


def test_all_together_nothing_else_was_sent(stack: Stack, runs: Runs) -> None:
    assert runs.good
    assert set(stack.alerts()) == {"N8nWorkersDown", "N8nObjectStoreFull", *OF_RUNS}

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
PAGES = {"N8nWorkersDown", "N8nObjectStoreFull"}


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


def labels(stack: Stack, name: str) -> dict[str, str]:
    """Return the labels of an alert that was received."""
    for message in stack.received("alerts"):
        for alert in json.loads(message["body"])["alerts"]:
            if alert["labels"]["alertname"] == name:
                assert alert["annotations"]["runbook_url"].startswith("https://")
                assert any(character.isdigit() for character in alert["annotations"]["summary"])
                return dict(alert["labels"])
    raise AssertionError(f"{name} was not received")


@pytest.fixture(scope="module")
def paged(stack: Stack, before: set[str]) -> dict[str, float]:
    """Stop the workers and let the store of backups think its disk is full (filling it would take the machine down).

    Return after how many seconds each was paged; both are mended by then.
    """
    settings = json.loads(stack.run(f"cat {STORE}"))
    stack.run(f"cp -p {STORE} /root/store.json")
    full = json.dumps({**settings, "minimum_free_mb": 10**9})
    began = time.time()
    stack.run(f"cat > {STORE} <<'END'\n{full}\nEND")
    stack.run("systemctl stop n8n-worker@1 n8n-worker@2")
    try:
        until(lambda: set(stack.alerts()) >= PAGES, 120 + 40 + MARGIN, f"the pages {PAGES}")
    finally:
        stack.run("systemctl start n8n-worker@1 n8n-worker@2")
        stack.run(f"cp -p /root/store.json {STORE} && systemctl start object-store-guard.service")
    return {name: stack.alerts()[name]["firing"] - began for name in PAGES}


def test_both_faults_page_in_time_and_nothing_else_does(
    stack: Stack, before: set[str], paged: dict[str, float], show: Callable[[str], None]
) -> None:
    show(f"to the page: {', '.join(f'{name} {seconds:.0f} s' for name, seconds in paged.items())}")
    assert paged["N8nWorkersDown"] <= 120 + 40 + MARGIN
    assert paged["N8nObjectStoreFull"] <= 60 + 40 + MARGIN
    assert set(stack.alerts()) - before - OF_RUNS == PAGES


def test_a_page_says_what_it_is_about_and_is_taken_back(stack: Stack, paged: dict[str, float]) -> None:
    assert {labels(stack, name)["severity"] for name in paged} == {"page"}
    assert labels(stack, "N8nWorkersDown")["service"] == "queue"
    until(lambda: "resolved" in stack.alerts()["N8nWorkersDown"], 240, "the page is taken back", every=3)


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
    assert set(stack.alerts()) == PAGES | OF_RUNS

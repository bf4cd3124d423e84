"""What workflows and programs let slip never gets to where people look."""

from __future__ import annotations

import json

from molecule.observability.driver import JAEGER, PLANTED, Stack
from molecule.observability.tests.conftest import Runs
from molecule.waiting import until

EVERYTHING = '{service_name=~".+"}'


def test_a_planted_secret_is_nowhere(stack: Stack, runs: Runs) -> None:
    """Printed by code, in an error, in a header, in a query string, in an address, in the journal of a service."""
    assert runs.good
    for text in (
        f"password={PLANTED}",
        f'{{\\"apiKey\\": \\"{PLANTED}\\"}}',
        f"Authorization: Bearer {PLANTED}",
        f"postgres://n8n:{PLANTED}@db/n8n",
    ):
        stack.run(f"systemd-run --quiet --collect --wait --unit=n8n-test-slip echo 'slip {text}'")
    until(lambda: stack.count(f'{EVERYTHING} |= "slip"', 600) >= 4, 60, "the lines that hold it")
    assert stack.lines(f'{EVERYTHING} |= "{PLANTED}"') == []
    assert all("****" in line for line in stack.lines(f'{EVERYTHING} |~ "slip .*(password|apiKey|Bearer|postgres:)"'))
    traces = stack.ask((f"{JAEGER}/traces", {"service": "n8n", "limit": 200, "lookback": "2h"}))[0]
    assert traces.data["data"]
    assert PLANTED not in traces.body
    traces = stack.ask((f"{JAEGER}/traces", {"service": "traefik", "limit": 200, "lookback": "2h"}))[0]
    assert traces.data["data"]
    assert PLANTED not in traces.body


def test_the_platforms_own_secrets_are_nowhere(stack: Stack, runs: Runs) -> None:
    assert runs.good
    names = stack.run("ls /etc/n8n-platform/secrets").split()
    assert len(names) >= 10
    for name in names:
        secret = stack.run(f"head -1 /etc/n8n-platform/secrets/{name}").strip()
        assert stack.lines(f"{EVERYTHING} |= {json.dumps(secret)}") == [], name

"""The platform of this scenario as its tests see it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import testinfra

HERE = Path(__file__).parents[1]
NAME = "n8n-platform-restore"
DATA = "/var/lib/postgresql/17/main"
SEEDED = 10_000


@dataclass
class Platform:
    """A platform that is backed up, broken and restored."""

    host: Any
    play: Callable[..., subprocess.CompletedProcess[str]]

    def run(self, command: str, *arguments: str) -> str:
        """Run a command as root; it must succeed."""
        return str(self.host.check_output(command, *arguments))

    def sql(self, statement: str, database: str = "n8n") -> str:
        """Ask the live database."""
        return self.run("cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d %s -c %s", database, statement)

    def wait(self, condition: str) -> None:
        """Wait on the host until a condition of the shell holds."""
        self.run("bash -c %s", f"for i in $(seq 300); do {condition} && exit 0; sleep 0.1; done; exit 1")

    def archived(self, segment: str) -> None:
        """Wait until a segment is in the repository."""
        query = f"SELECT last_archived_wal >= '{segment}' FROM pg_stat_archiver"
        self.wait(f'[ "$(cd / && runuser -u postgres -- psql -XAtc "{query}")" = t ]')

    def cli(self, *words: str) -> dict[str, Any]:
        """Call the program and return its JSON answer."""
        printed = self.run("n8n-platform-backup " + " ".join(["%s"] * len(words)), *words)
        return dict(json.loads(printed.splitlines()[-1]))

    def plan(self, *words: str) -> dict[str, Any]:
        """Return a plan."""
        return self.cli("restore", "plan", "--json", *words)

    def playbook(self, name: str, code: int = 0, **variables: Any) -> str:
        """Run one of the playbooks and return what it said."""
        options = ("-e", f"@{HERE / 'vars.yml'}")
        done = self.play(HERE.parents[1] / "playbooks" / name, *options, cached_facts=True, **variables)
        assert (done.returncode != 0) == (code != 0), done.stdout[-6000:]
        return " ".join(str(done.stdout).split())

    def now(self) -> str:
        """Return a moment as a person would type it, after everything before and before everything after it."""
        return self.run("date -u '+%F %T.%6N+00:00'")

    def call(self, token: str) -> int:
        """Send the check workflow its webhook; return the execution n8n acknowledged."""
        body = json.dumps({"numbers": [1, 2], "token": token})
        url = "http://127.0.0.1:5701/webhook/platform-verify"
        answer = json.loads(self.run("curl -sf --max-time 30 --retry 10 --retry-all-errors --json %s %s", body, url))
        assert answer["token"] == token
        return int(answer["execution"])

    def stored(self, executions: list[int]) -> set[int]:
        """Return which of some executions are stored as a success."""
        listed = ",".join(map(str, executions))
        rows = self.sql(f"SELECT id FROM execution_entity WHERE status = 'success' AND id IN ({listed})")
        return {int(row) for row in rows.split()}

    def copies(self) -> list[str]:
        """Return the safety copies."""
        return list(self.cli("restore", "purge")["copies"])

    def purge(self) -> None:
        """Remove all safety copies."""
        for name in self.copies():
            self.cli("restore", "purge", name)


@pytest.fixture(scope="session")
def platform(play: Callable[..., subprocess.CompletedProcess[str]]) -> Platform:
    """Return the platform with workflows, a credential, many executions, and backups of both kinds."""
    host = testinfra.get_host(f"ansible://{NAME}?ansible_inventory={os.environ['MOLECULE_INVENTORY_FILE']}")
    platform = Platform(host, play)
    platform.run("cp /usr/local/lib/n8n-platform/drill-workflow.json /srv/n8n/exports/check.json")
    credential = {"name": "X-Key", "value": "only-for-this-test"}
    entry = [{"id": "restoreTest00001", "name": "Key", "type": "httpHeaderAuth", "data": credential}]
    platform.run("printf %%s %s > /srv/n8n/exports/key.json", json.dumps(entry))
    platform.run("n8n import:workflow --input=/srv/n8n/exports/check.json")
    platform.run("n8n import:credentials --input=/srv/n8n/exports/key.json")
    platform.run("n8n publish:workflow --id=platformVerify01")
    first = platform.call("first")
    platform.sql(SEED.format(first=first, count=SEEDED))
    platform.run("n8n-platform-backup run")
    return platform


# Copies of one real execution, with its data.
SEED = """
    WITH copies AS (
      INSERT INTO execution_entity
        (finished, mode, status, "createdAt", "startedAt", "stoppedAt", "workflowId", "storedAt")
      SELECT finished, mode, status, "createdAt" - n * interval '1 second', "startedAt" - n * interval '1 second',
             "stoppedAt" - n * interval '1 second', "workflowId", "storedAt"
      FROM execution_entity, generate_series(1, {count}) AS n WHERE id = {first} RETURNING id)
    INSERT INTO execution_data ("executionId", "workflowData", data)
    SELECT copies.id, "workflowData", data FROM execution_data, copies WHERE "executionId" = {first}
"""

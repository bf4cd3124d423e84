"""What the scenario's tests share."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCENARIO = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def play() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs a playbook of the scenario once more, with other variables."""

    def run(playbook: str, *options: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(SCENARIO / playbook), *options]
        return subprocess.run(
            [*command, "-e", json.dumps(variables)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"},
        )

    return run


@pytest.fixture
def query(host: Any) -> Callable[..., str]:
    """Return a function that asks the server as its administrator."""

    def ask(statement: str, database: str = "postgres") -> str:
        return str(
            host.check_output(
                "runuser -u postgres -- psql -XAt -v ON_ERROR_STOP=1 -p 15432 -d %s -c %s", database, statement
            )
        )

    return ask


@pytest.fixture
def sign_in(host: Any) -> Callable[..., Any]:
    """Return a function that runs a statement as a role that signs in by password."""

    def run(user: str, database: str, password: str, statement: str = "SELECT 1", address: str = "127.0.0.1") -> Any:
        return host.run(
            "PGPASSWORD=%s psql -XAt -h %s -p 15432 -U %s -d %s -c %s", password, address, user, database, statement
        )

    return run


@pytest.fixture
def secret(host: Any) -> Callable[[str], str]:
    """Return a function that reads a secret of the host."""
    return lambda name: str(host.file(f"/etc/n8n-platform/secrets/{name}").content_string).strip()

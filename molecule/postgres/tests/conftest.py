"""What the scenario's tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


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

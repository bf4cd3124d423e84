# SPDX-License-Identifier: GPL-3.0-or-later
"""A test host, reached through Docker; for tests that Testinfra's view of a host is too slow or too small for."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Host:
    """A test host; ``database`` is the one that :meth:`sql` asks unless it is told another."""

    database = "n8n"

    def __init__(self, container: str) -> None:
        self.container = container

    def run(self, command: str, check: bool = True, timeout: float = 120) -> str:
        """Run a shell command on the host and return what it printed; fail when it must succeed and does not."""
        done = subprocess.run(
            ["docker", "exec", self.container, "sh", "-c", command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def copy(self, source: Path, target: str) -> None:
        """Copy a file to the host; /tmp there is not what Docker thinks it is."""
        subprocess.run(["docker", "cp", "-q", source, f"{self.container}:{target}"], check=True)

    def sql(self, query: str, database: str = "") -> list[list[str]]:
        """Return the rows of a query."""
        text = self.run(f"su postgres -c \"psql -d {database or self.database} -XAt -F '|'\" <<'END'\n{query}\nEND\n")
        return [line.split("|") for line in text.splitlines()]

    def kill(self, *units: str) -> None:
        """Kill all processes of units; systemd has to start them again by itself."""
        for unit in units:
            self.run(f"systemctl kill --signal=SIGKILL {unit}")

    def kill_postgres(self) -> None:
        """Kill PostgreSQL's first process only, as the kernel would."""
        self.run("kill -9 $(systemctl show --property MainPID --value postgresql@17-main.service)")

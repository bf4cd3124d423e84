# SPDX-License-Identifier: GPL-3.0-or-later
"""The scratch PostgreSQL of a drill: its own directory, socket and memory limit, beside the running platform."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from n8n_platform.backup.errors import BackupError
from n8n_platform.backup.pipeline import Command
from n8n_platform.restore import host as restore_host
from n8n_platform.restore import n8n as restore_n8n
from n8n_platform.restore.host import Host, Server, until

POSTGRES_UNIT, N8N_UNIT, TASK_UNIT = "n8n-drill-postgres.service", "n8n-drill-n8n.service", "n8n-drill-task.service"
UNITS = (N8N_UNIT, POSTGRES_UNIT, TASK_UNIT)


class Scratch:
    """The server and what it leaves behind."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.settings = host.layout.drill
        self.data = self.settings.directory / "data"
        self.socket = self.settings.directory / "run"
        self.server = Server(host.run, self.socket, self.settings.postgres_port, account="")

    def create(self) -> None:
        """Make the directories."""
        directory = self.settings.directory
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        group = self.host.layout.n8n.user if self.host.layout.n8n else "postgres"
        self.task(
            "install",
            "-d",
            "-o",
            "postgres",
            "-g",
            "postgres",
            "-m",
            "0700",
            self.data,
            directory / "lock",
            user="root",
        )
        # n8n, too, connects by this directory, nobody else.
        self.task("install", "-d", "-o", "postgres", "-g", group, "-m", "0750", self.socket, user="root")

    def clean(self) -> None:
        """Stop what a drill started and remove its files; also those of one that was killed."""
        for unit in UNITS:
            with contextlib.suppress(BackupError):
                self.host.systemctl("stop", unit, timeout=120)
            with contextlib.suppress(BackupError):
                self.host.systemctl("reset-failed", unit)
        shutil.rmtree(self.settings.directory / "data", ignore_errors=True)
        for name in ("run", "lock", "sets"):
            shutil.rmtree(self.settings.directory / name, ignore_errors=True)

    def task(self, *words: Any, user: str = "postgres", timeout: float | None = None) -> str:
        """Run a program as a transient unit with the drill's memory limit."""
        options = (f"--unit={TASK_UNIT}", f"--uid={user}", "--slice=n8n-platform.slice", "--working-directory=/")
        limits = (f"--property=MemoryMax={self.settings.memory_mb}M", "--property=Nice=10", "--property=IOWeight=20")
        start = (
            "systemd-run",
            "--quiet",
            "--collect",
            "--wait",
            "--pipe",
            "--expand-environment=no",
            *options,
            *limits,
        )
        return self.host.run(Command((*start, *words)), timeout=timeout or self.settings.timeout_seconds)

    def _options(self) -> list[str]:
        """Return the server's settings; given on the command line they win over those that were restored."""
        run = self.socket
        values = {
            "listen_addresses": "",
            "port": self.settings.postgres_port,
            "unix_socket_directories": run,
            "hba_file": run / "hba.conf",
            "ident_file": run / "ident.conf",
            "archive_mode": "off",
            "hot_standby": "off",
            "ssl": "off",
            "shared_preload_libraries": "",
            "shared_buffers": "64MB",
            "maintenance_work_mem": "64MB",
            "max_connections": 40,
            "huge_pages": "off",
            "jit": "off",
            # Nothing here outlives the drill.
            "fsync": "off",
            "full_page_writes": "off",
            "logging_collector": "off",
        }
        return [word for name, value in values.items() for word in ("-c", f"{name}={value}")]

    def start(self, quarantine: bool, seconds: float) -> None:
        """Start the scratch server and wait until it takes part in life."""
        postgres = self.host.postgres
        run = self.socket
        n8n_user = self.host.layout.n8n.user if self.host.layout.n8n else postgres.user
        hba = f"local all postgres peer map=drill\nlocal all {postgres.user} peer map=drill\n"
        users = f"drill root postgres\ndrill postgres postgres\ndrill {n8n_user} {postgres.user}\n"
        for name, text in (("hba.conf", hba), ("ident.conf", users), ("postgresql.conf", "")):
            (run / name).write_text(text, encoding="utf-8")
            (run / name).chmod(0o644)
        options = ["--uid=postgres", "--slice=n8n-platform.slice", f"--property=MemoryMax={self.settings.memory_mb}M"]
        options += ["--property=Nice=10", "--property=KillSignal=SIGINT", "--property=NoNewPrivileges=yes"]
        options += [f"--property={line}" for line in restore_n8n.QUARANTINE] if quarantine else []
        command = ("systemd-run", "--quiet", "--collect", f"--unit={POSTGRES_UNIT}", "--working-directory=/", *options)
        program: tuple[str | Path, ...] = (
            postgres.bin_dir / "postgres",
            "-D",
            self.data,
            "-c",
            f"config_file={run}/postgresql.conf",
            *self._options(),
        )
        self.host.run(Command((*command, *program)), timeout=60)

        def over() -> bool:
            return not self.active(POSTGRES_UNIT) or self.server.answers()

        if not until(over, seconds) or not self.active(POSTGRES_UNIT):
            words = ("journalctl", "--no-pager", "-o", "cat", "-n", "50", "-u", POSTGRES_UNIT)
            said = restore_host.FATAL.findall(self.host.run(Command(words)))
            raise BackupError(f"The restored server does not start: {said[0] if said else 'see its journal'}")

    def active(self, unit: str) -> bool:
        """Tell whether a unit runs, or is about to."""
        state_now = self.host.systemctl("show", "--property=ActiveState", "--value", unit).strip()
        return state_now in ("active", "activating")

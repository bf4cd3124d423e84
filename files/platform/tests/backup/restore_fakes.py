"""A host for tests of restores: PostgreSQL, pgBackRest and systemd answer from tables, directories are real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from n8n_platform.backup.errors import BackupError
from n8n_platform.backup.pipeline import Command
from n8n_platform.restore.host import Drill, Layout, N8n, Postgres

INFO = [
    {
        "name": "n8n",
        "status": {"code": 0},
        "repo": [{"key": 1, "status": {"code": 0, "message": "ok"}}],
        "db": [{"id": 1, "repo-key": 1, "version": "17"}],
        "archive": [{"id": "17-1", "database": {"id": 1, "repo-key": 1}}],
        "backup": [
            {
                "label": "20261120-020000F",
                "type": "full",
                "timestamp": {"start": 1795140000, "stop": 1795140060},
                "archive": {"start": "000000010000000000000004", "stop": "000000010000000000000005"},
                "lsn": {"start": "0/4000028", "stop": "0/5000050"},
                "database": {"id": 1, "repo-key": 1},
                "info": {"size": 40_000_000},
                "error": False,
            },
            {
                "label": "20261120-020000F_20261121-020000D",
                "type": "diff",
                "timestamp": {"start": 1795226400, "stop": 1795226460},
                "archive": {"start": "000000010000000000000008", "stop": "000000010000000000000008"},
                "lsn": {"start": "0/8000028", "stop": "0/8000050"},
                "database": {"id": 1, "repo-key": 1},
                "info": {"size": 41_000_000},
                "error": False,
            },
        ],
    }
]
WAL = {
    f"17-1/0000000100000000/00000001000000000000000{n:X}-{'a' * 40}.zst": 1795140000 + n * 20000 for n in range(4, 13)
}

# What pg_controldata prints of a data directory that is not empty.
CONTROL = "Database system identifier:           7000000000000000001\nLatest checkpoint's TimeLineID:       1\n"


@dataclass
class FakeHost:
    """What programs answer. ``sql`` maps a part of a statement to its answer, the first that fits counts."""

    root: Path
    sql: dict[str, str] = field(default_factory=dict)
    live: bool = True
    fail: tuple[str, ...] = ()
    info: str = field(default_factory=lambda: json.dumps(INFO))
    wal: dict[str, int] = field(default_factory=lambda: dict(WAL))
    states: dict[str, str] = field(default_factory=dict)
    said: str = ""
    calls: list[str] = field(default_factory=list)
    hooks: dict[str, Callable[[], None]] = field(default_factory=dict)

    def layout(self) -> Layout:
        """Return settings that point here."""
        release = self.root / "release"
        folder = release / "node_modules/@n8n/db/dist/migrations/common"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "1700000000000-First.js").touch()
        data = self.root / "main"
        data.mkdir(exist_ok=True)
        return Layout(
            Postgres(data, self.root / "postgresql.conf", "postgresql.service", Path("/usr/lib/postgresql/17/bin")),
            N8n("n8n", self.root / "n8n.env", Path("/node/bin/node"), release, self.root / "n8n"),
            "n8n-test",
            Drill(directory=self.root / "drill"),
        )

    def __call__(self, command: Command, *, timeout: float | None = None) -> str:
        """Answer a program."""
        words = [str(word) for word in command.words]
        line = " ".join(words)
        self.calls.append(line)
        for text, hook in self.hooks.items():
            if text in line:
                hook()
        if any(text in line for text in self.fail):
            raise BackupError(f"{Path(words[0]).name} failed (exit code 1)")
        if words[0] == "psql":
            return self._psql(words[-1])
        if words[0] == "pgbackrest" or "pgbackrest" in words:
            return self.info if "info" in words else self._listing() if "repo-ls" in words else ""
        if words[0].endswith("pg_controldata"):
            return CONTROL if any((self.root / "main").iterdir()) else self._none()
        if words[:2] == ["systemctl", "show"]:
            return self.states.get(
                words[-1], "NRestarts=0\nActiveState=active\n" if "--value" not in words else "active\n"
            )
        if "install" in words:
            for path in (word for word in words if word.startswith(str(self.root))):
                Path(path).mkdir(parents=True, exist_ok=True)
        if words[:2] == ["systemctl", "start"]:
            self.live = True
        return self.said

    def _none(self) -> str:
        raise BackupError("pg_controldata failed (exit code 1)")

    def _psql(self, statement: str) -> str:
        if not self.live:
            raise BackupError("psql failed (exit code 2)")
        return next(
            (answer for text, answer in self.sql.items() if text in statement), "1" if statement == "SELECT 1" else ""
        )

    def _listing(self) -> str:
        return json.dumps({name: {"type": "file", "time": at} for name, at in self.wal.items()})

    def fill(self) -> None:
        """Put a cluster into the data directory."""
        (self.root / "main" / "PG_VERSION").write_text("17\n", encoding="ascii")

    def empty(self) -> None:
        """Remove it."""
        shutil.rmtree(self.root / "main")
        (self.root / "main").mkdir()

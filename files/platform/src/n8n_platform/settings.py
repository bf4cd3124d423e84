# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of the services: one JSON file without secrets; passwords come from files named after them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEFAULT_PATH = Path("/etc/n8n-platform/guard/settings.json")


class SettingsError(Exception):
    """The settings or a secret cannot be used; the text says what to do."""


@dataclass(frozen=True)
class Database:
    """Where n8n's database is; ``host`` may be the directory of a UNIX socket."""

    host: str
    port: int
    name: str
    user: str
    ca_file: str = ""


@dataclass(frozen=True)
class Queue:
    """Where n8n's job queue is. ``prefix`` is Bull's key prefix, ``names`` are the queues below it."""

    host: str
    port: int
    user: str
    prefix: str
    ca_file: str = ""
    names: tuple[str, ...] = ("jobs",)


@dataclass(frozen=True)
class Guard:
    """Ages in seconds or days; each is explained in the role's defaults."""

    grace_seconds: int = 30
    confirm_seconds: int = 30
    orphan_seconds: int = 21600
    payload_copy: bool = True
    payload_days: int = 3
    closed_days: int = 30
    archive_days: int = 365


@dataclass(frozen=True)
class Watchdog:
    """Which units of this host are watched (``unit -> address``), and for how long they may misbehave (seconds)."""

    units: dict[str, str] = field(default_factory=dict)
    red_seconds: int = 120
    start_seconds: int = 300
    stall_seconds: int = 60
    cooldown_seconds: int = 600
    kill_seconds: int = 60


@dataclass(frozen=True)
class Settings:
    """Everything the services know about their surroundings."""

    database: Database
    queue: Queue
    api_url: str
    api_ca_file: str
    secrets_dir: Path
    state_dir: Path
    guard: Guard
    watchdog: Watchdog

    def secret(self, name: str) -> str:
        """Return a secret, from the unit's credentials when there are any, otherwise from the directory of secrets."""
        directory = Path(os.environ.get("CREDENTIALS_DIRECTORY") or self.secrets_dir)
        try:
            return (directory / name).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SettingsError(f"cannot read the secret {name}: {error.strerror}. Run this as root.") from error


def load(path: Path) -> Settings:
    """Read the settings file; raise :class:`SettingsError` when it is missing, unreadable or incomplete."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        queue = values["queue"]
        return Settings(
            database=Database(**values["database"]),
            queue=Queue(**{**queue, "names": tuple(queue.get("names", ("jobs",)))}),
            api_url=values["api"]["url"],
            api_ca_file=values["api"].get("ca_file", ""),
            secrets_dir=Path(values["secrets_dir"]),
            state_dir=Path(values["state_dir"]),
            guard=Guard(**values.get("guard", {})),
            watchdog=Watchdog(**values.get("watchdog", {})),
        )
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}. The role guard writes it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{path} is not usable ({error}). Run the role guard again.") from error

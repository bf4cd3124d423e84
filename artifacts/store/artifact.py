# SPDX-License-Identifier: GPL-3.0-or-later
"""One file of the store, its manifest, and where things lie."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.store.catalogue import Source, Tool
from artifacts.store.errors import UsageError
from artifacts.store.progress import Reporter

MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def default_directory() -> Path:
    """Return where the store lies unless the user says otherwise."""
    named = os.environ.get("N8N_PLATFORM_ARTIFACTS")
    if named:
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser().absolute() / "n8n-platform" / "artifacts"


def machine_arch() -> str:
    """Return the architecture of this machine, in the distribution's words."""
    machine = platform.machine()
    if machine not in MACHINES:
        raise UsageError(f"architecture {machine} is not supported; say --arch amd64 or --arch arm64")
    return MACHINES[machine]


def manifest_path(path: Path) -> Path:
    """Return the manifest that belongs to an artifact."""
    return path.with_name(path.name.removesuffix(".tar.zst") + ".json")


@dataclass(frozen=True)
class Artifact:
    """One file of the store with what its manifest says."""

    tool: str
    version: str
    arch: str
    path: Path
    manifest: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.tool} {self.version} ({self.arch})"

    def summary(self) -> dict[str, Any]:
        """Return what playbooks need to know."""
        names = {"tool": self.tool, "version": self.version, "arch": self.arch, "path": str(self.path)}
        return names | {key: self.manifest[key] for key in ("sha256", "size")}


@dataclass(frozen=True)
class Job:
    """One artifact to be made from one source."""

    tool: Tool
    version: str
    arch: str
    source: Source
    reporter: Reporter

    @property
    def label(self) -> str:
        """How messages name the work."""
        return f"{self.tool.name} {self.version} ({self.arch})"

    @property
    def locks(self) -> Path:
        """Where the committed lock files of a built release lie."""
        return self.tool.lock_directory(self.version)

    def say(self, text: str) -> None:
        """Print one line about this work."""
        self.reporter.say(f"{self.label}: {text}")

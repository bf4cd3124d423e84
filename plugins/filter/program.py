# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter that lists what a Python package needs on a host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

SUFFIXES = {".py", ".sql"}


def program_entries(source: str, target: str) -> list[dict[str, Any]]:
    """Return entries for the module host_files that bring a Python package, with its sub-packages, to a directory.

    ``source`` is the package's directory on the controller, ``target`` the directory on the host that holds the
    package. Modules the package no longer has are removed.

    Example: ``{{ 'files/platform/src/n8n_platform' | dealscale.n8n_platform.program_entries('/opt/x') }}``
    """
    package = Path(source).resolve()
    files = sorted(path for path in package.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    if not files:
        raise AnsibleFilterError(f"{source} holds no Python package")
    home = Path(target) / package.name
    directories = sorted({home / path.parent.relative_to(package) for path in files})
    entries: list[dict[str, Any]] = [{"path": target, "state": "directory"}]
    entries += [{"path": str(path), "state": "directory", "purge": "*.py"} for path in directories]
    return entries + [
        {"path": str(home / path.relative_to(package)), "content": path.read_text(encoding="utf-8")} for path in files
    ]


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"program_entries": program_entries}

# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting the files of a set back: n8n's folders, configuration, certificates, secrets. Never the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from n8n_platform.backup import check, manifest, sets
from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import BackupError, UsageError
from n8n_platform.backup.pipeline import Command, Pipeline
from n8n_platform.backup.report import Report

# The archives of a part that hold files of the host; exports are for n8n's own import commands.
ARCHIVES = {
    "n8n": ("n8n-data.tar.zst",),
    "configuration": ("configuration.tar.zst",),
    "certificates": ("certificates.tar.zst", "certificates.tar.zst.age"),
    "secrets": ("secrets.tar.zst.age",),
}


def chosen(document: Mapping[str, Any], parts: Sequence[str]) -> list[manifest.File]:
    """Return the archives of parts; raise :class:`UsageError` for a part that has none in this set."""
    files = manifest.files(document)
    found = []
    for part in parts:
        if part not in ARCHIVES:
            raise UsageError(
                f"{part} cannot be unpacked; --parts takes {', '.join(ARCHIVES)}. "
                "For the database: playbooks/restore.yml"
            )
        archives = [file for file in files if file.name in ARCHIVES[part]]
        if not archives:
            raise UsageError(f"the set {document['id']} has no part {part}")
        found += archives
    return found


def restore_files(
    config: Config,
    found: sets.Found,
    shelf: sets.LocalShelf | sets.S3Shelf,
    parts: Sequence[str],
    target: Path,
    identity: Path | None,
    report: Report,
    numeric_owner: bool = False,
) -> None:
    """Unpack parts of a set below ``target``, after checking every byte of them.

    Owners are found by name, since numbers differ between hosts; ``numeric_owner`` takes the numbers instead.
    """
    files = chosen(found.document, parts)
    locked = [file.name for file in files if file.name.endswith(".age")]
    if locked and identity is None:
        raise UsageError(f"{', '.join(locked)} is encrypted: give the file with the age identity (--identity FILE)")
    if identity is not None and not identity.is_file():
        raise UsageError(f"there is no file {identity}")
    for file in files:
        problem = check.sums(shelf, found.id, file, report.progress)
        if problem:
            raise BackupError(f"{found.id}: {problem}. Nothing was unpacked. Use another set.")
    for file in files:
        commands = [
            *([Command(["age", "--decrypt", "--identity", identity])] if identity and file.name in locked else []),
            check.UNPACK,
            Command(
                [
                    "tar",
                    "--extract",
                    "--file=-",
                    "--preserve-permissions",
                    "--verbose",
                    *(["--numeric-owner"] if numeric_owner else []),
                    f"--directory={target}",
                ]
            ),
        ]
        count = 0
        with check.opened(shelf, found.id, file.name) as stream, Pipeline(commands, stdin=stream) as pipeline:
            for chunk in pipeline.chunks():
                count += chunk.count(b"\n")
            for warning in pipeline.finish():
                report.warn(f"{file.name}: {warning}")
        report.clear()
        report.say(f"unpacked {file.name}: {count} files and directories below {target}")

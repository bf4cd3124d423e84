# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting the files of a set back: n8n's folders, configuration, certificates, secrets. Never the database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from n8n_platform.backup import check, manifest, sets
from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import BackupError, PlaceError, UsageError
from n8n_platform.backup.pipeline import UNPACK, Command, Pipeline
from n8n_platform.backup.report import Report

# The archives of a part that hold files of the host; exports are for n8n's own import commands.
ARCHIVES = {
    "n8n": ("n8n-data.tar.zst",),
    "configuration": ("configuration.tar.zst",),
    "certificates": ("certificates.tar.zst", "certificates.tar.zst.age"),
    "secrets": ("secrets.tar.zst.age",),
}


class DamagedError(BackupError):
    """This copy of the set cannot be used; another one may."""


def chosen(
    config: Config, found: sets.Found, shelf: sets.LocalShelf | sets.S3Shelf, parts: Sequence[str], report: Report
) -> list[manifest.File]:
    """Return the archives of parts after checking every byte of them.

    Raises :class:`DamagedError`, or :class:`UsageError` for a part that has no archive in this set.
    """
    if found.problem:
        raise DamagedError(f"{found.id} ({shelf.name}): {found.problem}")
    files = manifest.files(found.document)
    wanted = []
    for part in parts:
        if part not in ARCHIVES:
            raise UsageError(
                f"{part} cannot be unpacked; --parts takes {', '.join(ARCHIVES)}. "
                "For the database: playbooks/restore.yml"
            )
        archives = [file for file in files if file.name in ARCHIVES[part]]
        if not archives:
            raise UsageError(f"the set {found.id} has no part {part}")
        wanted += archives
    for file in wanted:
        try:
            problem = check.sums(shelf, found.id, file, report.progress)
        except PlaceError as error:
            problem = str(error)
        if problem:
            raise DamagedError(f"{found.id} ({shelf.name}): {problem}. Nothing was unpacked.")
    return wanted


def extract(
    shelf: sets.LocalShelf | sets.S3Shelf,
    set_id: str,
    files: Sequence[manifest.File],
    target: Path,
    identity: Path | None,
    report: Report,
    numeric_owner: bool = False,
) -> None:
    """Unpack archives below ``target``.

    Owners are found by name, since numbers differ between hosts; ``numeric_owner`` takes the numbers instead.
    """
    locked = [file.name for file in files if file.name.endswith(".age")]
    if locked and identity is None:
        raise UsageError(f"{', '.join(locked)} is encrypted: give the file with the age identity (--identity FILE)")
    if identity is not None and not identity.is_file():
        raise UsageError(f"there is no file {identity}")
    for file in files:
        opening = [Command(["age", "--decrypt", "--identity", identity])] if identity and file.name in locked else []
        words = ["tar", "--extract", "--file=-", "--preserve-permissions", "--verbose", f"--directory={target}"]
        commands = [*opening, UNPACK, Command([*words, "--numeric-owner"] if numeric_owner else words)]
        count = 0
        with check.opened(shelf, set_id, file.name) as stream, Pipeline(commands, stdin=stream) as pipeline:
            for chunk in pipeline.chunks():
                count += chunk.count(b"\n")
            for warning in pipeline.finish():
                report.warn(f"{file.name}: {warning}")
        report.clear()
        report.say(f"unpacked {file.name}: {count} files and directories below {target}")

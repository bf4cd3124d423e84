# SPDX-License-Identifier: GPL-3.0-or-later
"""Getting a set out of the object store: what is there already is not fetched again, and every byte is checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

from n8n_platform.backup import manifest, places, s3, sets, verification
from n8n_platform.backup.errors import BackupError, UsageError
from n8n_platform.backup.pipeline import CHUNK
from n8n_platform.backup.report import Report, human_size

FETCHING = ".fetching-"
BEGUN = ".part"


def fetch(store: s3.Store, set_id: str, target: Path, key: str | None, report: Report) -> Path:
    """Copy a set to ``target/<set id>`` and return that path.

    Without ``key`` the manifest's signature is not checked, which is said; its checksums always are.
    """
    final = target / set_id
    if (final / manifest.NAME).exists():
        report.say(f"{final} is there already; verify it: n8n-platform-backup verify {set_id}")
        return final
    shelf = sets.S3Shelf(store)
    data = shelf.read(set_id, manifest.NAME)
    if data is None:
        raise UsageError(f"the object store has no set {set_id}. See: n8n-platform-backup list --from s3")
    document = manifest.decode(data, key, f"the manifest of {set_id} (s3)")
    if key is None:
        report.warn(f"the signature of {set_id} is not checked: this host has no {manifest.SIGNING_KEY} yet")
    files = manifest.files(document)
    working = target / f"{FETCHING}{set_id}"
    try:
        working.mkdir(mode=0o700, parents=True, exist_ok=True)
        for file in files:
            one(store, set_id, file, working, report)
        checks = shelf.read(set_id, verification.NAME)
        if checks is not None:
            places.write_private(working / verification.NAME, checks)
        places.write_private(working / manifest.NAME, data)
        working.rename(final)
        places.sync_directory(target)
    except OSError as error:
        raise places.disk_error(final, error) from error
    report.clear()
    report.say(f"fetched {set_id} to {final}: {len(files)} files, {human_size(sum(file.size for file in files))}")
    return final


def one(store: s3.Store, set_id: str, file: manifest.File, folder: Path, report: Report) -> None:
    """Fetch a file, from where an earlier attempt ended; begin anew once when the whole does not fit."""
    final = folder / file.name
    if final.exists():
        return
    begun = folder / f"{file.name}{BEGUN}"
    for attempt in (1, 2):
        digest, size = hashlib.sha256(), 0
        begun.touch()
        begun.chmod(0o600)
        with begun.open("rb+") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
            if size < file.size:
                for chunk in store.stream(store.key(set_id, file.name), size):
                    digest.update(chunk)
                    size += stream.write(chunk)
                    report.progress(file.name, size)
        if size == file.size and digest.hexdigest() == file.sha256:
            begun.rename(final)
            return
        begun.unlink()
        if attempt == 2:  # noqa: PLR2004
            raise BackupError(f"{file.name} of {set_id} is damaged in the object store. Use another set.")

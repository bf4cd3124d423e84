# SPDX-License-Identifier: GPL-3.0-or-later
"""Carrying out what retention decides: deleting old sets, and sending the object store what it lacks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from n8n_platform.backup import manifest, retention, sets, state, verification
from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import BackupError
from n8n_platform.backup.report import Report


class DamagedError(BackupError):
    """A local set cannot be uploaded; others can."""


Shelf = sets.LocalShelf | sets.S3Shelf


def decide(config: Config, found: Sequence[sets.Found], place: str) -> list[retention.Decision]:
    """Return what becomes of the sets of a place now."""
    rules = config.retention
    long_term = "s3" if config.s3 else "local"
    return retention.plan(
        found,
        datetime.now(UTC),
        config.host,
        rules.s3_days if place == "s3" else rules.local_days,
        rules.minimum_sets,
        rules.gfs if place == long_term else None,
        state.clock_problem(state.read(config).get("clock", {}), state.clock_reading(config)),
    )


def apply(config: Config, shelf: Shelf, report: Report) -> list[str]:
    """Delete what is too old at a place; return the ids. Odd sets are reported and stay."""
    key = config.secret(manifest.SIGNING_KEY)
    decisions = decide(config, sets.everything(shelf, key), shelf.name)
    deleted = []
    for decision in decisions:
        if not decision.keep:
            shelf.remove(decision.found.id)
            report.say(f"deleted {decision.found.id} ({shelf.name}): it {decision.reason}")
            deleted.append(decision.found.id)
        elif decision.found.host == config.host and odd(decision):
            report.warn(f"{decision.found.id} ({shelf.name}) {decision.reason}")
    kept = sum(1 for decision in decisions if decision.keep and decision.found.host == config.host)
    state.update(config, {"sets": {shelf.name: kept}})
    return deleted


def odd(decision: retention.Decision) -> bool:
    """Tell whether a person should know why a set stays."""
    return any(text in decision.reason for text in ("future", "cannot be judged", "in doubt"))


def watch_clock(config: Config, report: Report) -> None:
    """Note the clock for the next run; while it is in doubt the old note stays, and so does the doubt."""
    reading = state.clock_reading(config)
    problem = state.clock_problem(state.read(config).get("clock", {}), reading)
    if problem:
        report.warn(
            f"{problem}. Nothing is deleted until that is settled. Check: timedatectl. If the clock is right now: "
            "n8n-platform-backup prune --trust-clock"
        )
        return
    state.update(config, {"clock": reading})


def catch_up(config: Config, local: sets.LocalShelf, remote: sets.S3Shelf, report: Report) -> list[str]:
    """Send the object store the local sets it lacks and would keep; return their ids."""
    key = config.secret(manifest.SIGNING_KEY)
    there = set(remote.ids())
    lacking = [found for found in sets.everything(local, key) if found.id not in there and found.host == config.host]
    if not lacking:
        return []
    known = [sets.look(remote, set_id, key) for set_id in there] + lacking
    wanted = {decision.found.id for decision in decide(config, known, "s3") if decision.keep}
    sent = []
    for found in lacking:
        if found.id in wanted and not found.problem:
            try:
                send(found, local, remote, key, report)
            except DamagedError as error:
                report.problem(str(error))
                continue
            report.say(f"uploaded {found.id}, which the object store lacked")
            sent.append(found.id)
    return sent


def send(found: sets.Found, local: sets.LocalShelf, remote: sets.S3Shelf, key: str, report: Report) -> None:
    """Upload a local set; its manifest, which says where the files are, comes last."""
    there = remote.contents().get(found.id, {})
    document: dict[str, Any] = {**found.document, "files": []}
    for file in manifest.files(found.document):
        if there.get(file.name) != file.size:
            send_file(found.id, file, local, remote, report)
        entry = {**file.as_json(), "s3": remote.store.address(found.id, file.name)}
        document["files"].append(entry)
    data = manifest.encode(manifest.sign(document, key))
    checked = local.read(found.id, verification.NAME)
    if checked is not None:
        remote.write(found.id, verification.NAME, checked)
    local.write(found.id, manifest.NAME, data)
    remote.write(found.id, manifest.NAME, data)
    for file in manifest.files(document):
        remote.contents()[found.id][file.name] = file.size


def send_file(set_id: str, file: manifest.File, local: sets.LocalShelf, remote: sets.S3Shelf, report: Report) -> None:
    """Upload a file while checking that it still is what the manifest says."""
    digest, size = hashlib.sha256(), 0
    upload = remote.store.upload(remote.store.key(set_id, file.name), file.size)
    try:
        with local.path(set_id, file.name).open("rb") as stream:
            while chunk := stream.read(1024 * 256):
                digest.update(chunk)
                size += len(chunk)
                upload.write(chunk)
                report.progress(file.name, size)
        if digest.hexdigest() != file.sha256:
            raise DamagedError(f"{local.path(set_id, file.name)} is damaged, the set {set_id} is not uploaded")
    except OSError as error:
        upload.abandon()
        raise DamagedError(
            f"cannot read {local.path(set_id, file.name)}: {error.strerror}. The set {set_id} is not uploaded"
        ) from error
    except BaseException:
        upload.abandon()
        raise
    upload.finish()

# SPDX-License-Identifier: GPL-3.0-or-later
"""One backup run: physical backups, a set in all places, what the object store lacks, a check, and old sets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from n8n_platform.backup import check, database, manifest, physical, prune, s3, sets, space, state, verification
from n8n_platform.backup.config import PARTS, PHYSICAL, Config
from n8n_platform.backup.errors import (
    FAILED,
    OK,
    PARTLY,
    BackupError,
    PlaceError,
    UnusableError,
    UsageError,
)
from n8n_platform.backup.parts import MAKERS, Making
from n8n_platform.backup.places import LocalPlace, Place, S3Place, SetWriter
from n8n_platform.backup.report import Report, human_size


@dataclass
class Outcome:
    """What a run did."""

    set_id: str = ""
    parts: list[str] = field(default_factory=list)
    failed_parts: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    size: int = 0
    complete: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    uploaded: list[str] = field(default_factory=list)
    deleted: dict[str, list[str]] = field(default_factory=dict)
    nothing_made: bool = False


def choose(config: Config, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Return the parts to make; raise :class:`UsageError` for one this host does not have."""
    available = (*((PHYSICAL,) if config.physical else ()), *config.parts)
    if not available:
        raise UnusableError("the settings name nothing to save on this host. Run the role backup again.")
    for name in wanted or ():
        if name not in available:
            kind = "is switched off on this host" if name in (PHYSICAL, *PARTS) else "is no part"
            raise UsageError(f"{name} {kind}. Parts of this host: {', '.join(available)}")
    return tuple(name for name in available if wanted is None or name in wanted)


class Run:
    """A run; call it while the lock is held."""

    def __init__(self, config: Config, report: Report, store: s3.Store | None) -> None:
        self.config = config
        self.report = report
        self.store = store
        self.local = sets.LocalShelf(config.sets_dir)
        self.remote = sets.S3Shelf(store) if store else None
        self.outcome = Outcome()
        self.started = datetime.now(UTC)
        self.key = config.secret(manifest.SIGNING_KEY)

    def run(self, parts: Sequence[str]) -> int:
        """Do everything; return the exit code. What goes wrong is in the report."""
        wanted = [name for name in parts if name != PHYSICAL]
        state.update(self.config, {"running": {"since": manifest.stamp(datetime.now(UTC))}})
        self.local.prepare()
        for name in self.local.clean():
            self.report.warn(f"removed {name}, which a run that was killed had left")
        last = self._last_set()
        if wanted:
            self._check_space(last, wanted)
        if PHYSICAL in parts:
            self._physical()
        if wanted:
            self._set(wanted, last)
        self._s3_leftovers_and_lag()
        if self.outcome.set_id and self.config.verify_after_run:
            self._verify()
        self._prune()
        return self._code()

    def _last_set(self) -> dict[str, Any]:
        """Return the manifest of the newest complete local set."""
        for set_id in reversed(self.local.ids()):
            found = sets.look(self.local, set_id, self.key)
            if found.complete and found.host == self.config.host:
                return dict(found.document)
        return {}

    def _check_space(self, last: dict[str, Any], wanted: Sequence[str]) -> None:
        size = None
        if "database" in wanted and self.config.database is not None:
            try:
                with database.session(self.config, self.config.database) as snapshot:
                    size = snapshot.size()
            except UnusableError:
                raise
            except BackupError:
                # It is told when the dump fails; the other parts can still be saved.
                size = None
        space.check(self.config, last, size)

    # --- physical ---------------------------------------------------------------------------------------------------

    def _physical(self) -> None:
        settings = self.config.physical
        assert settings is not None  # noqa: S101  (the part is on)
        started, failed, size = datetime.now(UTC), False, 0
        for repo in settings.repos:
            try:
                found = physical.backup(self.config, settings, repo)
                newest = found.newest or {}
                self.outcome.labels[str(repo)] = str(newest.get("label", ""))
                size = max(size, physical.size(newest))
                self.report.say(f"physical backup {newest.get('label')} in repository {repo}")
            except BackupError as error:
                failed = True
                self.report.problem(str(error))
        state.update(self.config, state.ended(state.PHYSICAL, started, failed, bool(self.outcome.labels), size))

    # --- the set ----------------------------------------------------------------------------------------------------

    def _set(self, wanted: Sequence[str], last: dict[str, Any]) -> None:
        started, begun = datetime.now(UTC), time.monotonic()
        # Two runs within a second are two sets.
        while (set_id := manifest.set_id(started, self.config.host)) in self.local.ids():
            started += timedelta(seconds=1)
        places: list[Place] = []
        failures = []
        try:
            places.append(LocalPlace(self.config.sets_dir, set_id))
        except PlaceError as error:
            failures.append(str(error))
        if self.store is not None:
            places.append(S3Place(self.store, set_id))
        if not places:
            raise PlaceError("; ".join(failures))
        for text in failures:
            self.report.problem(text)
        writer = SetWriter(places, self.report.progress)
        expected = {entry["name"]: int(entry["size"]) for entry in last.get("files", ())}
        making = Making(self.config, writer, self.report, expected=expected)
        try:
            self._parts(wanted, making)
            if not writer.files:
                raise BackupError("no part could be made, there is no set")
            document = self._manifest(set_id, started, begun, making)
            if self.store is not None:
                document = with_addresses(document, self.store, "s3" in [place.name for place in writer.places])
            self.outcome.places = writer.commit(manifest.encode(manifest.sign(document, self.key)))
        except BaseException as error:
            writer.abandon()
            for text in writer.problems.values():
                self.report.problem(text)
            if isinstance(error, BackupError):
                self.outcome.nothing_made = True
                self.report.problem(str(error))
                state.update(self.config, state.ended(state.SET, started, True, False))
                return
            raise
        for text in writer.problems.values():
            self.report.problem(text)
        self.outcome.set_id = set_id
        self.outcome.size = sum(file.size for file in writer.files)
        self.outcome.complete = bool(document["complete"])
        self.report.say(
            f"set {set_id}: {len(writer.files)} files, {human_size(self.outcome.size)}, "
            f"in {' and '.join(self.outcome.places)}"
        )
        self.started = started

    def _parts(self, wanted: Sequence[str], making: Making) -> None:
        for part in wanted:
            try:
                MAKERS[part](making)
                self.outcome.parts.append(part)
            except PlaceError:
                raise
            except BackupError as error:
                making.writer.discard(part)
                self.outcome.failed_parts.append(part)
                self.report.problem(f"part {part}: {error}")

    def _manifest(self, set_id: str, started: datetime, begun: float, making: Making) -> dict[str, Any]:
        try:
            encryption_key = self.config.secret(manifest.ENCRYPTION_KEY)
        except UnusableError:
            encryption_key = ""
        return {
            "format": manifest.FORMAT,
            "id": set_id,
            "environment": self.config.environment,
            "host": self.config.host,
            "started_at": manifest.stamp(started),
            "finished_at": manifest.stamp(datetime.now(UTC)),
            "duration_seconds": round(time.monotonic() - begun, 1),
            "versions": {"n8n": None, "collection": self.config.collection_version or None, **making.versions},
            "database": making.facts or None,
            "encryption_key_fingerprint": manifest.fingerprint(encryption_key) if encryption_key else "",
            "key_present": bool(encryption_key),
            "physical": self.outcome.labels,
            "files": [file.as_json() for file in making.writer.files],
            "parts": self.outcome.parts,
            "failed_parts": self.outcome.failed_parts,
            "complete": set(self.outcome.parts) == set(self.config.parts),
        }

    # --- afterwards -------------------------------------------------------------------------------------------------

    def _s3_leftovers_and_lag(self) -> None:
        if self.remote is None or self.store is None:
            return
        try:
            self.remote.forget()
            self.outcome.uploaded = prune.catch_up(self.config, self.local, self.remote, self.report)
            local = set(self.local.ids())
            for name in self.remote.clean(self.config.host, local):
                self.report.warn(f"removed {name} from the object store, which a run that was killed had left")
        except PlaceError as error:
            self.report.problem(str(error))
        if self.outcome.set_id in self.outcome.uploaded and "s3" not in self.outcome.places:
            self.outcome.places.append("s3")

    def _verify(self) -> None:
        where: list[sets.LocalShelf | sets.S3Shelf] = []
        if "local" in self.outcome.places:
            where.append(self.local)
        if "s3" in self.outcome.places and self.remote is not None:
            where.append(self.remote)
        entry = check.verify(self.config, self.outcome.set_id, where, self.report, deep=False)
        if entry["result"] != verification.RESULT_OK:
            self.report.problem(f"the new set did not pass its check: {entry['detail']}")
            self.outcome.complete = False

    def _prune(self) -> None:
        for shelf in (self.local, self.remote):
            if shelf is None:
                continue
            try:
                self.outcome.deleted[shelf.name] = prune.apply(self.config, shelf, self.report)
            except PlaceError as error:
                self.report.problem(str(error))

    def _code(self) -> int:
        if self.outcome.set_id:
            state.update(
                self.config,
                state.ended(
                    state.SET, self.started, bool(self.report.problems), self.outcome.complete, self.outcome.size
                ),
            )
        state.update(self.config, {"running": {"since": ""}, "problems": self.report.problems})
        if self.outcome.nothing_made or "database" in self.outcome.failed_parts:
            return FAILED
        return PARTLY if self.report.problems else OK


def with_addresses(document: dict[str, Any], store: s3.Store, present: bool) -> dict[str, Any]:
    """Return a manifest that says where in the object store the files are, or that they are not there."""
    files = [
        {**entry, "s3": store.address(document["id"], entry["name"]) if present else None}
        for entry in document["files"]
    ]
    return {**document, "files": files}


def refused(config: Config, error: BackupError) -> None:
    """Remember a run that did not begin."""
    failed = state.ended(state.SET, datetime.now(UTC), True, False)
    state.update(config, {**failed, "running": {"since": ""}, "problems": [str(error)]})

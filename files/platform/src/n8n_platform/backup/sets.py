# SPDX-License-Identifier: GPL-3.0-or-later
"""The sets there are, locally and in the object store, and what is known about each."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from n8n_platform.backup import manifest, places, s3, verification
from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import BackupError, PlaceError, UnusableError, UsageError

DELETING = ".deleting-"
LATEST = "latest"


@dataclass(frozen=True)
class Found:
    """A set at one place. ``document`` is empty and ``problem`` says why when its manifest cannot be believed."""

    id: str
    at: datetime
    host: str
    document: Mapping[str, Any] = field(default_factory=dict)
    verified: verification.State = field(default_factory=verification.State)
    problem: str = ""

    @property
    def complete(self) -> bool:
        """Tell whether the set holds every part its host has."""
        return bool(self.document.get("complete"))

    @property
    def size(self) -> int:
        """Return the bytes of its files."""
        return sum(int(entry["size"]) for entry in self.document.get("files", ()))


class Shelf(Protocol):
    """A place that keeps sets."""

    name: str

    def ids(self) -> list[str]:
        """Return the ids of all sets."""

    def read(self, set_id: str, name: str) -> bytes | None:
        """Return a small file of a set."""

    def write(self, set_id: str, name: str, data: bytes) -> None:
        """Replace a small file of a set."""

    def remove(self, set_id: str) -> None:
        """Delete a set."""


class LocalShelf:
    """The local directory."""

    name = "local"

    def __init__(self, sets_dir: Path) -> None:
        self.sets_dir = sets_dir

    def prepare(self) -> None:
        """Make sure of the directory; only its owner sees what is in it."""
        try:
            self.sets_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise places.disk_error(self.sets_dir, error) from error

    def ids(self) -> list[str]:
        """Return the ids of all sets."""
        try:
            names = [path.name for path in self.sets_dir.iterdir() if path.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise PlaceError(f"cannot read {self.sets_dir}: {error.strerror}. Run this as root.") from error
        return sorted(name for name in names if manifest.parse_id(name))

    def path(self, set_id: str, name: str = "") -> Path:
        """Return where a file of a set is."""
        return self.sets_dir / set_id / name

    def read(self, set_id: str, name: str) -> bytes | None:
        """Return a small file of a set."""
        try:
            return self.path(set_id, name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PlaceError(f"cannot read {self.path(set_id, name)}: {error.strerror}") from error

    def write(self, set_id: str, name: str, data: bytes) -> None:
        """Replace a small file of a set."""
        places.write_private(self.path(set_id, name), data)

    def remove(self, set_id: str) -> None:
        """Delete a set; one whose deletion was interrupted is none any more."""
        doomed = self.sets_dir / f"{DELETING}{set_id}"
        try:
            self.path(set_id).rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise PlaceError(f"cannot delete {self.path(set_id)}: {error.strerror}") from error

    def clean(self) -> list[str]:
        """Remove what killed runs left; return the names. Only for the holder of the lock."""
        removed = []
        for pattern in (f"{places.PARTIAL}*", f"{DELETING}*"):
            for path in sorted(self.sets_dir.glob(pattern)):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path.name)
        return removed


class S3Shelf:
    """The object store."""

    name = "s3"

    def __init__(self, store: s3.Store) -> None:
        self.store = store
        self._contents: dict[str, dict[str, int]] | None = None

    def contents(self) -> dict[str, dict[str, int]]:
        """Return what lies there: ``set id -> file -> size``; the store is asked once."""
        if self._contents is None:
            self._contents = self.store.contents()
        return self._contents

    def forget(self) -> None:
        """Ask the store anew next time."""
        self._contents = None

    def ids(self) -> list[str]:
        """Return the ids of all sets; without a manifest there is none."""
        return sorted(
            name for name, files in self.contents().items() if manifest.NAME in files and manifest.parse_id(name)
        )

    def read(self, set_id: str, name: str) -> bytes | None:
        """Return a small file of a set."""
        if self._contents is not None and name not in self._contents.get(set_id, {}):
            return None
        return self.store.get(self.store.key(set_id, name))

    def write(self, set_id: str, name: str, data: bytes) -> None:
        """Replace a small file of a set."""
        self.store.put(self.store.key(set_id, name), data)
        self.contents().setdefault(set_id, {})[name] = len(data)

    def remove(self, set_id: str) -> None:
        """Delete a set, the manifest first: what an interruption leaves is no set any more."""
        files = self.contents().get(set_id, {})
        for name in sorted(files, key=lambda name: name != manifest.NAME):
            self.store.delete(self.store.key(set_id, name))
        self.contents().pop(set_id, None)

    def clean(self, host: str, keep: set[str]) -> list[str]:
        """Remove what killed runs of this host left, but not the sets in ``keep``; return their ids."""

        def mine(name: str) -> bool:
            parsed = manifest.parse_id(name)
            return parsed is not None and parsed[1] == host

        self.store.abort_uploads(mine)
        left = [
            name
            for name, files in self.contents().items()
            if manifest.NAME not in files and mine(name) and name not in keep
        ]
        for name in left:
            self.remove(name)
        return left


def look(shelf: Shelf, set_id: str, key: str | None) -> Found:
    """Return what a place says about a set."""
    parsed = manifest.parse_id(set_id)
    if parsed is None:
        raise UsageError(f"{set_id} is not the id of a set; see: n8n-platform-backup list")
    data = shelf.read(set_id, manifest.NAME)
    if data is None:
        return Found(set_id, *parsed, problem="it has no manifest")
    try:
        document = manifest.decode(data, key, f"the manifest of {set_id} ({shelf.name})")
        manifest.files(document)
    except manifest.SignatureError as error:
        return Found(set_id, *parsed, problem=str(error))
    if document.get("id") != set_id:
        return Found(set_id, *parsed, problem=f"its manifest is that of {document.get('id')}")
    entries = verification.parse(shelf.read(set_id, verification.NAME), set_id, key)
    return Found(set_id, *parsed, document, verification.state(entries))


def everything(shelf: Shelf, key: str | None) -> list[Found]:
    """Return all sets of a place, oldest first."""
    return sorted((look(shelf, set_id, key) for set_id in shelf.ids()), key=lambda found: (found.at, found.id))


def signing_key(config: Config) -> str | None:
    """Return the key of manifests, None on a host that has no secrets yet."""
    try:
        return config.secret(manifest.SIGNING_KEY)
    except UnusableError:
        return None


def shelves(config: Config, where: str = "all") -> list[LocalShelf | S3Shelf]:
    """Return the places to look at."""
    found: list[LocalShelf | S3Shelf] = []
    if where in ("all", "local"):
        found.append(LocalShelf(config.sets_dir))
    if where in ("all", "s3"):
        store = s3.connect(config)
        if store is not None:
            found.append(S3Shelf(store))
        elif where == "s3":
            raise UsageError("no object store is set for this host (s3 in the settings)")
    return found


def resolve(
    config: Config, name: str, where: list[LocalShelf | S3Shelf], usable: bool = False
) -> tuple[str, list[LocalShelf | S3Shelf]]:
    """Return the id that ``name`` means, and the places that have it, those with a copy that failed a check last.

    ``latest`` is the newest complete set of this host; with ``usable`` one of which a copy has not failed a check. A
    place that does not answer is left out; when it is the only one, its error is raised.
    """
    held: dict[str, list[LocalShelf | S3Shelf]] = {}
    errors: list[BackupError] = []
    key = signing_key(config)
    for shelf in where:
        try:
            for set_id in shelf.ids():
                held.setdefault(set_id, []).append(shelf)
        except PlaceError as error:
            errors.append(error)

    def rank(set_id: str) -> list[tuple[bool, int]]:
        copies = [look(shelf, set_id, key) for shelf in held[set_id]]
        return sorted(
            (bool(copy.problem) or copy.verified.result == verification.RESULT_FAILED, number)
            for number, copy in enumerate(copies)
            if name != LATEST or copy.complete
        )

    candidates = sorted((entry for entry in held if mine(config, entry)), reverse=True) if name == LATEST else [name]
    for set_id in candidates:
        if set_id in held:
            ranked = rank(set_id)
            if ranked and not (usable and name == LATEST and ranked[0][0]):
                return set_id, [held[set_id][number] for _, number in ranked]
    if errors:
        raise errors[0]
    places_asked = " and ".join(shelf.name for shelf in where)
    wanted = "no complete set of this host" if name == LATEST else f"no set {name}"
    raise UsageError(f"there is {wanted} ({places_asked}). See what there is: n8n-platform-backup list")


def mine(config: Config, set_id: str) -> bool:
    """Tell whether a set was made by this host."""
    parsed = manifest.parse_id(set_id)
    return parsed is not None and parsed[1] == config.host


def record(config: Config, set_id: str, entry: Mapping[str, Any], where: Sequence[LocalShelf | S3Shelf]) -> list[str]:
    """Add an entry to a set's verification at the places where it holds; return what went wrong."""
    key = config.secret(manifest.SIGNING_KEY)
    problems = []
    for shelf in where:
        try:
            known = verification.parse(shelf.read(set_id, verification.NAME), set_id, key)
            shelf.write(set_id, verification.NAME, verification.document(set_id, [*known, entry], key))
        except PlaceError as error:
            problems.append(str(error))
    return problems


def age_seconds(found: Found, now: datetime | None = None) -> float:
    """Return how long ago a set was begun."""
    return ((now or datetime.now(UTC)) - found.at).total_seconds()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing a set to several places at once. A place that fails is left out; the others go on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from n8n_platform.backup import manifest, s3
from n8n_platform.backup.errors import BackupError, PlaceError

PARTIAL = ".partial-"


class Sink(Protocol):
    """A file of a set while it is written. ``write`` and ``finish`` raise :class:`PlaceError`."""

    def write(self, data: bytes) -> None:
        """Add data."""

    def finish(self) -> None:
        """Make it last."""

    def abandon(self) -> None:
        """Remove what was written."""


class Place(Protocol):
    """One place of one new set."""

    name: str

    def open(self, name: str, expected: int) -> Sink:
        """Begin a file that has at most about ``expected`` bytes."""

    def discard(self, name: str) -> None:
        """Remove a finished file."""

    def commit(self, document: bytes) -> None:
        """Write the manifest: from now on the set exists."""

    def abandon(self) -> None:
        """Give the set up here."""


class FileSink:
    """A file that only its owner may read, on disk for good when ``finish`` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise disk_error(path, error) from error

    def write(self, data: bytes) -> None:
        """Add data."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.descriptor, view) :]
        except OSError as error:
            raise disk_error(self.path, error) from error

    def finish(self) -> None:
        """Wait for the disk, then drop the cache: a later check shall read the disk, and n8n needs the memory."""
        try:
            os.fsync(self.descriptor)
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(self.descriptor)
        except OSError as error:
            raise disk_error(self.path, error) from error

    def abandon(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            os.close(self.descriptor)
        with contextlib.suppress(OSError):
            self.path.unlink()


def disk_error(path: Path, error: OSError) -> PlaceError:
    """Return what to say about a disk that does not take our data."""
    lasting = path.parent.parent if path.parent.name.startswith(PARTIAL) else path.parent
    return PlaceError(f"cannot write {path}: {error.strerror or error}. Look at: df -h {lasting}")


def sync_directory(path: Path) -> None:
    """Make names in a directory last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes) -> None:
    """Replace a small file whole and for good; mode 0600."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    sink = FileSink(temporary)
    try:
        sink.write(data)
        sink.finish()
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        sink.abandon()
        raise disk_error(path, error) from error
    except BaseException:
        sink.abandon()
        raise


class LocalPlace:
    """The local directory: a set gets its name when it is whole."""

    name = "local"

    def __init__(self, sets_dir: Path, set_id: str) -> None:
        self.final = sets_dir / set_id
        self.partial = sets_dir / f"{PARTIAL}{set_id}"
        try:
            self.partial.mkdir(mode=0o700)
        except OSError as error:
            raise disk_error(self.partial, error) from error

    def open(self, name: str, expected: int) -> Sink:
        """Begin a file."""
        return FileSink(self.partial / name)

    def discard(self, name: str) -> None:
        """Remove a finished file."""
        (self.partial / name).unlink(missing_ok=True)

    def commit(self, document: bytes) -> None:
        """Write the manifest and give the set its name."""
        write_private(self.partial / manifest.NAME, document)
        try:
            self.partial.rename(self.final)
            sync_directory(self.final.parent)
        except OSError as error:
            raise disk_error(self.final, error) from error

    def abandon(self) -> None:
        """Remove the unfinished set."""
        shutil.rmtree(self.partial, ignore_errors=True)


class S3Place:
    """The object store: a set exists when its manifest does, which is written last."""

    name = "s3"

    def __init__(self, store: s3.Store, set_id: str) -> None:
        self.store = store
        self.set_id = set_id

    def open(self, name: str, expected: int) -> Sink:
        """Begin an object."""
        return self.store.upload(self.store.key(self.set_id, name), expected)

    def discard(self, name: str) -> None:
        """Remove a finished object."""
        self.store.delete(self.store.key(self.set_id, name))

    def commit(self, document: bytes) -> None:
        """Write the manifest."""
        self.store.put(self.store.key(self.set_id, manifest.NAME), document)

    def abandon(self) -> None:
        """Leave what is there: the next upload of this set only sends what is missing, or the next run removes it."""


class SetWriter:
    """A new set in all its places. ``problems`` says what became of places that failed: ``name -> text``."""

    def __init__(self, places: Sequence[Place], progress: Callable[[str, int], None] = lambda name, size: None) -> None:
        self.places = list(places)
        self.problems: dict[str, str] = {}
        self.files: list[manifest.File] = []
        self.progress = progress

    def add(
        self,
        name: str,
        part: str,
        chunks: Iterable[bytes],
        expected: int = 0,
        finish: Callable[[], None] = lambda: None,
    ) -> manifest.File:
        """Write one file everywhere while it is made. ``finish`` checks its source and raises when it was cut short.

        Raises what the source raises (the file is gone then, the places stay), or :class:`PlaceError` when no place is
        left.
        """
        digest, size = hashlib.sha256(), 0
        sinks: dict[str, Sink] = {}
        try:
            for place in list(self.places):
                with self._tolerating(place):
                    sinks[place.name] = place.open(name, expected)
            for chunk in chunks:
                digest.update(chunk)
                size += len(chunk)
                for place in list(self.places):
                    with self._tolerating(place, sinks):
                        sinks[place.name].write(chunk)
                self._need_a_place()
                self.progress(name, size)
            finish()
            for place in list(self.places):
                with self._tolerating(place, sinks):
                    sinks[place.name].finish()
        except BaseException:
            for sink in sinks.values():
                sink.abandon()
            raise
        self._need_a_place()
        file = manifest.File(name, part, size, digest.hexdigest())
        self.files.append(file)
        return file

    @contextlib.contextmanager
    def _tolerating(self, place: Place, sinks: dict[str, Sink] | None = None) -> Iterator[None]:
        try:
            yield
        except PlaceError as error:
            self.drop(place, error)
            if sinks and place.name in sinks:
                sinks.pop(place.name).abandon()

    def drop(self, place: Place, error: BackupError) -> None:
        """Go on without a place."""
        self.problems[place.name] = str(error)
        self.places.remove(place)
        place.abandon()

    def _need_a_place(self) -> None:
        if not self.places:
            raise PlaceError("the set could be written nowhere: nothing was saved")

    def discard(self, part: str) -> None:
        """Remove the files of a part: half a part would look like a whole one."""
        for file in [file for file in self.files if file.part == part]:
            for place in list(self.places):
                with self._tolerating(place):
                    place.discard(file.name)
            self.files.remove(file)

    def commit(self, document: bytes) -> list[str]:
        """Write the manifest to every place; return the names of those that have the set now."""
        for place in list(self.places):
            with self._tolerating(place):
                place.commit(document)
        self._need_a_place()
        return [place.name for place in self.places]

    def abandon(self) -> None:
        """Give up everywhere."""
        for place in self.places:
            place.abandon()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a set still is what its manifest says, and whether its files can be read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

from n8n_platform.backup import manifest, redis_dump, s3, sets, state, verification
from n8n_platform.backup.config import Config, Database
from n8n_platform.backup.errors import BackupError, PlaceError
from n8n_platform.backup.pipeline import CHUNK, UNPACK, Command, Pipeline, output
from n8n_platform.backup.report import Report, human_size

Shelf = sets.LocalShelf | sets.S3Shelf
AGE_MAGIC = b"age-encryption.org/v1\n"


def content(shelf: Shelf, set_id: str, name: str) -> Iterator[bytes]:
    """Yield a file of a set; raise :class:`PlaceError` when it cannot be read."""
    if isinstance(shelf, sets.S3Shelf):
        yield from shelf.store.stream(shelf.store.key(set_id, name))
        return
    try:
        with shelf.path(set_id, name).open("rb") as stream:
            while chunk := stream.read(CHUNK):
                yield chunk
    except OSError as error:
        raise PlaceError(f"cannot read {shelf.path(set_id, name)}: {error.strerror}") from error


@contextmanager
def opened(shelf: Shelf, set_id: str, name: str) -> Iterator[IO[bytes]]:
    """Open a file of a set for a program to read, from the object store through a pipe."""
    if not isinstance(shelf, sets.S3Shelf):
        with shelf.path(set_id, name).open("rb") as stream:
            yield stream
        return
    reader, writer = os.pipe()
    errors: list[BackupError] = []

    def feed() -> None:
        # A program that has read enough closes the pipe.
        with contextlib.suppress(BrokenPipeError), open(writer, "wb") as pipe:
            try:
                for chunk in content(shelf, set_id, name):
                    pipe.write(chunk)
            except PlaceError as error:
                errors.append(error)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        with open(reader, "rb") as stream:
            yield stream
    finally:
        feeder.join()
    if errors:
        raise errors[0]


def sums(shelf: Shelf, set_id: str, file: manifest.File, progress: Callable[[str, int], None]) -> str:
    """Return what is wrong with the bytes of a file, empty when nothing is."""
    digest, size = hashlib.sha256(), 0
    for chunk in content(shelf, set_id, file.name):
        digest.update(chunk)
        size += len(chunk)
        progress(file.name, size)
    if size != file.size:
        return f"{file.name} has {size} bytes instead of {file.size}"
    return "" if digest.hexdigest() == file.sha256 else f"{file.name} is damaged (its SHA-256 differs)"


def sizes(shelf: sets.S3Shelf, set_id: str, files: Sequence[manifest.File]) -> list[str]:
    """Return what is wrong with the sizes of objects."""
    shelf.forget()
    there = shelf.contents().get(set_id, {})
    return [
        f"{file.name} "
        + (f"has {there[file.name]} bytes instead of {file.size}" if file.name in there else "is missing")
        for file in files
        if there.get(file.name) != file.size
    ]


def drain(pipeline: Pipeline) -> bytes:
    """Read everything programs print, keep the first bytes, check how they ended."""
    start = b""
    for chunk in pipeline.chunks():
        start = start or chunk[:CHUNK]
    pipeline.finish()
    return start


def readable(config: Config, name: str, stream: IO[bytes]) -> str:
    """Return what is wrong with the inside of a file, empty when nothing is; programs' complaints are raised."""
    if name.endswith(".dump.zst"):
        bin_dir = (config.database or Database()).bin_dir
        program = bin_dir / "pg_restore" if (bin_dir / "pg_restore").exists() else "pg_restore"
        # As SQL to nowhere, so that every row is read.
        with Pipeline([UNPACK, Command([program, "--file=-"])], stdin=stream) as pipeline:
            tables = sum(chunk.count(b"CREATE TABLE") for chunk in pipeline.chunks())
            pipeline.finish()
        return "" if tables else f"{name} is empty: it makes no table"
    if name.endswith(".sql.gz"):
        output(Command(["gzip", "--test"]), stdin=stream)
    elif name.endswith(".rdb.zst"):
        with Pipeline([UNPACK], stdin=stream) as pipeline:
            start = drain(pipeline)
        return "" if start.startswith(redis_dump.MAGIC) else f"{name} holds no RDB file"
    elif name.endswith(".tar.zst"):
        with Pipeline([UNPACK, Command(["tar", "--list", "--file=-"])], stdin=stream) as pipeline:
            drain(pipeline)
    elif name.endswith(".age"):
        return "" if stream.read(len(AGE_MAGIC)) == AGE_MAGIC else f"{name} is not encrypted by age"
    elif name.endswith(".json"):
        json.loads(stream.read())
    return ""


def compare(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return a problem when the places describe different sets."""
    lists = {str([(file.name, file.size, file.sha256) for file in manifest.files(document)]) for document in documents}
    return "the manifests of the places differ" if len(lists) > 1 else ""


def problems_at(
    config: Config, set_id: str, shelf: Shelf, found: sets.Found, report: Report, light: bool, deep: bool
) -> list[str]:
    """Return what is wrong with a set at one place. ``light``: only sizes are compared."""
    if found.problem:
        return [found.problem]
    files = manifest.files(found.document)
    if isinstance(shelf, sets.S3Shelf) and light:
        return sizes(shelf, set_id, files)
    problems = []
    for file in files:
        try:
            text = sums(shelf, set_id, file, report.progress)
            if not text and deep:
                with opened(shelf, set_id, file.name) as stream:
                    text = readable(config, file.name, stream)
        except s3.MissingError:
            text = f"{file.name} is missing"
        except (BackupError, OSError, ValueError) as error:
            text = f"{file.name} cannot be read: {error}"
        if text:
            problems.append(text)
    return problems


def verify(config: Config, set_id: str, where: Sequence[Shelf], report: Report, deep: bool) -> dict[str, Any]:
    """Check a set at its places and add what was found to each copy's verification; return an entry for all of them.

    What lies in the object store beside a local copy is only read again with ``deep``.
    """
    key = config.secret(manifest.SIGNING_KEY)
    kind = verification.ARCHIVE if deep else verification.CHECKSUMS
    copies = {shelf.name: sets.look(shelf, set_id, key) for shelf in where}
    good = [found for found in copies.values() if not found.problem]
    difference = compare([found.document for found in good])
    every: list[str] = []
    for shelf in where:
        light = not deep and len(where) > 1
        problems = problems_at(config, set_id, shelf, copies[shelf.name], report, light, deep)
        problems += [difference] if difference else []
        every += [f"{shelf.name}: {text}" for text in problems]
        note = verification.entry(kind, problems, detail=human_size(copies[shelf.name].size))
        for text in sets.record(config, set_id, note, [shelf]):
            report.warn(f"the result could not be noted: {text}")
    report.clear()
    for text in every:
        report.problem(f"{set_id}: {text}")
    detail = f"{human_size(max((found.size for found in good), default=0))}, {' and '.join(copies)}"
    if not every:
        state.update(config, {"verified": {"at": time.time(), "set": set_id}})
        report.say(f"verified {set_id} by {kind}: {detail}")
    return verification.entry(kind, every, detail=detail)

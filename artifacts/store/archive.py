# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpacks what vendors ship, and packs releases so that the same input always gives the same bits."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from artifacts.store.errors import BuildError, FetchError
from artifacts.store.progress import Reporter, human_size
from artifacts.store.run import need_program

CHUNK = 1024 * 1024
RELEASE_MTIME = 499162500  # 1985-10-26, the date npm gives to every file: one date for all, so that the bits repeat
ZSTD = ("-T0", "-8", "--no-progress", "-q")


def sha256_of(path: Path) -> str:
    """Hash a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def unpack(archive: Path, target: Path, files: Mapping[str, str]) -> None:
    """Take ``files`` out of a zip or tar.

    They are given as path in the archive -> path below ``target``; a trailing slash means a directory.
    Entries that would land outside ``target`` are refused, and so are device files.
    An archive that lacks one of the wanted paths is an error: it is not the archive the catalogue was written for.
    """
    wanted = files or {"": ""}
    seen: set[str] = set()
    members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    try:
        for name, mode, link, open_member in members(archive):
            rule, destination = _destination(name, wanted)
            if destination is None:
                continue
            seen.add(rule)
            _extract(target, destination, mode, link, open_member)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise FetchError(f"{archive.name} is damaged or not a zip or tar archive: {error}") from error
    missing = [rule for rule in wanted if rule not in seen]
    if missing:
        raise FetchError(f"{archive.name} does not hold {', '.join(missing)}; correct `files` in the catalogue")


Member = tuple[str, int, str | None, Callable[[], "IO[bytes]"]]


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as handle:
        for info in handle.infolist():
            mode = info.external_attr >> 16
            link = handle.read(info).decode() if stat.S_ISLNK(mode) else None
            if not info.is_dir():
                yield info.filename, mode, link, lambda info=info: handle.open(info)  # type: ignore[misc]


def _tar_members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive, "r:*") as handle:
        for info in handle:
            if info.isdir():
                continue
            if not (info.isreg() or info.issym()):
                raise FetchError(f"{archive.name}: refusing {info.name}: neither a file nor a symbolic link")
            link = info.linkname if info.issym() else None
            yield info.name, info.mode, link, lambda info=info: _opened(handle, info)  # type: ignore[misc]


def _opened(handle: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    opened = handle.extractfile(info)
    if opened is None:  # only for entries that are no files, which never get here
        raise FetchError(f"{info.name} cannot be read")
    return opened


def _destination(name: str, wanted: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the rule that applies to an entry and the path it goes to, or None if the entry is not wanted."""
    name = name.removeprefix("./")
    for source, destination in wanted.items():
        if name == source:
            return source, destination
        if source == "" or (source.endswith("/") and name.startswith(source)):
            return source, destination + name[len(source) :]
    return "", None


def _extract(target: Path, destination: str, mode: int, link: str | None, open_member: Callable[[], IO[bytes]]) -> None:
    path = _inside(target, destination)
    root = target.resolve()
    parent = path.parent.resolve()  # follows links that came earlier in the archive
    if not parent.is_relative_to(root):
        raise FetchError(f"refusing archive entry {destination!r}: a link leads it outside the release")
    parent.mkdir(parents=True, exist_ok=True)
    if link is not None:
        if not Path(os.path.realpath(parent / link)).is_relative_to(root):
            raise FetchError(f"refusing link {destination} -> {link}: it leads outside the release")
        path.unlink(missing_ok=True)
        path.symlink_to(link)
        return
    path.unlink(missing_ok=True)
    with open_member() as source, path.open("wb") as sink:
        shutil.copyfileobj(source, sink, CHUNK)
    path.chmod(0o755 if mode & 0o111 else 0o644)


def _inside(target: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise FetchError(f"refusing archive entry {name!r}: it would be written outside the release")
    return target.joinpath(*pure.parts)


def prune(tree: Path, patterns: list[str], keep: list[str]) -> tuple[int, int]:
    """Remove files of a release that match a pattern and none of ``keep``; returns their number and bytes.

    A pattern without a slash is compared with the file's name, one with a slash with its path in the release.
    """
    if not patterns:
        return 0, 0
    unwanted, wanted = _matcher(patterns), _matcher(keep)
    removed = size = 0
    for directory, subdirectories, files in os.walk(tree, topdown=False):
        relative = os.path.relpath(directory, tree)
        prefix = "" if relative == "." else relative + "/"
        doomed = [file for file in files if unwanted(file, prefix + file) and not wanted(file, prefix + file)]
        for file in doomed:
            path = os.path.join(directory, file)
            size += os.lstat(path).st_size
            os.unlink(path)
        removed += len(doomed)
        left = [name for name in subdirectories if os.path.lexists(os.path.join(directory, name))]
        if prefix and not left and len(doomed) == len(files):
            os.rmdir(directory)
    return removed, size


def _matcher(patterns: list[str]) -> Callable[[str, str], bool]:
    """Return a fast test of (file name, path) against many patterns: a release has 150,000 files."""

    def compiled(some: list[str]) -> re.Pattern[str] | None:
        return re.compile("|".join(f"(?:{fnmatch.translate(pattern)})" for pattern in some)) if some else None

    by_name = compiled([pattern for pattern in patterns if "/" not in pattern])
    by_path = compiled([pattern for pattern in patterns if "/" in pattern])

    def matches(name: str, path: str) -> bool:
        return bool((by_name and by_name.match(name)) or (by_path and by_path.match(path)))

    return matches


@dataclass(frozen=True)
class Packed:
    """What was written: hash and bytes of the compressed file, hash of the tar inside it, number of entries."""

    sha256: str
    size: int
    content_sha256: str
    entries: int


class _HashingPipe:
    """A file-like sink that hashes what goes through it."""

    def __init__(self, sink: IO[bytes]) -> None:
        self._sink = sink
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._sink.write(data)


def pack(tree: Path, target: Path, label: str, reporter: Reporter) -> Packed:
    """Write the content of ``tree`` as a reproducible tar compressed with zstd.

    Entries are sorted, belong to 0:0, have one date and mode 0755 or 0644.
    """
    zstd = need_program("zstd", "to pack releases", "apt install zstd")
    entries = 0
    with target.open("wb") as output:
        process = subprocess.Popen([zstd, *ZSTD, "-c"], stdin=subprocess.PIPE, stdout=output, stderr=subprocess.PIPE)
        if process.stdin is None or process.stderr is None:
            raise BuildError("no pipe to zstd")
        pipe = _HashingPipe(process.stdin)
        try:
            with tarfile.open(fileobj=pipe, mode="w|", format=tarfile.GNU_FORMAT) as tar:  # type: ignore[call-overload]
                for relative in _walk(tree):
                    _add(tar, tree, relative)
                    entries += 1
                    reporter.tick(f"{label}: {entries} files, {human_size(pipe.size)}")
            process.stdin.close()
        except BrokenPipeError:
            entries = -1
        message = process.stderr.read().decode(errors="replace").strip()
        if process.wait() != 0 or entries < 0:
            raise BuildError(f"{label}: zstd failed: {message or 'it stopped reading'} (is the disk full?)")
    return Packed(sha256_of(target), target.stat().st_size, pipe.digest.hexdigest(), entries)


def _walk(tree: Path) -> Iterator[str]:
    """Every directory, file and link below ``tree``, sorted, directories before their content."""
    for directory, subdirectories, files in os.walk(tree):
        links = [name for name in subdirectories if os.path.islink(os.path.join(directory, name))]
        subdirectories[:] = sorted(name for name in subdirectories if name not in links)
        relative = os.path.relpath(directory, tree)
        prefix = "" if relative == "." else relative + "/"
        if prefix:
            yield relative
        for name in sorted([*files, *links]):
            yield prefix + name


def _add(tar: tarfile.TarFile, tree: Path, relative: str) -> None:
    path = tree / relative
    status = path.lstat()
    info = tarfile.TarInfo(relative)
    info.mtime = RELEASE_MTIME
    if stat.S_ISLNK(status.st_mode):
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
        tar.addfile(info)
    elif stat.S_ISDIR(status.st_mode):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(info)
    else:
        info.size, info.mode = status.st_size, 0o755 if status.st_mode & 0o111 else 0o644
        with path.open("rb") as handle:
            tar.addfile(info, handle)


def extract(archive: Path, target: Path) -> None:
    """Unpack an artifact of the store into the new directory ``target``, as the hosts do it."""
    need_program("zstd", "to unpack releases", "apt install zstd")
    target.mkdir(parents=True)
    command = ["tar", "--use-compress-program=zstd", "-xf", str(archive), "-C", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"cannot unpack {archive}: {done.stderr.strip()}")

# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetches one file from one source.

Registries are asked through their ordinary clients, so that the mirrors, proxies and certificates a company has set
up for pip, npm and Maven apply without any setting here.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from artifacts.store.archive import sha256_of
from artifacts.store.artifact import Job
from artifacts.store.catalogue import Source
from artifacts.store.download import checksum_from_file, download
from artifacts.store.errors import FetchError, HashError, PinError
from artifacts.store.run import need_program, run

WHEEL_PLATFORMS = {
    arch: [f"{tag}_{machine}" for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "linux")]
    for arch, machine in (("amd64", "x86_64"), ("arm64", "aarch64"))
}


def fetch(job: Job, directory: Path, *, first_use: bool = False) -> tuple[Path, str]:
    """Get the file of a source, verified; return its path and its sha256.

    A file that lies there already and has the pinned hash is used as it is: this is how files are carried by hand.
    Without a pin the vendor's checksum file decides; ``first_use`` takes the file as it comes, to pin it.
    Raises HashError (and deletes the file) when the bits are not the expected ones.
    """
    source = job.source
    directory.mkdir(parents=True, exist_ok=True)
    carried = find_carried(source, directory)
    if carried is not None:
        job.say(f"using {carried.name}, which is already there")
        return carried, str(source.pin)
    expected, origin = source.pin, source.name
    if source.kind == "url":
        origin = source.settings["url"]
        expected = expected or (None if first_use else vendor_checksum(job, directory))
    path = FETCHERS[source.kind](job, directory)
    found = sha256_of(path)
    if expected is not None and found != expected:
        path.unlink()
        raise HashError(
            f"WRONG HASH for {job.label} from {origin}: expected sha256 {expected}, got {found}. "
            "The file was deleted and nothing was installed. Either the file was changed on its way or the catalogue "
            "names the wrong hash: compare with the checksum the vendor publishes before you change the catalogue."
        )
    return path, found


def find_carried(source: Source, directory: Path) -> Path | None:
    """Return a complete file in ``directory`` with the pinned hash, whatever its name."""
    if source.pin is None or not directory.is_dir():
        return None
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.suffix not in (".part", ".etag") and sha256_of(path) == source.pin:
            return path
    return None


def vendor_checksum(job: Job, directory: Path) -> str:
    """Return the hash the vendor publishes beside the file.

    It is weaker than a pin, because whoever changes one can change the other: used only where pins are not required.
    """
    settings, label = job.source.settings, job.label
    name = Path(urlsplit(settings["url"]).path).name
    url: str | None = settings.get("checksums")
    if url is None:
        raise PinError(f"{label}: no pinned hash, and the catalogue names no checksum file of the vendor")
    with _client_directory(directory) as own:
        listing = own / "checksums"
        download(url, listing, f"{label} checksums", job.reporter)
        found = checksum_from_file(listing.read_text(encoding="utf-8", errors="replace"), name)
    if found is None:
        raise FetchError(f"{label}: {url} has no sha256 of {name}")
    return found


def _url(job: Job, directory: Path) -> Path:
    url: str = job.source.settings["url"]
    target = directory / Path(urlsplit(url).path).name
    download(url, target, job.label, job.reporter)
    return target


def _wheel(job: Job, directory: Path) -> Path:
    settings, pin, label = job.source.settings, job.source.pin, job.label
    name = f"{settings['name']}=={job.version}"
    with _client_directory(directory) as own:
        requirement = own / "requirement.txt"
        requirement.write_text(f"{name} --hash=sha256:{pin}\n" if pin else f"{name}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
        command += ["--no-cache-dir", "--only-binary=:all:", "--progress-bar=off"]
        command += [f"--dest={own}", f"--requirement={requirement}"]
        command += [f"--platform={tag}" for tag in settings.get("platforms", WHEEL_PLATFORMS[job.arch])]
        command += ["--require-hashes"] if pin else []
        try:
            run(command, label=f"{label}: pip download {name}", reporter=job.reporter)
        except FetchError as error:
            if "DO NOT MATCH THE HASHES" in str(error):
                raise HashError(f"WRONG HASH for {label} from pip, {name}; nothing was kept. {error}") from error
            raise
        return _collect(job, own, directory, "*.whl")


def _npm(job: Job, directory: Path) -> Path:
    name = f"{job.source.settings['name']}@{job.version}"
    npm = need_program("npm", f"to fetch {name}", "apt install npm")
    with _client_directory(directory) as own:
        command = [npm, "pack", name, "--ignore-scripts", "--no-update-notifier", f"--pack-destination={own}"]
        run(command, label=f"{job.label}: npm pack {name}", reporter=job.reporter, cwd=own)
        return _collect(job, own, directory, "*.tgz")


def _maven(job: Job, directory: Path) -> Path:
    coordinates: str = job.source.settings["coordinates"]
    mvn = need_program("mvn", f"to fetch {coordinates}", "apt install maven")
    with _client_directory(directory) as own:
        command = [mvn, "--batch-mode", "--no-transfer-progress", "dependency:copy", f"-Dartifact={coordinates}"]
        command += [f"-DoutputDirectory={own}", "-Dmdep.useBaseVersion=true"]
        run(command, label=f"{job.label}: mvn dependency:copy", reporter=job.reporter, cwd=own)
        return _collect(job, own, directory, f"{coordinates.split(':')[1]}*")


@contextmanager
def _client_directory(directory: Path) -> Iterator[Path]:
    """Make a fresh directory for a client's output, so that what it left is what it fetched."""
    with tempfile.TemporaryDirectory(prefix=".client-", dir=directory) as name:
        yield Path(name)


def _collect(job: Job, own: Path, directory: Path, pattern: str) -> Path:
    found = sorted(own.glob(pattern))
    if len(found) != 1:
        raise FetchError(f"{job.label}: the client ended well but left {len(found)} files {pattern}, not one")
    target = directory / found[0].name
    os.replace(found[0], target)
    return target


FETCHERS: dict[str, Callable[[Job, Path], Path]] = {"url": _url, "wheel": _wheel, "npm": _npm, "maven": _maven}

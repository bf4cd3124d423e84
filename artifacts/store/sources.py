"""Fetches one file from one source. Registries are asked through their ordinary clients, so that the mirrors,
proxies and certificates a company has set up for pip, npm, Maven and Go apply without any setting here."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from artifacts.store.archive import sha256_of
from artifacts.store.catalogue import Source
from artifacts.store.download import checksum_from_file, download
from artifacts.store.errors import FetchError, HashError, PinError, UsageError
from artifacts.store.progress import Reporter
from artifacts.store.run import need_program, run

WHEEL_PLATFORMS = {
    "amd64": ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "linux_x86_64"],
    "arm64": ["manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64", "linux_aarch64"],
}


def fetch(source: Source, version: str, arch: str, directory: Path, label: str, reporter: Reporter) -> tuple[Path, str]:
    """Get the file of ``source`` into ``directory``, verified; returns its path and its sha256.

    A file already in ``directory`` that has the pinned hash is used as it is: this is how files are carried by hand.
    Raises HashError (and deletes the file) when the bits are not the pinned ones.
    """
    directory.mkdir(parents=True, exist_ok=True)
    carried = find_carried(source, directory)
    if carried is not None:
        reporter.say(f"{label}: using {carried.name}, which is already there")
        return carried, str(source.pin)
    path, expected, origin = FETCHERS[source.kind](source, version, arch, directory, label, reporter)
    found = sha256_of(path)
    if expected is not None and found != expected:
        path.unlink()
        raise HashError(
            f"WRONG HASH for {label} from {origin}: expected sha256 {expected}, got {found}. "
            "The file was deleted and nothing was installed. Either the download was tampered with or the catalogue "
            "names the wrong hash: compare with the vendor's published checksum before changing it."
        )
    return path, found


def find_carried(source: Source, directory: Path) -> Path | None:
    """A complete file in ``directory`` with the pinned hash, whatever its name."""
    if source.pin is None or not directory.is_dir():
        return None
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.suffix not in (".part", ".etag") and sha256_of(path) == source.pin:
            return path
    return None


Fetched = tuple[Path, str | None, str]


def _url(source: Source, version: str, arch: str, directory: Path, label: str, reporter: Reporter) -> Fetched:
    url: str = source.settings["url"]
    target = directory / Path(urlsplit(url).path).name
    expected = source.pin or vendor_checksum(source, directory, label, reporter)
    download(url, target, label, reporter)
    return target, expected, url


def vendor_checksum(source: Source, directory: Path, label: str, reporter: Reporter) -> str:
    """The hash the vendor publishes beside the file; weaker than a pin, because whoever changes one can change both."""
    url: str | None = source.settings.get("checksums")
    name = Path(urlsplit(source.settings["url"]).path).name
    if url is None:
        raise PinError(f"{label}: no pinned hash, and the catalogue names no checksum file of the vendor")
    listing = directory / "checksums"
    download(url, listing, f"{label} checksums", reporter)
    found = checksum_from_file(listing.read_text(encoding="utf-8", errors="replace"), name)
    listing.unlink()
    if found is None:
        raise FetchError(f"{label}: {url} has no sha256 of {name}")
    return found


def _wheel(source: Source, version: str, arch: str, directory: Path, label: str, reporter: Reporter) -> Fetched:
    name = f"{source.settings['name']}=={version}"
    requirement = directory / "requirement.txt"
    requirement.write_text(f"{name} --hash=sha256:{source.pin}\n" if source.pin else f"{name}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", "--progress-bar=off", f"--dest={directory}", f"--requirement={requirement}"]
    command += [f"--platform={platform}" for platform in source.settings.get("platforms", WHEEL_PLATFORMS[arch])]
    command += ["--require-hashes"] if source.pin else []
    try:
        run(command, label=f"{label}: pip download {name}", reporter=reporter)
    except FetchError as error:
        if "THESE PACKAGES DO NOT MATCH THE HASHES" in str(error):
            raise HashError(f"WRONG HASH for {label}: pip refused {name}; nothing was kept.\n{error}") from error
        raise
    finally:
        requirement.unlink()
    return _only(directory, "*.whl", name), source.pin, f"pip, {name}"


def _npm(source: Source, version: str, arch: str, directory: Path, label: str, reporter: Reporter) -> Fetched:
    name = f"{source.settings['name']}@{version}"
    npm = need_program("npm", f"to fetch {name}", "apt install npm")
    command = [npm, "pack", name, "--ignore-scripts", "--no-update-notifier", f"--pack-destination={directory}"]
    run(command, label=f"{label}: npm pack {name}", reporter=reporter, cwd=directory)
    return _only(directory, "*.tgz", name), source.pin, f"npm, {name}"


def _maven(source: Source, version: str, arch: str, directory: Path, label: str, reporter: Reporter) -> Fetched:
    coordinates: str = source.settings["coordinates"]
    mvn = need_program("mvn", f"to fetch {coordinates}", "apt install maven")
    command = [mvn, "--batch-mode", "--no-transfer-progress", "dependency:copy", f"-Dartifact={coordinates}"]
    command += [f"-DoutputDirectory={directory}", "-Dmdep.useBaseVersion=true"]
    run(command, label=f"{label}: mvn dependency:copy {coordinates}", reporter=reporter, cwd=directory)
    artifact = coordinates.split(":")[1]
    return _only(directory, f"{artifact}*", coordinates), source.pin, f"Maven, {coordinates}"


def _only(directory: Path, pattern: str, name: str) -> Path:
    found = [path for path in directory.glob(pattern) if path.suffix not in (".part", ".etag")]
    if not found:
        raise FetchError(f"{name}: the client ended well but left no {pattern} in {directory}")
    return max(found, key=lambda path: path.stat().st_mtime)


def forget(directory: Path) -> None:
    """Remove what was fetched, once it is packed."""
    shutil.rmtree(directory, ignore_errors=True)


Fetcher = Callable[[Source, str, str, Path, str, Reporter], Fetched]
FETCHERS: dict[str, Fetcher] = {"url": _url, "wheel": _wheel, "npm": _npm, "maven": _maven}


def fetcher_exists(source: Source) -> None:
    """Refuse a kind that is built, not fetched, where only a fetch makes sense."""
    if source.kind not in FETCHERS:
        raise UsageError(f"source {source.name} is built, not downloaded: it has no single file")

"""The store: a directory in which every program of the catalogue ends as one uniform, verified file.

    <store>/<tool>/<version>/<tool>-<version>-linux-<arch>.tar.zst   the content of the release directory
    <store>/<tool>/<version>/<tool>-<version>-linux-<arch>.json      its manifest
    <store>/downloads/<tool>/<version>/                              files on their way, or carried here by hand
    <store>/.cache, .locks, .tmp                                     may be deleted when nothing runs
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts.store import go_build, npm_release, sources
from artifacts.store.archive import pack, prune, sha256_of, unpack
from artifacts.store.catalogue import LOCKED, Source, Tool
from artifacts.store.errors import BuildError, FetchError, HashError, MissingError, PinError, StoreError, UsageError
from artifacts.store.lock import locked
from artifacts.store.progress import Reporter, human_size
from artifacts.store.run import need_program

MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def default_directory() -> Path:
    """Where the store lies unless the user says otherwise."""
    named = os.environ.get("N8N_PLATFORM_ARTIFACTS")
    if named:
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "n8n-platform" / "artifacts"


def machine_arch() -> str:
    """The architecture of this machine, in the distribution's words."""
    machine = platform.machine()
    if machine not in MACHINES:
        raise UsageError(f"architecture {machine} is not supported; say --arch amd64 or --arch arm64")
    return MACHINES[machine]


@dataclass(frozen=True)
class Artifact:
    """One file of the store with what its manifest says."""

    tool: str
    version: str
    arch: str
    path: Path
    manifest: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """What playbooks need to know."""
        return {
            "tool": self.tool,
            "version": self.version,
            "arch": self.arch,
            "path": str(self.path),
            "sha256": self.manifest["sha256"],
            "size": self.manifest["size"],
        }


@dataclass(frozen=True)
class Options:
    """How ``ensure`` may get what is missing."""

    offline: bool = False
    require_pins: bool = True
    source: str | None = None


class Store:
    """A store directory together with the catalogue it is filled from."""

    def __init__(self, directory: Path, catalogue: dict[str, Tool], reporter: Reporter) -> None:
        self.directory = directory
        self.catalogue = catalogue
        self.reporter = reporter

    def tool(self, name: str) -> Tool:
        """A tool of the catalogue, or an error that lists the known ones."""
        if name not in self.catalogue:
            raise UsageError(f"{name} is not in the catalogue (known: {', '.join(self.catalogue)})")
        return self.catalogue[name]

    def path(self, tool: str, version: str, arch: str) -> Path:
        """Where an artifact lies or will lie."""
        return self.directory / tool / version / f"{tool}-{version}-linux-{arch}.tar.zst"

    def find(self, tool: str, version: str, arch: str) -> Artifact | None:
        """An artifact if it is in the store whole (its size is compared, its hash is not)."""
        path = self.path(tool, version, arch)
        try:
            manifest = json.loads(manifest_path(path).read_text(encoding="utf-8"))
            if path.stat().st_size == manifest["size"] and manifest["sha256"]:
                return Artifact(tool, version, arch, path, manifest)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        return None

    def artifacts(self) -> Iterator[Artifact]:
        """Everything in the store, known to the catalogue or not."""
        for path in sorted(self.directory.glob("*/*/*.tar.zst")):
            tool, version = path.parent.parent.name, path.parent.name
            arch = path.name.removesuffix(".tar.zst").rpartition("-")[2]
            artifact = self.find(tool, version, arch)
            if artifact is not None and artifact.path == path:
                yield artifact

    def ensure(self, name: str, version: str | None, arch: str, options: Options) -> tuple[Artifact, bool]:
        """Return an artifact, getting it first if it is missing; the flag says whether it had to be got."""
        tool = self.tool(name)
        version = tool.version(version)
        found = self.find(name, version, arch)
        if found is not None:
            return found, False
        candidates = self._candidates(tool, version, arch, options)
        label = f"{name} {version} ({arch})"
        with locked(self.directory / ".locks" / f"{name}-{version}-{arch}.lock", label, self.reporter):
            found = self.find(name, version, arch)  # the process we waited for may have done the work
            if found is not None:
                return found, False
            if options.offline:
                candidates = [source for source in candidates if sources.find_carried(source, self._downloads(tool, version))]
                if not candidates:
                    raise MissingError(self._what_is_missing(tool, version, arch))
            return self._first_that_works(tool, version, arch, candidates, label), True

    def _candidates(self, tool: Tool, version: str, arch: str, options: Options) -> list[Source]:
        """The sources that may be used, or an error that says why there is none."""
        every = tool.sources(version, arch)
        if options.source is not None:
            every = [source for source in every if source.name == options.source]
            if not every:
                raise UsageError(f"{tool.name} has no source {options.source!r}")
        usable = [source for source in every if source.pinned or not options.require_pins]
        if not usable:
            raise PinError(
                f"{tool.name} {version} ({arch}): no pinned hash for {', '.join(source.name for source in every)}, and pins "
                f"are required; add them with: make pin TOOL={tool.name} VERSION={version}"
            )
        return usable

    def _what_is_missing(self, tool: Tool, version: str, arch: str) -> str:
        path = self.path(tool.name, version, arch)
        lines = [f"{tool.name} {version} ({arch}) is not in the store, and --offline forbids to fetch it. Put there either"]
        lines.append(f"  {path}\n  {manifest_path(path)}\n  (both files, copied from the store of a connected machine)")
        for source in tool.sources(version, arch):
            if source.pin not in (None, LOCKED):
                lines.append(f"or into {self._downloads(tool, version)}/")
                lines.append(f"  the file of source {source.name}, any name, sha256 {source.pin}")
        return "\n".join(lines)

    def _downloads(self, tool: Tool, version: str) -> Path:
        return self.directory / "downloads" / tool.name / version

    def _first_that_works(self, tool: Tool, version: str, arch: str, candidates: list[Source], label: str) -> Artifact:
        """Try the sources in order; only a source that cannot be reached leads to the next one."""
        failures: list[str] = []
        for source in candidates:
            try:
                return self._make(tool, version, arch, source, label)
            except FetchError as error:
                failures.append(str(error))
                if source is not candidates[-1]:
                    self.reporter.say(f"{error}\n{label}: trying the next source")
        raise FetchError("\n".join(failures))

    def _make(self, tool: Tool, version: str, arch: str, source: Source, label: str) -> Artifact:
        """Get one artifact from one source and put it into the store in one step."""
        started = time.monotonic()
        with self.scratch(f"{tool.name}-{version}-{arch}") as scratch:
            tree = scratch / "release"
            tree.mkdir()
            origin_hash = self._fill(tool, version, arch, source, tree, scratch, label)
            _finish(tree, tool)
            self.reporter.say(f"{label}: packing")
            packed_file = scratch / "packed"
            packed = pack(tree, packed_file, f"{label}: packing", self.reporter)
            manifest = {
                "tool": tool.name,
                "version": version,
                "arch": arch,
                **asdict(packed),
                "source": source.name,
                "source_kind": source.kind,
                "source_sha256": origin_hash,
                "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - started, 1),
            }
            path = self.path(tool.name, version, arch)
            path.parent.mkdir(parents=True, exist_ok=True)
            manifest_path(path).unlink(missing_ok=True)
            os.replace(packed_file, path)
            _write(manifest_path(path), manifest)
        sources.forget(self._downloads(tool, version))
        return Artifact(tool.name, version, arch, path, manifest)

    def _fill(
        self, tool: Tool, version: str, arch: str, source: Source, tree: Path, scratch: Path, label: str
    ) -> str:
        """Put the release's files into ``tree``; returns the hash that fixes where they came from."""
        if source.kind == "npm-release":
            npm_cache = self.directory / ".cache" / "npm"
            npm_release.build(tool, version, arch, tree, self.node(), npm_cache, label, self.reporter)
            return sha256_of(tool.lock_directory(version) / "package-lock.json")
        if source.kind == "go":
            go_build.build(tool, version, arch, source, tree, scratch, label, self.reporter)
            return sha256_of(tool.lock_directory(version) / "go.sum")
        self.reporter.say(f"{label}: fetching from {source.name}")
        file, found = sources.fetch(source, version, arch, self._downloads(tool, version), label, self.reporter)
        unpack(file, tree, source.files)
        prune(tree, tool.prune(arch), tool.keep)
        return found

    def node(self) -> Path:
        """An unpacked Node.js of the store that runs on this machine; builds use it, whatever else is installed."""
        artifact, _ = self.ensure("nodejs", None, machine_arch(), Options())
        target = self.directory / ".cache" / f"nodejs-{artifact.version}-{artifact.manifest['content_sha256'][:12]}"
        with locked(self.directory / ".locks" / "node.lock", "nodejs for builds", self.reporter):
            if not target.is_dir():
                with self.scratch("node") as scratch:
                    extract(artifact.path, scratch / "node")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(scratch / "node", target)
        return target

    @contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A directory for work in progress on the store's own disk; what a killed run left in it is removed first."""
        path = self.directory / ".tmp" / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def verify(self) -> Iterator[tuple[Artifact, HashError | None]]:
        """Hash every artifact again and compare with its manifest; a wrong file is deleted, `ensure` gets it anew."""
        for artifact in self.artifacts():
            label = f"{artifact.path.name}: "
            found = sha256_of(artifact.path, lambda done, label=label: self.reporter.tick(label + human_size(done)))  # type: ignore[misc]
            error = None
            if found != artifact.manifest["sha256"]:
                artifact.path.unlink()
                manifest_path(artifact.path).unlink()
                error = HashError(
                    f"WRONG HASH in the store: {artifact.path} should be {artifact.manifest['sha256']} and is {found}; "
                    "the file was deleted, get it again with `ensure`"
                )
            yield artifact, error

    def prune(self, *, caches: bool) -> tuple[list[Path], int]:
        """Remove versions the catalogue no longer names (and the caches if asked to); returns paths and bytes."""
        doomed = [a.path for a in self.artifacts() if a.tool not in self.catalogue or a.version not in self.catalogue[a.tool].versions]
        doomed += [manifest_path(path) for path in doomed]
        if caches:
            doomed += [path for path in (self.directory / ".cache", self.directory / "downloads") if path.exists()]
        size = 0
        for path in doomed:
            size += sum(file.lstat().st_size for file in ([path] if path.is_file() else path.rglob("*")))
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return doomed, size


def manifest_path(path: Path) -> Path:
    """The manifest that belongs to an artifact."""
    return path.with_name(path.name.removesuffix(".tar.zst") + ".json")


def extract(archive: Path, target: Path) -> None:
    """Unpack an artifact of the store, as the hosts do it."""
    need_program("zstd", "to unpack releases", "apt install zstd")
    target.mkdir(parents=True)
    done = subprocess.run(
        ["tar", "--use-compress-program=zstd", "-xf", str(archive), "-C", str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(f"cannot unpack {archive}: {done.stderr.strip()}")


def _finish(tree: Path, tool: Tool) -> None:
    """Give a release its links and execute bits; an expected file that is missing means the layout has changed."""
    for name, target in tool.links.items():
        link = tree / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        if not link.exists():
            raise BuildError(f"{tool.name}: link {name} would lead nowhere; correct `links` or `files` in the catalogue")
    for name in tool.executable:
        if not (tree / name).is_file():
            raise BuildError(f"{tool.name}: {name} is not in the release; correct `files` in the catalogue")
        (tree / name).chmod(0o755)


def _write(path: Path, manifest: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


__all__ = ["Artifact", "Options", "Store", "StoreError", "default_directory", "extract", "machine_arch", "manifest_path"]

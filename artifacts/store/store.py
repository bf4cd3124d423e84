# SPDX-License-Identifier: GPL-3.0-or-later
"""The store: a directory in which every program of the catalogue ends as one uniform, verified file.

<store>/<tool>/<version>/<tool>-<version>-linux-<arch>.tar.zst   the content of the release directory
<store>/<tool>/<version>/<tool>-<version>-linux-<arch>.json      its manifest
<store>/downloads/<tool>/<version>/<arch>/                       files on their way, or carried here by hand
<store>/.cache, .locks, .tmp                                     may be deleted when nothing runs
"""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from artifacts.store import go_build, npm_release, python_release, sources
from artifacts.store.archive import extract, pack, sha256_of, unpack
from artifacts.store.artifact import Artifact, Job, machine_arch, manifest_path
from artifacts.store.catalogue import LOCKED, Source, Tool
from artifacts.store.errors import FetchError, HashError, MissingError, PinError, UsageError
from artifacts.store.lock import locked
from artifacts.store.progress import Reporter, human_size
from artifacts.store.release import finish, lock_file, recipe


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
        """Return a tool of the catalogue, or an error that lists the known ones."""
        if name not in self.catalogue:
            raise UsageError(f"{name} is not in the catalogue (known: {', '.join(self.catalogue)})")
        return self.catalogue[name]

    def path(self, tool: str, version: str, arch: str) -> Path:
        """Return where an artifact lies or will lie."""
        return self.directory / tool / version / f"{tool}-{version}-linux-{arch}.tar.zst"

    def downloads(self, tool: str, version: str, arch: str) -> Path:
        """Return where the files of its sources lie until they are packed."""
        return self.directory / "downloads" / tool / version / arch

    def find(self, tool: str, version: str, arch: str) -> Artifact | None:
        """Return an artifact if it is in the store whole (its size is compared; `verify` compares its hash)."""
        path = self.path(tool, version, arch)
        try:
            manifest = json.loads(manifest_path(path).read_text(encoding="utf-8"))
            if path.stat().st_size == manifest["size"] and manifest["sha256"]:
                return Artifact(tool, version, arch, path, manifest)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        return None

    def current(self, artifact: Artifact) -> bool:
        """Whether the catalogue of this checkout would make the same artifact again from the same source."""
        tool = self.catalogue.get(artifact.tool)
        if tool is None or artifact.arch not in tool.architectures(artifact.version):
            return False
        made = artifact.manifest.get("recipe")
        return any(
            source.name == artifact.manifest.get("source")
            and recipe(tool, artifact.version, artifact.arch, source) == made
            for source in tool.sources(artifact.version, artifact.arch)
        )

    def artifacts(self) -> Iterator[Artifact]:
        """Yield everything in the store, known to the catalogue or not."""
        for path in sorted(self.directory.glob("*/*/*.tar.zst")):
            arch = path.name.removesuffix(".tar.zst").rpartition("-")[2]
            artifact = self.find(path.parent.parent.name, path.parent.name, arch)
            if artifact is not None and artifact.path == path:
                yield artifact

    def ensure(self, name: str, version: str | None, arch: str, options: Options) -> tuple[Artifact, bool]:
        """Return an artifact, getting it first if it is missing or outdated; the flag says whether it had to be got."""
        tool = self.tool(name)
        version = tool.version(version)
        label = f"{name} {version} ({arch})"
        candidates = tool.sources(version, arch)
        found = self._usable(name, version, arch, options)
        if found is not None:
            return found, False
        candidates = _allowed(tool, version, candidates, options)
        with locked(self.directory / ".locks" / f"{name}-{version}-{arch}.lock", label, self.reporter):
            found = self._usable(name, version, arch, options)  # the process we waited for may have done the work
            if found is not None:
                return found, False
            if options.offline:
                there = self.downloads(name, version, arch)
                candidates = [source for source in candidates if sources.find_carried(source, there)]
                if not candidates:
                    raise MissingError(self._what_is_missing(tool, version, arch))
            jobs = [Job(tool, version, arch, source, self.reporter) for source in candidates]
            return self._first_that_works(jobs), True

    def _usable(self, tool: str, version: str, arch: str, options: Options) -> Artifact | None:
        found = self.find(tool, version, arch)
        if found is None or not self.current(found) or (options.require_pins and not found.manifest.get("pinned")):
            return None
        return found

    def _what_is_missing(self, tool: Tool, version: str, arch: str) -> str:
        path = self.path(tool.name, version, arch)
        state = "is in the store but was made from another catalogue" if path.exists() else "is not in the store"
        lines = [
            f"{tool.name} {version} ({arch}) {state}, and --offline forbids to fetch it. Put there these two files, "
            f"copied from the store of a connected machine:\n  {path}\n  {manifest_path(path)}"
        ]
        lines += [
            f"or the file of source {source.name} (any name, sha256 {source.pin}) into\n"
            f"  {self.downloads(tool.name, version, arch)}/"
            for source in tool.sources(version, arch)
            if source.pin not in (None, LOCKED)
        ]
        return "\n".join(lines)

    def _first_that_works(self, jobs: list[Job]) -> Artifact:
        """Try the sources in order; only a source that cannot be reached leads to the next one."""
        failures: list[str] = []
        for job in jobs:
            try:
                return self._make(job)
            except FetchError as error:
                failures.append(str(error))
                if job is not jobs[-1]:
                    job.say(f"{error}\n  trying the next source")
        raise FetchError("\n".join(failures))

    def _make(self, job: Job) -> Artifact:
        """Get one artifact from one source and put it into the store in one step."""
        started = time.monotonic()
        name, version, arch = job.tool.name, job.version, job.arch
        path = self.path(name, version, arch)
        with self.scratch(f"{name}-{version}-{arch}") as scratch:
            tree = scratch / "release"
            tree.mkdir()
            origin = self._fill(job, tree, scratch)
            removed, size = finish(tree, job.tool, arch)
            without = f", without {removed} files ({human_size(size)}) that no host needs" if removed else ""
            job.say(f"packing{without}")
            packed = pack(tree, scratch / "packed", job.label, self.reporter)
            manifest = {"tool": name, "version": version, "arch": arch, **asdict(packed)}
            manifest |= {"source": job.source.name, "source_kind": job.source.kind, "source_sha256": origin}
            manifest |= {"pinned": job.source.pinned, "recipe": recipe(job.tool, version, arch, job.source)}
            manifest |= {"created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")}
            manifest |= {"seconds": round(time.monotonic() - started, 1)}
            text = scratch / "manifest"
            text.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            path.parent.mkdir(parents=True, exist_ok=True)
            manifest_path(path).unlink(missing_ok=True)
            os.replace(scratch / "packed", path)
            os.replace(text, manifest_path(path))
        shutil.rmtree(self.downloads(name, version, arch), ignore_errors=True)
        return Artifact(name, version, arch, path, manifest)

    def _fill(self, job: Job, tree: Path, scratch: Path) -> str:
        """Put the release's files into ``tree``; return the sha256 of the file that fixes where they came from."""
        if job.source.kind == "npm-release":
            npm_release.build(job, tree, self.npm())
        elif job.source.kind == "go":
            go_build.build(job, tree, scratch)
        elif job.source.kind == "python":
            python_release.build(job, tree)
        lock = lock_file(job.tool, job.version, job.source)
        if lock is not None:
            return sha256_of(lock)
        job.say(f"fetching from {job.source.name}")
        file, found = sources.fetch(job, self.downloads(job.tool.name, job.version, job.arch))
        unpack(file, tree, job.source.files)
        return found

    def npm(self) -> list[str]:
        """Return the command of the npm that builds use, with a download cache that makes a rebuild quick."""
        return npm_release.npm_command(self.node(), self.directory / ".cache" / "npm")

    def node(self) -> Path:
        """Return an unpacked Node.js of the store for this machine; builds use it, whatever else is installed."""
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
        """Make a directory for work on the store's own disk; what a killed run left in it is removed first."""
        path = self.directory / ".tmp" / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def verify(self) -> Iterator[tuple[Artifact, HashError | None]]:
        """Hash every artifact again; a wrong file is deleted, so that `ensure` gets it anew."""
        for artifact in self.artifacts():
            self.reporter.tick(f"{artifact}: hashing")
            found, error = sha256_of(artifact.path), None
            if found != artifact.manifest["sha256"]:
                artifact.path.unlink()
                manifest_path(artifact.path).unlink()
                error = HashError(
                    f"WRONG HASH in the store: {artifact.path} should be sha256 {artifact.manifest['sha256']} and is "
                    f"{found}; the file was deleted, get it again with `ensure {artifact.tool}@{artifact.version}`"
                )
            yield artifact, error

    def prune(self, *, caches: bool) -> tuple[list[Path], int]:
        """Remove versions the catalogue no longer names (and the caches if asked to); returns paths and bytes."""
        known = {(tool.name, version) for tool in self.catalogue.values() for version in tool.versions}
        doomed = [a.path for a in self.artifacts() if (a.tool, a.version) not in known]
        doomed += [manifest_path(path) for path in doomed]
        if caches:
            doomed += [path for name in (".cache", ".tmp", "downloads") if (path := self.directory / name).exists()]
        size = 0
        for path in doomed:
            if path.is_dir():
                size += sum(file.lstat().st_size for file in path.rglob("*"))
                shutil.rmtree(path)
            else:
                size += path.stat().st_size
                path.unlink()
        return doomed, size


def _allowed(tool: Tool, version: str, every: list[Source], options: Options) -> list[Source]:
    """Return the sources that may be used, or an error that says why there is none."""
    if options.source is not None:
        every = [source for source in every if source.name == options.source]
        if not every:
            raise UsageError(f"{tool.name} has no source {options.source!r}")
    usable = [source for source in every if source.pinned or not options.require_pins]
    if not usable:
        names = ", ".join(source.name for source in every)
        raise PinError(
            f"{tool.name} {version}: no pinned hash for source {names}, and pins are required; "
            f"add it with: make pin TOOL={tool.name} VERSION={version}"
        )
    return usable

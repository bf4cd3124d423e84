# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns a source into the directory a host gets: unpack or build, prune, overlay, links and execute bits."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from artifacts.store import go_build, npm_release, python_release
from artifacts.store.archive import prune, sha256_of
from artifacts.store.catalogue import Source, Tool
from artifacts.store.errors import BuildError

FORMAT = 1  # raise it when this package starts to make other bits from the same catalogue


def lock_file(tool: Tool, version: str, source: Source) -> Path | None:
    """Return the committed file that fixes what a built release consists of; None for a downloaded one."""
    names = {"npm-release": npm_release.LOCK_FILES[-1], "go": go_build.LOCK_FILES[-1]}
    names |= {"python": python_release.LOCK_FILES[-1]}
    return tool.lock_directory(version) / names[source.kind] if source.kind in names else None


def recipe(tool: Tool, version: str, arch: str, source: Source) -> str:
    """Return a hash of everything in the repository that decides the content of a release.

    It is kept in the manifest, so that a changed pin, prune rule or overlay makes `ensure` build the release anew
    instead of handing out what an older checkout made.
    """
    lock = lock_file(tool, version, source)
    overlay = tool.overlay
    own = go_build.own_sources(tool.lock_directory(version)) if source.kind == "go" else []
    parts = {
        "format": FORMAT,
        "kind": source.kind,
        "pin": source.pin,
        "settings": {key: source.settings.get(key) for key in ("files", "packages", "ldflags", "tags")},
        "executable": tool.executable,
        "links": tool.links,
        "prune": tool.prune(arch),
        "keep": tool.keep,
        "overlay": {str(path.relative_to(overlay)): sha256_of(path) for path in _overlay_files(overlay)},
        "lock": sha256_of(lock) if lock and lock.is_file() else None,
    }
    if own:  # only then, so that what older checkouts built stays current
        parts["sources"] = {path.name: sha256_of(path) for path in own}
    if source.kind == "python":
        parts["python"] = source.settings["python"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def finish(tree: Path, tool: Tool, arch: str) -> tuple[int, int]:
    """Prune a filled tree and give it its overlay, links and execute bits; returns files and bytes pruned.

    A path that the catalogue names and the tree lacks is an error: the vendor has changed the layout.
    """
    pruned = prune(tree, tool.prune(arch), tool.keep)
    for path in _overlay_files(tool.overlay):
        target = tree / path.relative_to(tool.overlay)
        if not target.exists():
            gone = target.relative_to(tree)
            raise BuildError(f"{tool.name}: the overlay replaces {gone}, which is no longer in the release")
        shutil.copyfile(path, target)
    for name, destination in tool.links.items():
        link = tree / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(destination)
        if not link.exists():
            raise BuildError(f"{tool.name}: link {name} would lead nowhere; correct `links` in the catalogue")
    for name in tool.executable:
        if not (tree / name).is_file():
            raise BuildError(f"{tool.name}: {name} is not in the release; correct `files` in the catalogue")
        (tree / name).chmod(0o755)
    return pruned


def _overlay_files(overlay: Path) -> list[Path]:
    return sorted(path for path in overlay.rglob("*") if path.is_file()) if overlay.is_dir() else []

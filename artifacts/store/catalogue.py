# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue: one YAML file per tool that says which versions exist, with which hashes, from where.

    description: what it is
    default: "1.2.3"
    sources:                  # in order of preference
      upstream: {kind: url, url: ..., checksums: ..., files: {path in archive: path in release}}
      wheel: {kind: wheel, name: ..., files: {...}}
    versions:                 # the last key of the file: `pin` writes it
      "1.2.3":
        amd64: {wheel: <sha256>}

``{version}``, ``{arch}`` and the names under ``arch_names`` of a source are replaced in its texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from artifacts.store.errors import UsageError

ARCHITECTURES = ("amd64", "arm64")
LOCKED = "locked"  # the value of a source whose integrity is a committed lock file, not one hash
SOURCE_KEYS: dict[str, tuple[set[str], set[str]]] = {  # kind -> (required, optional)
    "url": ({"url"}, {"checksums", "files", "arch_names"}),
    "wheel": ({"name"}, {"files", "arch_names", "platforms"}),
    "npm": ({"name"}, {"files", "arch_names"}),
    "maven": ({"coordinates"}, {"files", "arch_names"}),
    "go": ({"packages"}, {"ldflags", "tags", "revision", "arch_names"}),
    "npm-release": ({"package"}, {"arch_names"}),
    "python": ({"requirements", "python"}, {"arch_names"}),
}
REQUIRED_KEYS = ("description", "default", "sources", "versions")
TOOL_KEYS = {*REQUIRED_KEYS, "homepage", "executable", "links", "prune", "keep", "overrides"}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """One way to get one version of a tool for one architecture, with all placeholders filled in."""

    name: str
    kind: str
    pin: str | None
    settings: Mapping[str, Any]

    @property
    def pinned(self) -> bool:
        """Whether the bits are fixed by a hash or by a committed lock file."""
        return self.pin is not None

    @property
    def files(self) -> dict[str, str]:
        """Paths in the archive (a trailing slash means a directory) and where they go in the release."""
        return dict(self.settings.get("files", {}))


@dataclass(frozen=True)
class Tool:
    """One file of the catalogue."""

    name: str
    directory: Path
    data: Mapping[str, Any] = field(repr=False)

    @property
    def description(self) -> str:
        """One line for people."""
        return str(self.data.get("description", ""))

    @property
    def default(self) -> str:
        """The version used when none is asked for."""
        return str(self.data["default"])

    @property
    def versions(self) -> list[str]:
        """Known versions, in the order of the file."""
        return list(self.data["versions"])

    @property
    def executable(self) -> list[str]:
        """Paths in the release that must be executable."""
        return list(self.data.get("executable", []))

    @property
    def links(self) -> dict[str, str]:
        """Symbolic links the release gets: path -> target."""
        return dict(self.data.get("links", {}))

    @property
    def overrides(self) -> dict[str, str]:
        """Overrides for npm, written into the package.json of a new version."""
        return dict(self.data.get("overrides", {}))

    def prune(self, arch: str) -> list[str]:
        """Return patterns of files that a release for ``arch`` does not need."""
        groups: Mapping[str, list[str]] = self.data.get("prune", {})
        return [*groups.get("all", []), *groups.get(arch, [])]

    @property
    def keep(self) -> list[str]:
        """Patterns of files that stay even if `prune` names them."""
        return list(self.data.get("keep", []))

    @property
    def overlay(self) -> Path:
        """Committed files that replace files of the release; the directory may be absent."""
        return self.directory / self.name / "overlay"

    def lock_directory(self, version: str) -> Path:
        """Return where the committed lock files of a built release lie."""
        return self.directory / self.name / version

    def version(self, wanted: str | None) -> str:
        """Check a wanted version, or give the default one."""
        version = wanted or self.default
        if version not in self.data["versions"]:
            known = ", ".join(self.versions)
            raise UsageError(
                f"{self.name} {version} is not in the catalogue (known: {known}); "
                f"add it with: make pin TOOL={self.name} VERSION={version}"
            )
        return version

    def architectures(self, version: str) -> list[str]:
        """Return the architectures ``version`` can be had for."""
        return list(self.data["versions"].get(version, {}))

    def sources(self, version: str, arch: str, *, strict: bool = True) -> list[Source]:
        """Return the sources in order of preference; ``strict`` refuses a version the catalogue does not hold yet."""
        per_arch = self.data["versions"].get(version, {})
        if strict and arch not in per_arch:
            known = ", ".join(per_arch) or "none"
            raise UsageError(f"{self.name} {version} is not in the catalogue for {arch} (known architectures: {known})")
        pins: Mapping[str, Any] = per_arch.get(arch) or {}
        return [
            Source(name, settings["kind"], pins.get(name), _fill(settings, self.name, version, arch))
            for name, settings in self.data["sources"].items()
        ]


def load_catalogue(directory: Path) -> dict[str, Tool]:
    """Read and check every ``*.yml`` of ``directory``."""
    files = sorted(directory.glob("*.yml"))
    if not files:
        raise UsageError(f"no catalogue files (*.yml) in {directory}; run this from the root of the repository")
    return {path.stem: load_tool(path) for path in files}


def load_tool(path: Path) -> Tool:
    """Read and check one file of the catalogue; problems are reported with the name of the file and the key."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(data, dict) or not _NAME.fullmatch(path.stem):
        raise UsageError(f"{path}: a catalogue file is a mapping in a file named <tool>.yml")
    for problem in _problems(data):
        raise UsageError(f"{path}: {problem}")
    return Tool(path.stem, path.parent, data)


def _problems(data: dict[str, Any]) -> list[str]:
    """Return everything wrong with a catalogue file, in words."""
    found = [f"unknown key {key!r}" for key in data if key not in TOOL_KEYS]
    found += [f"missing key {key!r}" for key in REQUIRED_KEYS if key not in data]
    if found:
        return found
    for name, settings in data["sources"].items():
        kind = settings.get("kind")
        if kind not in SOURCE_KEYS:
            found.append(f"source {name}: unknown kind {kind!r} (known: {', '.join(SOURCE_KEYS)})")
            continue
        required, optional = SOURCE_KEYS[kind]
        found += [f"source {name}: missing key {key!r}" for key in sorted(required - set(settings))]
        unknown = set(settings) - required - optional - {"kind"}
        found += [f"source {name}: unknown key {key!r}" for key in sorted(unknown)]
    for version, per_arch in data["versions"].items():
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            found.append(f"version {version!r}: write versions as quoted text")
            continue
        for arch, pins in per_arch.items():
            where = f"version {version}, {arch}"
            if arch not in ARCHITECTURES:
                found.append(f"{where}: unknown architecture (known: {', '.join(ARCHITECTURES)})")
            for name, pin in (pins or {}).items():
                if name not in data["sources"]:
                    found.append(f"{where}: unknown source {name!r}")
                elif pin != LOCKED and not _SHA256.fullmatch(str(pin)):
                    found.append(f"{where}, source {name}: not a sha256 (64 lower-case hexadecimal digits)")
    if data["default"] not in data["versions"]:
        found.append(f"default {data['default']!r} is not one of the versions")
    return found


def _fill(settings: Mapping[str, Any], tool: str, version: str, arch: str) -> dict[str, Any]:
    """Replace the placeholders in every text of a source."""
    words = {"tool": tool, "version": version, "arch": arch}
    words.update({key: names[arch] for key, names in settings.get("arch_names", {}).items()})

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return re.sub(r"\{(\w+)\}", lambda match: words.get(match[1], match[0]), value)
        if isinstance(value, dict):
            return {fill(key): fill(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [fill(inner) for inner in value]
        return value

    return {key: fill(value) for key, value in settings.items() if key != "arch_names"}

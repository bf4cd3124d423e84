# SPDX-License-Identifier: GPL-3.0-or-later
"""Adds a version to the catalogue: hashes for every source that can be reached, lock files for what is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from artifacts.store import go_build, npm_release, python_release, sources
from artifacts.store.artifact import Job
from artifacts.store.catalogue import ARCHITECTURES, LOCKED, Source, Tool, load_tool
from artifacts.store.errors import FetchError, PinError, UsageError
from artifacts.store.store import Store

Pins = dict[str, dict[str, str]]  # architecture -> source -> sha256 or `locked`


def pin(store: Store, name: str, version: str, *, make_default: bool) -> Pins:
    """Write ``version`` with all hashes that can be had into the catalogue file of a tool; return what it now says.

    A source that cannot be reached from here is left unpinned, and so unused where pins are required; run the command
    again on a machine that reaches it. At least one source must be reached for an architecture to be added.
    """
    tool = store.tool(name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_-]*", version):
        raise UsageError(f"{version!r} is no version")
    known: Mapping[str, Mapping[str, str]] = tool.data["versions"].get(version) or {}
    pins: Pins = {arch: dict(known.get(arch) or {}) for arch in ARCHITECTURES}
    with store.scratch(f"pin-{name}-{version}") as scratch:
        for arch in ARCHITECTURES:
            for source in _unpinned(tool, version, arch, pins):
                known_pin = _same_file(tool, version, source, pins)
                if known_pin is not None:
                    pins[arch][source.name] = known_pin
                    continue
                job = Job(tool, version, arch, source, store.reporter)
                try:
                    pins[arch][source.name] = _pin_of(store, job, scratch / f"{arch}-{source.name}")
                except FetchError as error:
                    job.say(f"source {source.name} is left without a pin. {error}")
    pins = {arch: {s: per_arch[s] for s in tool.data["sources"] if s in per_arch} for arch, per_arch in pins.items()}
    pins = {arch: per_arch for arch, per_arch in pins.items() if per_arch}
    if not pins:
        raise PinError(f"{name} {version}: no source could be reached, the catalogue is unchanged")
    write_version(tool.directory / f"{name}.yml", version, pins, make_default=make_default)
    return pins


def _unpinned(tool: Tool, version: str, arch: str, pins: Pins) -> list[Source]:
    return [source for source in tool.sources(version, arch, strict=False) if source.name not in pins[arch]]


def _same_file(tool: Tool, version: str, source: Source, pins: Pins) -> str | None:
    """Return the pin of another architecture, if both get the same file."""
    if source.kind == "wheel":  # pip chooses by platform, so the settings say nothing
        return None
    for arch, per_arch in pins.items():
        for other in tool.sources(version, arch, strict=False):
            if other.name == source.name in per_arch and other.settings == source.settings:
                return per_arch[source.name]
    return None


def _pin_of(store: Store, job: Job, scratch: Path) -> str:
    scratch.mkdir()
    if job.source.kind == "npm-release":
        npm_release.lock(job, scratch, store.npm)
        return LOCKED
    if job.source.kind == "go":
        go_build.lock(job, scratch)
        return LOCKED
    if job.source.kind == "python":
        python_release.lock(job)
        return LOCKED
    if job.source.kind == "url" and "checksums" in job.source.settings:
        return sources.vendor_checksum(job, scratch)
    job.say(f"downloading from {job.source.name} to take its hash")
    _, found = sources.fetch(job, scratch, first_use=True)
    return found


def write_version(path: Path, version: str, pins: Pins, *, make_default: bool) -> None:
    """Insert or replace one version in a catalogue file as text, so that comments and order stay."""
    text = path.read_text(encoding="utf-8")
    block = f'  "{version}":\n'
    for arch, per_arch in pins.items():
        block += f"    {arch}:\n" + "".join(f"      {source}: {value}\n" for source, value in per_arch.items())
    existing = re.compile(rf'^  "{re.escape(version)}":\n(?:    .*\n)*', re.MULTILINE)
    known = existing.search(text) is not None
    text = existing.sub(lambda _: block, text) if known else text.rstrip("\n") + "\n" + block
    if make_default:
        text = re.sub(r"^default: .*$", f'default: "{version}"', text, flags=re.MULTILINE)
    before = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    try:
        load_tool(path)
    except UsageError:
        path.write_text(before, encoding="utf-8")
        raise

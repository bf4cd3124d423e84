# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds a release out of an npm package with all its dependencies, from committed lock files.

The lock holds an integrity hash for every package and no address. Install scripts never run: nothing is compiled,
and no package gets to execute code on the controller.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts.store.artifact import Job
from artifacts.store.errors import BuildError, PinError
from artifacts.store.progress import human_size
from artifacts.store.run import run

LOCK_FILES = ("package.json", "package-lock.json")
FREE_BYTES = 4_500_000_000  # npm's download cache, the unpruned packages and the tarball of n8n 2.41, with some room
NPM_CPU = {"amd64": "x64", "arm64": "arm64"}
NPM_FLAGS = ("--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")


def npm_command(node_release: Path, cache: Path) -> list[str]:
    """Return the npm of an unpacked Node.js release, run by that release's own node."""
    script = node_release / "lib/node_modules/npm/bin/npm-cli.js"
    return [str(node_release / "bin/node"), str(script), f"--cache={cache}"]


def build(job: Job, tree: Path, npm: list[str]) -> None:
    """Install the locked packages into ``tree``, for hosts with glibc."""
    check_lock(job.locks)
    free = shutil.disk_usage(tree).free
    if free < FREE_BYTES:
        raise BuildError(
            f"{job.label}: building needs {human_size(FREE_BYTES)} of free disk, there are {human_size(free)}; "
            "make room or put the store elsewhere (N8N_PLATFORM_ARTIFACTS)"
        )
    for name in LOCK_FILES:
        shutil.copyfile(job.locks / name, tree / name)
    command = [*npm, "ci", *NPM_FLAGS, "--prefer-offline"]
    command += ["--os=linux", f"--cpu={NPM_CPU[job.arch]}", "--libc=glibc"]
    job.say("installing the packages of the lock file (npm ci, 2 to 5 minutes the first time)")
    run(command, label=f"{job.label}: npm ci", reporter=job.reporter, cwd=tree, env={"NODE_ENV": "production"})


def lock(job: Job, scratch: Path, npm: Callable[[], list[str]]) -> None:
    """Write package.json and package-lock.json of a new version beside the catalogue; existing files stay."""
    if all((job.locks / name).is_file() for name in LOCK_FILES):
        return
    manifest: dict[str, Any] = {"name": f"{job.tool.name}-release", "version": job.version, "private": True}
    manifest |= {"dependencies": {job.source.settings["package"]: job.version}, "overrides": job.tool.overrides}
    (scratch / "package.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    job.say("resolving all packages (1 to 4 minutes)")
    command = [*npm(), "install", "--package-lock-only", *NPM_FLAGS, "--omit-lockfile-registry-resolved=true"]
    run(command, label=f"{job.label}: npm install --package-lock-only", reporter=job.reporter, cwd=scratch)
    check_lock(scratch)
    job.locks.mkdir(parents=True, exist_ok=True)
    for name in LOCK_FILES:
        shutil.copyfile(scratch / name, job.locks / name)


def check_lock(locks: Path) -> None:
    """Refuse a lock with addresses in it or without an integrity hash for every package."""
    for name in LOCK_FILES:
        if not (locks / name).is_file():
            raise PinError(f"{locks / name} is missing; it is committed with the catalogue: restore it with git")
    file = locks / "package-lock.json"
    try:
        packages = json.loads(file.read_text(encoding="utf-8"))["packages"]
    except (ValueError, KeyError) as error:
        raise BuildError(f"{file} is not an npm lock file of version 2 or 3: {error}") from error
    for path, package in packages.items():
        if "resolved" in package:
            raise BuildError(f"{file}: {path} names an address (`resolved`); make the lock with `pin`")
        if path and not package.get("integrity"):
            raise PinError(f"{file}: {path} has no integrity hash: npm found no such package; add an override for it")

"""Builds a release out of an npm package with all its dependencies, from committed lock files.

The lock holds an integrity hash for every package and no address. Install scripts never run: nothing is compiled,
and no package gets to execute code on the controller.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from artifacts.store.archive import prune
from artifacts.store.catalogue import Tool
from artifacts.store.errors import BuildError, PinError
from artifacts.store.progress import Reporter, human_size
from artifacts.store.run import run

LOCK_FILES = ("package.json", "package-lock.json")
NPM_CPU = {"amd64": "x64", "arm64": "arm64"}
NPM_FLAGS = ("--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")


def npm_command(node_release: Path, cache: Path) -> list[str]:
    """The npm of an unpacked Node.js release, run by that release's own node."""
    script = node_release / "lib/node_modules/npm/bin/npm-cli.js"
    return [str(node_release / "bin/node"), str(script), f"--cache={cache}"]


def build(
    tool: Tool, version: str, arch: str, tree: Path, node_release: Path, cache: Path, label: str, reporter: Reporter
) -> None:
    """Install the locked packages into ``tree`` and remove what the release does not need at run time."""
    locks = tool.lock_directory(version)
    check_lock(locks)
    for name in LOCK_FILES:
        shutil.copyfile(locks / name, tree / name)
    command = [*npm_command(node_release, cache), "ci", *NPM_FLAGS, "--prefer-offline"]
    command += ["--os=linux", f"--cpu={NPM_CPU[arch]}", "--libc=glibc"]
    reporter.say(f"{label}: installing the packages of the lock file (npm ci, 2 to 5 minutes the first time)")
    run(command, label=f"{label}: npm ci", reporter=reporter, cwd=tree, env={"NODE_ENV": "production"})
    reporter.say(f"{label}: removing what it does not need at run time")
    removed, size = prune(tree, tool.prune(arch), tool.keep)
    reporter.say(f"{label}: removed {removed} files, {human_size(size)}")


def check_lock(locks: Path) -> None:
    """Refuse a lock without integrity hashes or with addresses in it."""
    for name in LOCK_FILES:
        if not (locks / name).is_file():
            raise PinError(f"{locks / name} is missing; it is committed with the catalogue, restore it with git")
    try:
        packages = json.loads((locks / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    except (ValueError, KeyError) as error:
        raise BuildError(f"{locks / 'package-lock.json'} is not an npm lock file (version 2 or 3): {error}") from error
    for path, package in packages.items():
        if "resolved" in package:
            raise BuildError(f"{locks / 'package-lock.json'}: {path} names an address (`resolved`); make the lock with `pin`")
        if path and not package.get("integrity") and not package.get("link"):
            raise PinError(f"{locks / 'package-lock.json'}: {path} has no integrity hash; make the lock with `pin`")

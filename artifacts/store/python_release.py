# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds a release out of Python packages, by pip, from a committed requirements file with a hash for each package.

Only finished wheels are taken: nothing is compiled and no package gets to execute code on the controller.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from artifacts.store.artifact import Job
from artifacts.store.errors import BuildError, HashError, PinError
from artifacts.store.run import run

LOCK_FILES = ("requirements.txt",)
PACKAGES = "site-packages"  # the directory of a release that goes on the interpreter's path
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
NEWEST_GLIBC = 41  # of the oldest supported system, Debian 13: 2.41
OLDEST_GLIBC = 12


def platforms(arch: str) -> list[str]:
    """Return the tags of wheels that run on the hosts, the newest first."""
    tags = [f"manylinux_2_{minor}" for minor in range(NEWEST_GLIBC, OLDEST_GLIBC - 1, -1)]
    return [f"{tag}_{MACHINES[arch]}" for tag in [*tags, "manylinux2014", "manylinux2010", "linux"]]


def build(job: Job, tree: Path) -> None:
    """Install the locked packages for the hosts' Python into ``tree``/site-packages."""
    lock_file = check_lock(job.locks)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-compile"]
    command += ["--require-hashes", "--only-binary=:all:", "--no-cache-dir", "--progress-bar=off", "--quiet"]
    command += ["--implementation=cp", f"--python-version={job.source.settings['python']}"]
    command += [f"--platform={tag}" for tag in platforms(job.arch)]
    command += [f"--target={tree / PACKAGES}", f"--requirement={lock_file}"]
    job.say("installing the packages of the lock file (pip)")
    try:
        run(command, label=f"{job.label}: pip install", reporter=job.reporter)
    except Exception as error:
        if "DO NOT MATCH THE HASHES" in str(error):
            raise HashError(f"WRONG HASH for {job.label} from pip; nothing was kept. {error}") from error
        raise


def lock(job: Job) -> None:
    """Copy the requirements file a source names beside the catalogue, as the lock of a new version."""
    target = job.locks / LOCK_FILES[0]
    if target.is_file():
        return
    source = job.tool.directory.parent / job.source.settings["requirements"]
    if not source.is_file():
        raise PinError(f"{source} is missing: make it first (make lock)")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    check_lock(job.locks)


def check_lock(locks: Path) -> Path:
    """Return the lock file; refuse one with an address, without a hash for a package, or that depends on a Python.

    pip decides such conditions by the controller's own Python, not by the hosts'.
    """
    path = locks / LOCK_FILES[0]
    if not path.is_file():
        raise PinError(f"{path} is missing; it is committed with the catalogue: restore it with git")
    for line in _requirements(path):
        name = line.split("==")[0]
        if "://" in line or line.startswith("-"):
            raise BuildError(f"{path}: an address or an option: {line[:80]}")
        if not re.search(r"--hash=sha256:[0-9a-f]{64}\b", line) or "==" not in line:
            raise PinError(f"{path}: {name} has no version with a hash; make the lock with: make lock")
        if re.search(r"\bpython_(full_)?version\b", line):
            raise BuildError(f"{path}: {name} is wanted for some releases of Python only; name it in the .in file")
    return path


def _requirements(path: Path) -> list[str]:
    """Return the requirements of a file, each in one line, without comments."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    return [line.strip() for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]

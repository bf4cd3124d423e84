# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds programs from Go modules on the controller; the committed go.mod and go.sum fix every module's content."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from artifacts.store.artifact import Job
from artifacts.store.errors import PinError
from artifacts.store.run import need_program, run

LOCK_FILES = ("go.mod", "go.sum")
ENVIRONMENT = {"CGO_ENABLED": "0", "GOOS": "linux", "GOWORK": "off"}


def build(job: Job, tree: Path, scratch: Path) -> None:
    """Compile the packages of a source into ``tree``: static, without paths of this machine, hence repeatable."""
    for name in LOCK_FILES:
        if not (job.locks / name).is_file():
            raise PinError(
                f"{job.locks / name} is missing; it fixes what is built: restore it with git, "
                f"or make it with: make pin TOOL={job.tool.name} VERSION={job.version}"
            )
    go = _go(job)
    module = scratch / "module"
    shutil.copytree(job.locks, module)
    settings = job.source.settings
    packages: Mapping[str, str] = settings["packages"]
    for target, package in packages.items():
        command = [go, "build", "-trimpath", "-mod=readonly", "-buildvcs=false"]
        command += ["-ldflags", settings.get("ldflags", "-s -w")]
        command += ["-tags", settings["tags"]] if "tags" in settings else []
        command += ["-o", str(tree / target), package]
        job.say(f"compiling {package}")
        environment = {**ENVIRONMENT, "GOARCH": job.arch}
        run(command, label=f"{job.label}: go build", reporter=job.reporter, cwd=module, env=environment)


def lock(job: Job, scratch: Path) -> None:
    """Write go.mod and go.sum of a new version beside the catalogue; files that exist are left as they are.

    A module that needs `replace` or `exclude` lines wants a go.mod written by hand.
    """
    if all((job.locks / name).is_file() for name in LOCK_FILES):
        return
    go = _go(job)
    revision = job.source.settings.get("revision", f"v{job.version}")
    packages = [f"{package}@{revision}" for package in job.source.settings["packages"].values()]
    job.say("resolving Go modules")
    for command in (["mod", "init", f"n8n-platform.invalid/{job.tool.name}"], ["get", *packages]):
        run([go, *command], label=f"{job.label}: go {command[0]}", reporter=job.reporter, cwd=scratch, env=ENVIRONMENT)
    job.locks.mkdir(parents=True, exist_ok=True)
    for name in LOCK_FILES:
        shutil.copyfile(scratch / name, job.locks / name)


def _go(job: Job) -> str:
    return need_program("go", f"to build {job.tool.name}", "apt install golang-go, or unpack a newer release of go.dev")

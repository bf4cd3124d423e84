# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds programs from Go modules on the controller; the committed go.mod and go.sum fix every module's content."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from artifacts.store.archive import sha256_of
from artifacts.store.artifact import Job
from artifacts.store.errors import HashError, PinError
from artifacts.store.run import need_program, run

LOCK_FILES = ("go.mod", "go.sum")
RESULTS = "sha256sums"  # optional, beside them: "<sha256>  <Go release>/<architecture>/<path in the release>"
ENVIRONMENT = {"CGO_ENABLED": "0", "GOOS": "linux", "GOWORK": "off"}


def build(job: Job, tree: Path, scratch: Path) -> None:
    """Compile the packages of a source into ``tree``: static, without paths of this machine, hence repeatable.

    A package that starts with a dot is the committed module's own. Raises HashError when the result is known for this
    release of Go and another one came out.
    """
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
    _compare(job, tree, list(packages), _release(job, go, module))


def own_sources(locks: Path) -> list[Path]:
    """Return the committed files, besides the lock files, that are compiled into a release."""
    return sorted(path for path in locks.rglob("*.go") if path.is_file())


def _release(job: Job, go: str, module: Path) -> str:
    """Return the release of Go that compiles ``module``, such as go1.26.8; its go.mod may ask for a newer one."""
    command = [go, "env", "GOVERSION"]
    return run(command, label=f"{job.label}: go env", reporter=job.reporter, cwd=module, env=ENVIRONMENT).strip()


def _compare(job: Job, tree: Path, targets: list[str], release: str) -> None:
    """Check the hash of what was built, if the catalogue knows it for this release of Go."""
    results = job.locks / RESULTS
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    known = {name: digest for digest, name in (line.split(maxsplit=1) for line in lines if line.strip())}
    for target in targets:
        name = f"{release}/{job.arch}/{target}"
        found = sha256_of(tree / target)
        if name not in known:
            job.say(f"{name} has sha256 {found}" + ("; the catalogue has hashes of other builds only" if known else ""))
        elif known[name] != found:
            raise HashError(
                f"WRONG HASH for {job.label}: {name} should be sha256 {known[name]} and the build gave {found}. "
                "Nothing was kept. GOAMD64, GOARM64, GOFLAGS or GOEXPERIMENT may differ from Go's defaults (go env)."
            )


def lock(job: Job, scratch: Path) -> None:
    """Write go.mod and go.sum of a new version beside the catalogue; files that exist are left as they are.

    A module that needs `replace` or `exclude` lines wants a go.mod written by hand.
    """
    if all((job.locks / name).is_file() for name in LOCK_FILES):
        return
    packages = list(job.source.settings["packages"].values())
    if any(package.startswith(".") for package in packages):
        raise PinError(f"{job.tool.name} has sources of its own: put them, go.mod and go.sum into {job.locks} first")
    go = _go(job)
    revision = job.source.settings.get("revision", f"v{job.version}")
    wanted = [f"{package}@{revision}" for package in packages]
    job.say("resolving Go modules")
    for command in (["mod", "init", f"n8n-platform.invalid/{job.tool.name}"], ["get", *wanted]):
        run([go, *command], label=f"{job.label}: go {command[0]}", reporter=job.reporter, cwd=scratch, env=ENVIRONMENT)
    job.locks.mkdir(parents=True, exist_ok=True)
    for name in LOCK_FILES:
        shutil.copyfile(scratch / name, job.locks / name)


def _go(job: Job) -> str:
    return need_program("go", f"to build {job.tool.name}", "apt install golang-go, or unpack a newer release of go.dev")

"""Builds programs from Go modules on the controller; the committed go.mod and go.sum fix every module's content."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from artifacts.store.catalogue import Source, Tool
from artifacts.store.errors import PinError
from artifacts.store.progress import Reporter
from artifacts.store.run import need_program, run

LOCK_FILES = ("go.mod", "go.sum")


def build(
    tool: Tool, version: str, arch: str, source: Source, tree: Path, scratch: Path, label: str, reporter: Reporter
) -> None:
    """Compile the packages of ``source`` into ``tree``, static and reproducible (-trimpath, no cgo)."""
    locks = tool.lock_directory(version)
    for name in LOCK_FILES:
        if not (locks / name).is_file():
            raise PinError(f"{locks / name} is missing; it fixes what is built, make it with: make pin TOOL={tool.name} VERSION={version}")
    go = need_program("go", f"to build {tool.name}", "apt install golang-go, or unpack a Go release of go.dev")
    module = scratch / "module"
    shutil.copytree(locks, module)
    packages: Mapping[str, str] = source.settings["packages"]
    for target, package in packages.items():
        command = [go, "build", "-trimpath", "-mod=readonly", "-buildvcs=false"]
        command += ["-ldflags", source.settings.get("ldflags", "-s -w")]
        command += ["-tags", source.settings["tags"]] if "tags" in source.settings else []
        command += ["-o", str(tree / target), package]
        reporter.say(f"{label}: compiling {package}")
        run(
            command,
            label=f"{label}: go build",
            reporter=reporter,
            cwd=module,
            env={"CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": arch, "GOFLAGS": "", "GOWORK": "off"},
        )

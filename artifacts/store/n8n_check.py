# SPDX-License-Identifier: GPL-3.0-or-later
"""Proves that a packed n8n release still loads everything: a prune rule that takes too much is found here."""

from __future__ import annotations

import json
from pathlib import Path

from artifacts.store.archive import extract
from artifacts.store.artifact import Artifact
from artifacts.store.errors import BuildError
from artifacts.store.progress import Reporter
from artifacts.store.run import run

SCRIPT = Path(__file__).resolve().parents[1] / "n8n" / "check.js"


def check(artifact: Artifact, node: Path, scratch: Path, reporter: Reporter) -> int:
    """Unpack a release, ask it for its version and load all its nodes; return how many parts were loaded.

    Raises BuildError that names what does not load.
    """
    release = scratch / "release"
    reporter.say(f"{artifact}: unpacking")
    extract(artifact.path, release)
    program = str(node / "bin/node")
    # Libraries that look for a home directory or a settings file find an empty one.
    environment = {"HOME": str(scratch), "N8N_USER_FOLDER": str(scratch), "NODE_PATH": ""}

    def ask(*arguments: str) -> str:
        return run(
            [program, *arguments],
            label=f"{artifact}: {Path(arguments[0]).name}",
            reporter=reporter,
            cwd=release,
            env=environment,
            error=BuildError,
        )

    version = ask(str(release / "node_modules/n8n/bin/n8n"), "--version").split()[-1]
    if version != artifact.version:
        raise BuildError(f"{artifact} says that it is version {version}")
    reporter.say(f"{artifact}: loading every node and credential type")
    result = json.loads(ask(str(SCRIPT), str(release)).splitlines()[-1])
    if result["failed"]:
        lines = "\n  ".join(f"{name}: {reason}" for name, reason in result["failed"].items())
        raise BuildError(
            f"{artifact}: {len(result['failed'])} parts do not load; correct `prune` or `overlay`:\n  {lines}"
        )
    return int(result["loaded"])

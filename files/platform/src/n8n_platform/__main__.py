# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the command line: ``python3 -m n8n_platform``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Groups of commands that need the bridge's libraries, which only hosts of the bridge have.
BRIDGE = {"bridge", "events", "routes"}
LIBRARIES = "N8N_PLATFORM_BRIDGE_LIBRARIES"


def group_of(words: Sequence[str]) -> str:
    """Return the first word that is no option of the program itself."""
    rest = iter(words)
    for word in rest:
        if word == "--settings":
            next(rest, None)
        elif not word.startswith("-"):
            return word
    return ""


def run(words: Sequence[str]) -> int:
    """Hand the words to the part of the program they are for, which alone is imported; return its exit code."""
    if group_of(words) not in BRIDGE:
        from n8n_platform.cli import main  # noqa: PLC0415

        return main(words)
    libraries = os.environ.get(LIBRARIES, "")
    if libraries and not os.path.isdir(libraries):
        print("n8n-platform: the bridge is not installed on this host (role bridge, group bridge).", file=sys.stderr)
        return 69
    if libraries:
        # Before the system's own packages, which may have other versions of the same.
        sys.path.insert(0, libraries)
    from n8n_platform.bridge.cli import main as bridge_main  # noqa: PLC0415

    return bridge_main(words)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write which releases run on this host, and since when, as metrics; dashboards mark deployments with them.

    n8n-platform-info --install DIRECTORY --output FILE [--check] NAME=VERSION...

A release is what DIRECTORY/<program>/current points to; NAME=VERSION adds others. The file changes only when a release
does, so its time is that of the last deployment. Prints `changed` when it wrote the file, or would.
"""

from __future__ import annotations

import argparse
import os
import re
import time
from pathlib import Path

TIME = "n8n_platform_deploy_timestamp_seconds"


def releases(install: Path, others: list[str]) -> dict[str, str]:
    """Return the versions of this host by program."""
    found = dict(item.split("=", 1) for item in others)
    for link in sorted(install.glob("*/current")):
        if link.is_symlink():
            found[link.parent.name] = link.readlink().name
    return found


def lines(versions: dict[str, str]) -> str:
    """Return the part of the file that says what runs."""
    text = "# HELP n8n_platform_info Releases that run on this host.\n# TYPE n8n_platform_info gauge\n"
    for program, version in sorted(versions.items()):
        text += f'n8n_platform_info{{program="{program}",version="{version}"}} 1\n'
    return text


def main() -> int:
    """Entry point of the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("others", nargs="*", metavar="NAME=VERSION")
    options = parser.parse_args()
    wanted = lines(releases(options.install, options.others))
    known = options.output.read_text(encoding="utf-8") if options.output.exists() else ""
    if known.startswith(wanted) and re.search(rf"^{TIME} \d+$", known, re.MULTILINE):
        return 0
    if not options.check:
        help_text = f"# HELP {TIME} When the releases of this host changed.\n# TYPE {TIME} gauge\n"
        new = options.output.with_suffix(f".{os.getpid()}")
        new.write_text(f"{wanted}{help_text}{TIME} {int(time.time())}\n", encoding="utf-8")
        new.chmod(0o644)
        new.replace(options.output)
    print("changed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

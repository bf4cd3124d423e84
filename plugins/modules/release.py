#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpack a release of a program beside the others and switch to it atomically."""

from __future__ import annotations

DOCUMENTATION = r"""
module: release
short_description: Unpack a release of a program beside the others and switch to it atomically
description:
  - Verifies a C(.tar.zst) on the host against its SHA-256, unpacks it to O(directory)/O(version), points the link
    O(directory)/current to it, removes the archive and releases older than the previous ones to keep.
  - A run that is interrupted leaves the old release current; the next run starts over.
options:
  archive:
    description: The archive on the host; removed once unpacked.
    type: path
    required: true
  sha256:
    description: Expected SHA-256 of the archive.
    type: str
    required: true
  directory:
    description: Directory of the program; releases are its subdirectories.
    type: path
    required: true
  version:
    description: Name of the release.
    type: str
    required: true
  keep:
    description: Number of previous releases that stay.
    type: int
    default: 1
author:
  - The dealscale.n8n_platform authors (@dealscale)
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Switch to Traefik 3.7.15
  dealscale.n8n_platform.release:
    archive: /opt/n8n-platform/traefik/.incoming.tar.zst
    sha256: "{{ sha256 }}"
    directory: /opt/n8n-platform/traefik
    version: 3.7.15
"""

RETURN = r"""
previous: {description: Release that was current before., type: str, returned: always}
removed: {description: Releases that were removed., type: list, elements: str, returned: always}
"""

import hashlib
import os
import shutil
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def digest(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def obsolete(directory: Path, current: str, keep: int) -> list[Path]:
    """Return the releases to remove: all but ``current`` and the ``keep`` most recently installed others."""
    others = [
        path
        for path in directory.iterdir()
        if path.is_dir() and not path.is_symlink() and path.name != current and not path.name.startswith(".")
    ]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return others[keep:]


def switch(directory: Path, version: str) -> None:
    """Point ``current`` to ``version`` in one rename, so that it never dangles."""
    link = directory / ".current.new"
    link.unlink(missing_ok=True)
    link.symlink_to(version)
    link.replace(directory / "current")


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "archive": {"type": "path", "required": True},
            "sha256": {"type": "str", "required": True},
            "directory": {"type": "path", "required": True},
            "version": {"type": "str", "required": True},
            "keep": {"type": "int", "default": 1},
        },
        supports_check_mode=True,
    )
    directory, version = Path(module.params["directory"]), module.params["version"]
    archive, target = Path(module.params["archive"]), directory / version
    link = directory / "current"
    previous = link.readlink().name if link.is_symlink() else ""
    if module.check_mode:
        module.exit_json(changed=True, previous=previous, removed=[])
    if not (target / f".release-{version}").exists():
        found = digest(archive)
        if found != module.params["sha256"]:
            archive.unlink()
            module.fail_json(
                msg=f"{archive} has SHA-256 {found}, expected {module.params['sha256']}. It was removed and nothing was"
                " changed; run again to copy it anew, and check the artifact store (make artifacts) if it recurs."
            )
        staging = directory / ".unpacking"
        for leftover in (staging, target):
            if leftover.exists():
                shutil.rmtree(leftover)
        staging.mkdir(mode=0o755)
        module.run_command(
            ["tar", "--extract", "--zstd", "--no-same-owner", "--file", str(archive), "--directory", str(staging)],
            check_rc=True,
        )
        (staging / f".release-{version}").write_text(module.params["sha256"] + "\n", encoding="ascii")
        staging.rename(target)
        os.utime(target)
    switch(directory, version)
    archive.unlink(missing_ok=True)
    removed = obsolete(directory, version, module.params["keep"])
    for path in removed:
        shutil.rmtree(path)
    module.exit_json(changed=True, previous=previous, removed=[path.name for path in removed])


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks parse in every inventory, and the collection can be built from a clone."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.policy.repository import ROOT, report, repository_files

INVENTORIES = sorted(path.parent.name for path in (ROOT / "inventories").glob("*/hosts.yml"))
PLAYBOOKS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "playbooks").glob("*.yml"))


def ansible(tmp_path: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of Ansible as the Makefile does, with a home of its own: nothing installed there can help."""
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_HOME": str(tmp_path),
        "ANSIBLE_FORCE_COLOR": "0",
    }
    return subprocess.run(
        [str(Path(sys.executable).parent / program), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
        text=True,
    )


@pytest.mark.parametrize("inventory", INVENTORIES)
def test_the_site_parses_and_lists_its_tasks(inventory: str, tmp_path: Path) -> None:
    done = ansible(tmp_path, "ansible-playbook", "site.yml", "-i", f"inventories/{inventory}", "--list-tasks")
    report([done.stderr] if done.returncode or done.stderr else [])
    assert "play #1" in done.stdout


def test_every_playbook_parses(tmp_path: Path) -> None:
    done = ansible(
        tmp_path, "ansible-playbook", "-i", "inventories/production", "--syntax-check", "site.yml", *PLAYBOOKS
    )
    report([done.stdout + done.stderr] if done.returncode else [])


def test_the_collection_builds_from_the_repositorys_files_alone(tmp_path: Path) -> None:
    done = ansible(tmp_path, "ansible-galaxy", "collection", "build", "--output-path", str(tmp_path))
    report([done.stdout + done.stderr] if done.returncode else [])
    (archive,) = tmp_path.glob("dealscale-n8n_platform-*.tar.gz")
    with tarfile.open(archive) as tar:
        members = {member.name for member in tar.getmembers() if member.isfile()}
    surplus = members - set(repository_files()) - {"MANIFEST.json", "FILES.json"}
    report([f"{name} is no file of the repository; add it to build_ignore in galaxy.yml" for name in surplus])
    assert {"README.md", "LICENSE", "meta/runtime.yml", "site.yml", "plugins/filter/systemd.py"} <= members

# SPDX-License-Identifier: GPL-3.0-or-later
"""The module release with real archives, packed and unpacked by the real tar and zstd."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plugins.modules import release


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    directory = tmp_path / "opt" / "tool"
    directory.mkdir(parents=True)
    return directory


@pytest.fixture
def install(tmp_path: Path, tool: Path, run_module: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that packs a version and installs it; ``damage`` spoils the expected hash."""

    def run(version: str, check: bool = False, damage: bool = False, **more: Any) -> Any:
        content = tmp_path / "content" / version
        content.mkdir(parents=True, exist_ok=True)
        (content / "program").write_text(f"I am {version}\n")
        archive = tool / ".incoming.tar.zst"
        subprocess.run(["tar", "--create", "--zstd", "--file", archive, "--directory", content, "."], check=True)
        sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
        arguments = {
            "archive": str(archive),
            "sha256": "0" * 64 if damage else sha256,
            "directory": str(tool),
            "version": version,
            **more,
        }
        return run_module(release, arguments, check=check)

    return run


def versions(tool: Path) -> set[str]:
    return {path.name for path in tool.iterdir()} - {"current"}


def age(tool: Path, **seconds: int) -> None:
    """Set when releases were installed, so that tests do not depend on the clock's resolution."""
    for name, moment in seconds.items():
        os.utime(tool / name, (moment, moment))


def test_a_release_is_unpacked_and_current(install: Any, tool: Path) -> None:
    result = install("1")
    assert (result["changed"], result["previous"], result["removed"]) == (True, "", [])
    assert (tool / "current" / "program").read_text() == "I am 1\n"
    assert (tool / "current").readlink() == Path("1")
    assert len((tool / "1" / ".release-1").read_text().strip()) == 64
    assert (tool / "1").stat().st_mode & 0o777 == 0o755
    assert versions(tool) == {"1"}


def test_the_previous_release_stays(install: Any, tool: Path) -> None:
    install("1")
    age(tool, **{"1": 100})
    assert install("2")["previous"] == "1"
    age(tool, **{"2": 200})
    result = install("3")
    assert result["removed"] == ["1"]
    assert versions(tool) == {"2", "3"}
    assert (tool / "current").readlink() == Path("3")


@pytest.mark.parametrize(("keep", "left"), [(0, {"3"}), (2, {"1", "2", "3"})])
def test_how_many_stay(install: Any, tool: Path, keep: int, left: set[str]) -> None:
    for version in ("1", "2", "3"):
        install(version, keep=keep)
    assert versions(tool) == left


def test_the_way_back_unpacks_nothing(install: Any, tool: Path, fake_command: Callable[..., Any]) -> None:
    install("1")
    install("2")
    (tool / "1" / "program").write_text("touched\n")
    result = install("1")
    assert result["previous"] == "2"
    assert (tool / "current" / "program").read_text() == "touched\n"
    assert versions(tool) == {"1", "2"}


def test_check_mode_changes_nothing(install: Any, tool: Path) -> None:
    result = install("1", check=True)
    assert result["changed"]
    assert versions(tool) == {".incoming.tar.zst"}


def test_a_wrong_hash_changes_nothing_and_removes_the_archive(install: Any, tool: Path) -> None:
    install("1")
    result = install("2", damage=True)
    assert "expected " + "0" * 64 in result["msg"]
    assert "run again" in result["msg"]
    assert versions(tool) == {"1"}
    assert (tool / "current").readlink() == Path("1")


def test_an_interrupted_run_is_started_over(install: Any, tool: Path) -> None:
    for leftover in (".unpacking", "2"):
        (tool / leftover).mkdir()
        (tool / leftover / "half").touch()
    (tool / ".current.new").symlink_to("gone")
    install("2")
    assert versions(tool) == {"2"}
    assert not (tool / "2" / "half").exists()


def test_an_archive_that_tar_refuses_leaves_the_old_release(
    install: Any, tool: Path, fake_command: Callable[..., Any]
) -> None:
    install("1")
    fake_command(
        "tar", script='case " $* " in *--extract*) echo "tar: broken" >&2; exit 2 ;; *) exec /bin/tar "$@" ;; esac'
    )
    assert "broken" in install("2")["msg"]
    assert (tool / "current" / "program").read_text() == "I am 1\n"


def test_files_and_links_are_no_releases(tool: Path) -> None:
    (tool / "notes").touch()
    (tool / "link").symlink_to(".")
    (tool / ".hidden").mkdir()
    (tool / "1").mkdir()
    assert release.obsolete(tool, "2", 0) == [tool / "1"]

"""Many small files in one call."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plugins.modules import host_files

Run = Callable[..., dict[str, Any]]
Fake = Callable[..., Any]


@pytest.fixture
def bring(run_module: Run) -> Run:
    """Run the module with entries that belong to whoever runs the tests."""
    mine = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}

    def run(*entries: dict[str, Any], **options: bool) -> dict[str, Any]:
        return run_module(host_files, {"entries": [{**mine, **entry} for entry in entries]}, **options)

    return run


def test_everything_is_made_and_made_once(bring: Run, tmp_path: Path) -> None:
    entries = [
        {"path": str(tmp_path / "a"), "state": "directory", "mode": "0700"},
        {"path": str(tmp_path / "a" / "f"), "content": "text\n"},
        {"path": str(tmp_path / "l"), "state": "link", "target": str(tmp_path)},
        {"path": str(tmp_path / "gone"), "state": "absent"},
    ]
    (tmp_path / "gone").write_text("old", encoding="ascii")
    result = bring(*entries)
    assert result["changed_paths"] == [str(tmp_path / name) for name in ("a", "a/f", "l", "gone")]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "f").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "a" / "f").read_text(encoding="ascii") == "text\n"
    assert (tmp_path / "l").readlink() == tmp_path
    assert not (tmp_path / "gone").exists()
    assert not bring(*entries)["changed"]


def test_check_mode_says_the_same_and_does_nothing(bring: Run, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x", encoding="ascii")
    entries = [
        {"path": str(tmp_path / "a"), "state": "directory", "purge": "*"},
        {"path": str(tmp_path / "a" / "f"), "content": "text\n", "validate": "no-such-program %s"},
        {"path": str(tmp_path / "l"), "state": "link", "target": str(tmp_path)},
        {"path": str(tmp_path / "old"), "state": "absent"},
    ]
    result = bring(*entries, check=True, diff=True)
    assert len(result["changed_paths"]) == 4
    assert {
        "before_header": str(tmp_path / "a/f"),
        "after_header": str(tmp_path / "a/f"),
        "before": "",
        "after": "text\n",
    } in (result["diff"])
    assert [path.name for path in tmp_path.iterdir() if path.name in ("a", "l")] == []
    assert (tmp_path / "old").exists()


def test_wrong_mode_is_set_right(bring: Run, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("text", encoding="ascii")
    (tmp_path / "f").chmod(0o600)
    entry = {"path": str(tmp_path / "f"), "content": "text", "mode": "0640"}
    assert bring(entry)["changed_paths"] == [str(tmp_path / "f")]
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640
    assert not bring(entry)["changed"]


def test_purge_removes_what_is_no_entry(bring: Run, tmp_path: Path) -> None:
    for name in ("old.crt", "kept.crt", "other.txt"):
        (tmp_path / name).write_text("x", encoding="ascii")
    (tmp_path / "directory.crt").mkdir()
    directory = {"path": str(tmp_path), "state": "directory", "purge": "*.crt"}
    assert bring(directory, {"path": str(tmp_path / "kept.crt"), "content": "x"})["changed"]
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["directory.crt", "kept.crt", "other.txt"]


def test_link_is_turned_in_one_step(bring: Run, tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to("/nowhere")
    assert bring({"path": str(tmp_path / "l"), "state": "link", "target": str(tmp_path)})["changed"]
    assert (tmp_path / "l").readlink() == tmp_path


def test_program_that_refuses_a_file_stops_everything(bring: Run, fake_command: Fake, tmp_path: Path) -> None:
    validator = fake_command("validator", stderr="line 1: no", code=1)
    result = bring(
        {"path": str(tmp_path / "good"), "content": "good"},
        {"path": str(tmp_path / "bad"), "content": "bad", "validate": "validator --strict %s"},
    )
    assert result["msg"] == f"{tmp_path}/bad was refused by `validator --strict %s`, nothing was changed: line 1: no"
    assert not (tmp_path / "good").exists()
    assert validator.calls[0][0] == "--strict"


def test_program_that_accepts_a_file_saw_its_content(bring: Run, fake_command: Fake, tmp_path: Path) -> None:
    fake_command("validator", script='grep -q content "$1"')
    assert bring({"path": str(tmp_path / "f"), "content": "content", "validate": "validator %s"})["changed"]
    assert (tmp_path / "f").read_text(encoding="ascii") == "content"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "f"}, "a file needs content"),
        ({"path": "l", "state": "link", "target": "/no/such/zone"}, "target /no/such/zone does not exist"),
        ({"path": "occupied", "state": "directory"}, "exists and is not a directory"),
    ],
)
def test_impossible_entries_are_refused(bring: Run, tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    (tmp_path / "occupied").write_text("x", encoding="ascii")
    result = bring({**entry, "path": str(tmp_path / entry["path"])})
    assert result["failed"]
    assert message in result["msg"]

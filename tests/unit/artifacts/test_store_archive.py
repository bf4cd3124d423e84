# SPDX-License-Identifier: GPL-3.0-or-later
"""Unpacking refuses to write outside the release; packing repeats its bits."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from artifacts.store import archive
from artifacts.store.archive import extract, pack, prune, unpack
from artifacts.store.errors import BuildError, FetchError
from artifacts.store.progress import Reporter
from tests.unit.artifacts.shop import tarball

QUIET = Reporter(io.StringIO())


def saved(tmp_path: Path, content: bytes, name: str = "input") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "entries",
    [
        {"../outside": b"x"},
        {"a/../../outside": b"x"},
        {"/etc/outside": b"x"},
        {"link": "../outside"},
        {"link": "/etc"},
        {"a/link": "../../outside"},
        {"here": ".", "here/up": "..", "here/up/outside": b"x"},
        {"dir/loop": "..", "dir/loop/out": "../../x"},
    ],
)
def test_entries_that_lead_outside_are_refused(entries: dict[str, bytes | str], tmp_path: Path) -> None:
    target = tmp_path / "deep" / "release"
    target.mkdir(parents=True)
    with pytest.raises(FetchError, match="refusing"):
        unpack(saved(tmp_path, tarball(entries)), target, {})
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "deep" / "outside").exists()


def test_a_zip_cannot_escape_either(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as handle:
        handle.writestr("../outside", "x")
    with pytest.raises(FetchError, match="refusing archive entry"):
        unpack(tmp_path / "evil.zip", tmp_path / "release", {})
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE])
def test_special_entries_are_refused(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        info = tarfile.TarInfo("device")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(FetchError, match="neither a file nor a symbolic link"):
        unpack(tmp_path / "evil.tar", tmp_path / "release", {})


def test_only_wanted_paths_are_taken_and_modes_are_plain(tmp_path: Path) -> None:
    content = tarball({"./top/bin/a": b"a", "top/bin/b": b"b", "top/lib/c": b"c", "top/l": "bin/a"}, mode=0o4775)
    unpack(saved(tmp_path, content), tmp_path / "r", {"top/bin/": "bin/", "top/lib/c": "c", "top/l": "l"})
    assert sorted(str(path.relative_to(tmp_path / "r")) for path in (tmp_path / "r").rglob("*")) == [
        "bin",
        "bin/a",
        "bin/b",
        "c",
        "l",
    ]
    assert stat.S_IMODE((tmp_path / "r/bin/a").stat().st_mode) == 0o755
    assert (tmp_path / "r/l").read_bytes() == b"a"


def test_a_zip_keeps_execute_bits_and_links(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as handle:
        handle.mkdir("bin")
        program = zipfile.ZipInfo("bin/tool")
        program.external_attr = 0o100755 << 16
        handle.writestr(program, "x")
        link = zipfile.ZipInfo("bin/alias")
        link.external_attr = 0o120777 << 16
        handle.writestr(link, "tool")
    unpack(tmp_path / "in.zip", tmp_path / "r", {})
    assert os.access(tmp_path / "r/bin/tool", os.X_OK)
    assert (tmp_path / "r/bin/alias").readlink() == Path("tool")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", tarball({"a": os.urandom(9999)})[:5000]])
def test_a_damaged_archive_is_named(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="input is damaged"):
        unpack(saved(tmp_path, content), tmp_path / "r", {})


def test_packing_does_not_depend_on_dates_owners_or_order(tmp_path: Path) -> None:
    packed = []
    for number, names in enumerate((["b", "a/x", "a/y"], ["a/y", "a/x", "b"])):
        tree = tmp_path / str(number)
        for name in names:
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(name)
            os.utime(tree / name, (number, number))
        (tree / "a/link").symlink_to("../b")
        (tree / "directory-link").symlink_to("a")
        (tree / "empty").mkdir()
        (tree / "b").chmod(0o700 if number else 0o775)
        packed.append(pack(tree, tmp_path / f"{number}.out", "it", QUIET))
    assert packed[0] == packed[1]
    assert packed[0].entries == 7
    extract(tmp_path / "0.out", tmp_path / "again")
    assert (tmp_path / "again/directory-link").readlink() == Path("a")
    assert (tmp_path / "again/empty").is_dir()
    assert os.access(tmp_path / "again/b", os.X_OK)


def test_a_full_disk_or_a_failing_zstd_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(os.urandom(3_000_000))
    monkeypatch.setattr(archive, "ZSTD", ("--no-such-option",))
    with pytest.raises(BuildError, match="is the disk full"):
        pack(tmp_path / "tree", tmp_path / "out", "it", QUIET)


def test_unpacking_a_damaged_artifact_fails_clearly(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"no zstd")
    with pytest.raises(BuildError, match="cannot unpack"):
        extract(tmp_path / "bad", tmp_path / "out")


def test_missing_zstd_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="apt install zstd"):
        pack(tmp_path / "tree", tmp_path / "out", "it", QUIET)


def test_prune_keeps_what_it_is_told_and_removes_empty_directories(tmp_path: Path) -> None:
    for name in (
        "a/x.map",
        "b/y.md",
        "b/skills/y.md",
        "c/prebuilds/win/z.node",
        "c/prebuilds/linux/z.node",
        "README.md",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("12345")
    (tmp_path / "was-empty-before").mkdir()
    assert prune(tmp_path, ["*.map", "*.md", "*/prebuilds/win/*"], ["*/skills/*"]) == (4, 20)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == [
        "b",
        "b/skills",
        "b/skills/y.md",
        "c",
        "c/prebuilds",
        "c/prebuilds/linux",
        "c/prebuilds/linux/z.node",
    ]
    assert prune(tmp_path, [], []) == (0, 0)

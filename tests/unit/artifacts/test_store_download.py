# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads: resuming, retrying, refusing."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from artifacts.store.download import checksum_from_file, download
from artifacts.store.errors import FetchError
from artifacts.store.progress import Reporter
from tests.unit.artifacts.shop import Vendor

BODY = bytes(range(256)) * 400


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


def fetch(vendor: Vendor, target: Path, log: io.StringIO, name: str = "file") -> None:
    download(f"{vendor.url}/{name}", target, "the file", Reporter(log))


def test_a_broken_download_continues_where_it_stopped(vendor: Vendor, tmp_path: Path, log: io.StringIO) -> None:
    vendor.put("file", BODY)
    vendor.break_after = 40_000
    fetch(vendor, tmp_path / "out", log)
    assert (tmp_path / "out").read_bytes() == BODY
    assert vendor.ranges == [None, "bytes=40000-"]
    assert "continuing after 40.0 kB" in log.getvalue()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_later_run_continues_too(vendor: Vendor, tmp_path: Path, log: io.StringIO) -> None:
    vendor.put("file", BODY)
    vendor.break_after = 40_000
    vendor.before_answer = lambda: vendor.statuses.extend([503] if len(vendor.requests) in (2, 3) else [])
    with pytest.raises(FetchError, match="503"):
        fetch(vendor, tmp_path / "out", log)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.part").stat().st_size == 40_000
    fetch(vendor, tmp_path / "out", log)
    assert vendor.ranges[-1] == "bytes=40000-"
    assert (tmp_path / "out").read_bytes() == BODY


def test_a_file_that_changed_meanwhile_starts_over(vendor: Vendor, tmp_path: Path, log: io.StringIO) -> None:
    vendor.put("file", BODY)
    vendor.break_after = 40_000
    vendor.before_answer = lambda: vendor.files.update({"/file": BODY[::-1]}) if len(vendor.requests) == 2 else None
    fetch(vendor, tmp_path / "out", log)
    assert (tmp_path / "out").read_bytes() == BODY[::-1]


def test_a_part_without_a_validator_is_not_trusted(vendor: Vendor, tmp_path: Path, log: io.StringIO) -> None:
    vendor.put("file", BODY)
    (tmp_path / "out.part").write_bytes(b"who knows what")
    fetch(vendor, tmp_path / "out", log)
    assert vendor.ranges == [None]
    assert (tmp_path / "out").read_bytes() == BODY


def test_a_range_beyond_the_end_starts_over(vendor: Vendor, tmp_path: Path, log: io.StringIO) -> None:
    vendor.put("file", BODY)
    (tmp_path / "out.part").write_bytes(b"longer than the file")
    (tmp_path / "out.etag").write_text('"old"')
    vendor.statuses = [416]
    fetch(vendor, tmp_path / "out", log)
    assert (tmp_path / "out").read_bytes() == BODY


def test_a_missing_file_is_not_asked_for_again(vendor: Vendor, tmp_path: Path, log: io.StringIO) -> None:
    with pytest.raises(FetchError, match="answered 404"):
        fetch(vendor, tmp_path / "out", log)
    assert len(vendor.requests) == 1


def test_a_passing_error_is_tried_again(vendor: Vendor, tmp_path: Path, log: io.StringIO) -> None:
    vendor.put("file", BODY)
    vendor.statuses = [503, 502]
    fetch(vendor, tmp_path / "out", log)
    assert (tmp_path / "out").read_bytes() == BODY


def test_an_unreachable_server_ends_in_one_sentence(tmp_path: Path, log: io.StringIO) -> None:
    with pytest.raises(FetchError, match="check network and proxy"):
        download("http://127.0.0.1:9/file", tmp_path / "out", "the file", Reporter(log))
    assert log.getvalue() == ""


def test_a_download_that_keeps_breaking_off_says_how_to_go_on(vendor: Vendor, tmp_path: Path, log: io.StringIO) -> None:
    vendor.put("file", BODY)

    def break_off() -> None:
        vendor.break_after = 1000

    vendor.before_answer = break_off
    with pytest.raises(FetchError, match="run the same command again to continue"):
        fetch(vendor, tmp_path / "out", log)
    assert (tmp_path / "out.part").stat().st_size == 3000


@pytest.mark.parametrize("url", ["http://example.org/file", "ftp://example.org/file", "file:///etc/passwd"])
def test_only_https_is_downloaded(url: str, tmp_path: Path, log: io.StringIO) -> None:
    with pytest.raises(FetchError, match="only https"):
        download(url, tmp_path / "out", "the file", Reporter(log))


def test_a_redirect_is_followed_but_not_to_a_plain_address(vendor: Vendor, tmp_path: Path, log: io.StringIO) -> None:
    vendor.put("file", BODY)
    vendor.redirects["/moved"] = f"{vendor.url}/file"
    fetch(vendor, tmp_path / "out", log, "moved")
    assert (tmp_path / "out").read_bytes() == BODY
    vendor.redirects["/moved"] = f"http://localhost:{vendor.url.rpartition(':')[2]}/file"
    with pytest.raises(FetchError, match="only https"):
        fetch(vendor, tmp_path / "other", log, "moved")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a" * 64 + "\n", "a" * 64),
        ("b" * 64 + "  file\n", "b" * 64),
        ("b" * 64 + " *file\n", "b" * 64),
        ("b" * 64 + "  ./file\n", "b" * 64),
        ("b" * 64 + "  other-file\n", None),
        ("b" * 63 + "  file\n", None),
        ("", None),
    ],
)
def test_vendors_write_checksums_in_several_ways(text: str, found: str | None) -> None:
    assert checksum_from_file(text, "file") == found

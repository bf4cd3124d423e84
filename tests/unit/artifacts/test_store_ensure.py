# SPDX-License-Identifier: GPL-3.0-or-later
"""`ensure`: what ends in the store, and how each failure is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from artifacts.store.archive import extract, sha256_of
from artifacts.store.errors import FetchError, HashError, MissingError, PinError, StoreError, UsageError
from artifacts.store.store import Options
from tests.unit.artifacts.shop import CATALOGUE, Shop


def content_of(archive: Path, target: Path) -> list[str]:
    extract(archive, target)
    return sorted(str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir())


def test_an_artifact_holds_the_release_and_its_manifest_says_where_it_came_from(shop: Shop, tmp_path: Path) -> None:
    artifact, fetched = shop.store().ensure("tool", None, "amd64", Options())
    assert fetched
    assert artifact.path == shop.directory / "tool/1.0/tool-1.0-linux-amd64.tar.zst"
    assert content_of(artifact.path, tmp_path / "out") == ["bin/alias", "bin/tool", "share/KEEP.md"]
    assert subprocess.run([tmp_path / "out/bin/alias"], capture_output=True, check=True, text=True).stdout == "tool\n"
    manifest = json.loads((artifact.path.parent / "tool-1.0-linux-amd64.json").read_text())
    assert manifest["sha256"] == sha256_of(artifact.path) == artifact.summary()["sha256"]
    assert manifest["size"] == artifact.path.stat().st_size
    assert manifest["source"] == "upstream"
    assert manifest["source_sha256"] == shop.pin
    assert manifest["entries"] == 5
    assert manifest["pinned"] is True
    assert not (shop.directory / "downloads/tool/1.0/amd64").exists()
    assert list((shop.directory / ".tmp").iterdir()) == []


def test_the_same_input_gives_the_same_bits(shop: Shop) -> None:
    first, _ = shop.store().ensure("tool", None, "amd64", Options())
    before = first.manifest["sha256"]
    first.path.unlink()
    second, fetched = shop.store().ensure("tool", None, "amd64", Options())
    assert fetched
    assert second.manifest["sha256"] == before


def test_a_second_run_asks_nobody(shop: Shop) -> None:
    shop.store().ensure("tool", None, "amd64", Options())
    shop.vendor.requests.clear()
    _, fetched = shop.store().ensure("tool", "1.0", "amd64", Options())
    assert not fetched
    assert shop.vendor.requests == []


def test_a_changed_recipe_makes_the_artifact_anew(shop: Shop, tmp_path: Path) -> None:
    shop.store().ensure("tool", None, "amd64", Options())
    overlay = shop.catalogue / "tool/overlay/bin"
    overlay.mkdir(parents=True)
    (overlay / "tool").write_text("#!/bin/sh\necho ours\n")
    artifact, fetched = shop.store().ensure("tool", None, "amd64", Options())
    assert fetched
    extract(artifact.path, tmp_path / "out")
    assert (tmp_path / "out/bin/tool").read_text().endswith("ours\n")


def test_a_wrong_hash_is_loud_and_leaves_nothing(shop: Shop) -> None:
    found = shop.vendor.put("tool-1.0-x64.tar.gz", b"tampered with")
    with pytest.raises(HashError) as caught:
        shop.store().ensure("tool", None, "amd64", Options())
    for part in (shop.pin, found, f"{shop.vendor.url}/tool-1.0-x64.tar.gz", "deleted"):
        assert part in str(caught.value)
    assert [path for path in shop.directory.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_wrong_hash_never_falls_back_to_another_source(shop: Shop) -> None:
    pin = shop.vendor.put("mirror/tool-1.0.tar.gz", shop.content)
    shop.write(CATALOGUE + f"      mirror: {pin}\n")
    shop.vendor.put("tool-1.0-x64.tar.gz", b"tampered with")
    with pytest.raises(HashError):
        shop.store().ensure("tool", None, "amd64", Options())
    assert "/mirror/tool-1.0.tar.gz" not in shop.vendor.requests


def test_a_source_that_cannot_be_reached_leads_to_the_next(shop: Shop) -> None:
    pin = shop.vendor.put("mirror/tool-1.0.tar.gz", shop.content)
    shop.write(CATALOGUE + f"      mirror: {pin}\n")
    del shop.vendor.files["/tool-1.0-x64.tar.gz"]
    artifact, _ = shop.store().ensure("tool", None, "amd64", Options())
    assert artifact.manifest["source"] == "mirror"
    assert "404" in shop.log.getvalue()
    assert "trying the next source" in shop.log.getvalue()


def test_all_sources_failing_names_every_failure(shop: Shop) -> None:
    shop.vendor.files.clear()
    with pytest.raises(FetchError, match="answered 404"):
        shop.store().ensure("tool", None, "amd64", Options())


def test_a_source_can_be_chosen(shop: Shop) -> None:
    pin = shop.vendor.put("mirror/tool-1.0.tar.gz", shop.content)
    shop.write(CATALOGUE + f"      mirror: {pin}\n")
    artifact, _ = shop.store().ensure("tool", None, "amd64", Options(source="mirror"))
    assert artifact.manifest["source"] == "mirror"
    artifact.path.unlink()
    with pytest.raises(UsageError, match="no source 'nowhere'"):
        shop.store().ensure("tool", None, "amd64", Options(source="nowhere"))


class TestPins:
    @pytest.fixture(autouse=True)
    def _unpinned(self, shop: Shop) -> None:
        shop.write(CATALOGUE.replace("      upstream: {pin}\n", "      {{}}\n"))

    def test_required_pins_refuse_an_unpinned_source_before_any_request(self, shop: Shop) -> None:
        with pytest.raises(PinError, match=r"make pin TOOL=tool VERSION=1\.0"):
            shop.store().ensure("tool", None, "amd64", Options())
        assert shop.vendor.requests == []

    def test_without_pins_the_vendors_checksum_file_decides(self, shop: Shop) -> None:
        shop.vendor.put("SHA256SUMS", f"{'0' * 64}  other\n{shop.pin}  tool-1.0-x64.tar.gz\n".encode())
        artifact, _ = shop.store().ensure("tool", None, "amd64", Options(require_pins=False))
        assert artifact.manifest["source_sha256"] == shop.pin
        assert artifact.manifest["pinned"] is False

    def test_an_unpinned_artifact_is_not_used_where_pins_are_required(self, shop: Shop) -> None:
        shop.vendor.put("SHA256SUMS", f"{shop.pin}  tool-1.0-x64.tar.gz\n".encode())
        shop.store().ensure("tool", None, "amd64", Options(require_pins=False))
        with pytest.raises(PinError):
            shop.store().ensure("tool", None, "amd64", Options())

    def test_the_vendors_checksum_can_also_be_wrong(self, shop: Shop) -> None:
        shop.vendor.put("SHA256SUMS", f"{'0' * 64}  tool-1.0-x64.tar.gz\n".encode())
        with pytest.raises(HashError, match="expected sha256 0000"):
            shop.store().ensure("tool", None, "amd64", Options(require_pins=False))

    def test_a_checksum_file_without_the_name_is_an_error(self, shop: Shop) -> None:
        shop.vendor.put("SHA256SUMS", b"nothing of use\n")
        with pytest.raises(FetchError, match=r"has no sha256 of tool-1\.0-x64"):
            shop.store().ensure("tool", None, "amd64", Options(require_pins=False, source="upstream"))

    def test_no_pin_and_no_checksum_file_is_refused(self, shop: Shop) -> None:
        shop.vendor.put("mirror/tool-1.0.tar.gz", shop.content)
        with pytest.raises(PinError, match="names no checksum file"):
            shop.store().ensure("tool", None, "amd64", Options(require_pins=False, source="mirror"))


class TestOffline:
    def test_it_says_exactly_what_is_missing_and_where_it_belongs(self, shop: Shop) -> None:
        with pytest.raises(MissingError) as caught:
            shop.store().ensure("tool", None, "amd64", Options(offline=True))
        text = str(caught.value)
        assert str(shop.directory / "tool/1.0/tool-1.0-linux-amd64.tar.zst") in text
        assert str(shop.directory / "tool/1.0/tool-1.0-linux-amd64.json") in text
        assert str(shop.directory / "downloads/tool/1.0/amd64") in text
        assert shop.pin in text
        assert shop.vendor.requests == []

    def test_a_file_carried_by_hand_is_used_whatever_its_name(self, shop: Shop) -> None:
        there = shop.directory / "downloads/tool/1.0/amd64"
        there.mkdir(parents=True)
        (there / "wrong.bin").write_bytes(b"something else")
        (there / "from-a-usb-stick").write_bytes(shop.content)
        _, fetched = shop.store().ensure("tool", None, "amd64", Options(offline=True))
        assert fetched
        assert shop.vendor.requests == []
        assert "using from-a-usb-stick" in shop.log.getvalue()

    def test_an_outdated_artifact_is_called_so(self, shop: Shop) -> None:
        shop.store().ensure("tool", None, "amd64", Options())
        shop.write(CATALOGUE.replace('"*.md"', '"*.txt"'))
        with pytest.raises(MissingError, match="was made from another catalogue"):
            shop.store().ensure("tool", None, "amd64", Options(offline=True))

    def test_what_is_in_the_store_needs_no_network(self, shop: Shop) -> None:
        shop.store().ensure("tool", None, "amd64", Options())
        _, fetched = shop.store().ensure("tool", None, "amd64", Options(offline=True))
        assert not fetched


@pytest.mark.parametrize(
    ("name", "version", "arch", "message"),
    [
        ("nothing", None, "amd64", "known: tool"),
        ("tool", "9.9", "amd64", "make pin TOOL=tool VERSION=9.9"),
        ("tool", "1.0", "arm64", "not in the catalogue for arm64"),
    ],
)
def test_unknown_names_are_refused(shop: Shop, name: str, version: str | None, arch: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        shop.store().ensure(name, version, arch, Options())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("executable: [bin/tool]", "executable: [bin/gone]"), "bin/gone is not in the release"),
        (("bin/alias: tool", "bin/alias: gone"), "link bin/alias would lead nowhere"),
        (('"tool-{{version}}/": ""', '"other-{{version}}/": ""'), "does not hold other-1.0/"),
    ],
)
def test_a_changed_layout_is_noticed(shop: Shop, change: tuple[str, str], message: str) -> None:
    shop.write(CATALOGUE.replace(*change))
    with pytest.raises(StoreError, match=message):
        shop.store().ensure("tool", None, "amd64", Options())
    assert shop.store().find("tool", "1.0", "amd64") is None


def test_an_overlay_of_a_file_that_is_gone_is_noticed(shop: Shop) -> None:
    (shop.catalogue / "tool/overlay").mkdir(parents=True)
    (shop.catalogue / "tool/overlay/gone").write_text("x")
    with pytest.raises(StoreError, match="the overlay replaces gone"):
        shop.store().ensure("tool", None, "amd64", Options())


def test_verify_deletes_what_has_changed_on_disk(shop: Shop) -> None:
    artifact, _ = shop.store().ensure("tool", None, "amd64", Options())
    assert [error for _, error in shop.store().verify()] == [None]
    content = bytearray(artifact.path.read_bytes())
    content[-1] ^= 1
    artifact.path.write_bytes(content)
    ((_, error),) = shop.store().verify()
    assert "WRONG HASH in the store" in str(error)
    assert hashlib.sha256(bytes(content)).hexdigest() in str(error)
    assert not artifact.path.exists()
    assert shop.store().find("tool", "1.0", "amd64") is None


def test_a_truncated_artifact_counts_as_missing(shop: Shop) -> None:
    artifact, _ = shop.store().ensure("tool", None, "amd64", Options())
    artifact.path.write_bytes(artifact.path.read_bytes()[:-1])
    _, fetched = shop.store().ensure("tool", None, "amd64", Options())
    assert fetched


def test_prune_removes_what_the_catalogue_no_longer_names(shop: Shop) -> None:
    artifact, _ = shop.store().ensure("tool", None, "amd64", Options())
    assert shop.store().prune(caches=False) == ([], 0)
    shop.write(CATALOGUE.replace('"1.0"', '"2.0"'))
    (shop.directory / ".cache/npm").mkdir(parents=True)
    (shop.directory / ".cache/npm/blob").write_bytes(b"x" * 1000)
    removed, size = shop.store().prune(caches=True)
    assert artifact.path in removed
    assert size > 1000
    assert list(shop.store().artifacts()) == []
    assert not (shop.directory / ".cache").exists()

# SPDX-License-Identifier: GPL-3.0-or-later
"""`pin`: adding versions to the catalogue without harming the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artifacts.store.catalogue import load_catalogue, load_tool
from artifacts.store.errors import PinError, UsageError
from artifacts.store.pin import pin, write_version
from artifacts.store.store import Options
from tests.unit.artifacts.shop import GO_SCRIPT, GO_SOURCE, LOCK, RELEASE, Shop, catalogue, program, tarball

NEW = tarball({"tool-2.0/bin/tool": b"#!/bin/sh\n", "tool-2.0/share/KEEP.md": b"x"})


def serve_new_version(shop: Shop, *, arm: bool = True) -> str:
    found = shop.vendor.put("tool-2.0-x64.tar.gz", NEW)
    sums = f"{found}  tool-2.0-x64.tar.gz\n" + (f"{'a' * 64}  tool-2.0-arm64.tar.gz\n" if arm else "")
    shop.vendor.put("SHA256SUMS", sums.encode())
    return found


def test_a_new_version_gets_its_hashes_and_can_be_installed(shop: Shop) -> None:
    found = serve_new_version(shop)
    mirror = shop.vendor.put("mirror/tool-2.0.tar.gz", NEW)
    pins = pin(shop.store(), "tool", "2.0", make_default=False)
    assert pins == {
        "amd64": {"upstream": found, "mirror": mirror},
        "arm64": {"upstream": "a" * 64, "mirror": mirror},
    }
    assert load_tool(shop.catalogue / "tool.yml").default == "1.0"
    artifact, _ = shop.store().ensure("tool", "2.0", "amd64", Options())
    assert artifact.manifest["source_sha256"] == found


def test_comments_and_other_versions_stay(shop: Shop) -> None:
    before = (shop.catalogue / "tool.yml").read_text()
    serve_new_version(shop)
    pin(shop.store(), "tool", "2.0", make_default=True)
    text = (shop.catalogue / "tool.yml").read_text()
    assert text.startswith(before.replace('default: "1.0"', 'default: "2.0"'))
    assert "# a comment that must survive" in text


def test_a_source_out_of_reach_is_left_unpinned_and_said_so(shop: Shop) -> None:
    serve_new_version(shop, arm=False)
    assert list(pin(shop.store(), "tool", "2.0", make_default=False)) == ["amd64"]
    assert "tool 2.0 (arm64): source upstream is left without a pin" in shop.log.getvalue()


def test_nothing_in_reach_changes_nothing(shop: Shop) -> None:
    before = (shop.catalogue / "tool.yml").read_text()
    with pytest.raises(PinError, match="the catalogue is unchanged"):
        pin(shop.store(), "tool", "3.0", make_default=False)
    assert (shop.catalogue / "tool.yml").read_text() == before


def test_a_known_version_gets_only_the_pins_it_lacks(shop: Shop) -> None:
    mirror = shop.vendor.put("mirror/tool-1.0.tar.gz", shop.content)
    shop.vendor.put("SHA256SUMS", f"{'b' * 64}  tool-1.0-x64.tar.gz\n".encode())
    pins = pin(shop.store(), "tool", "1.0", make_default=False)
    assert pins == {"amd64": {"upstream": shop.pin, "mirror": mirror}, "arm64": {"mirror": mirror}}
    assert (shop.catalogue / "tool.yml").read_text().count('"1.0":') == 1


@pytest.mark.parametrize("version", ["../2.0", "2.0\n", "", '2"0'])
def test_a_version_is_a_plain_word(shop: Shop, version: str) -> None:
    with pytest.raises(UsageError, match="is no version"):
        pin(shop.store(), "tool", version, make_default=False)


def test_a_file_that_would_break_is_put_back(shop: Shop) -> None:
    path = shop.catalogue / "tool.yml"
    before = path.read_text()
    with pytest.raises(UsageError):
        write_version(path, "2.0", {"amd64": {"upstream": "no hash"}}, make_default=False)
    assert path.read_text() == before


def test_an_npm_release_gets_lock_files_with_the_overrides(shop: Shop, npm_release: Path) -> None:
    pins = pin(shop.store(), "app", "2.1", make_default=True)
    assert pins == {"amd64": {"npm": "locked"}, "arm64": {"npm": "locked"}}
    locks = shop.catalogue / "app/2.1"
    manifest = json.loads((locks / "package.json").read_text())
    assert manifest["dependencies"] == {"app": "2.1"}
    assert manifest["overrides"] == {"left-pad": "1.0.0"}
    assert json.loads((locks / "package-lock.json").read_text()) == LOCK
    assert npm_release.read_text().count("install --package-lock-only") == 1
    assert "--omit-lockfile-registry-resolved=true" in npm_release.read_text()
    assert load_catalogue(shop.catalogue)["app"].default == "2.1"
    assert RELEASE.splitlines()[0] in (shop.catalogue / "app.yml").read_text()


def test_a_file_that_serves_all_architectures_is_fetched_once(shop: Shop) -> None:
    shop.vendor.put("mirror/tool-2.0.tar.gz", NEW)
    pins = pin(shop.store(), "tool", "2.0", make_default=False)
    assert pins["amd64"]["mirror"] == pins["arm64"]["mirror"]
    assert shop.vendor.requests.count("/mirror/tool-2.0.tar.gz") == 1


def test_a_go_tool_gets_its_module_files(shop: Shop, programs: Path) -> None:
    program(programs, "go", GO_SCRIPT)
    catalogue(shop, GO_SOURCE, "locked")
    pin(shop.store(), "tool", "1.1", make_default=False)
    assert (shop.catalogue / "tool/1.1/go.mod").read_text() == "module n8n-platform.invalid/tool\n"
    assert "get example.org/tool/cmd/tool@v1.1" in (programs / "go.log").read_text()
    artifact, _ = shop.store().ensure("tool", "1.1", "amd64", Options())
    assert artifact.manifest["pinned"] is True


def test_a_go_tool_with_sources_of_its_own_is_not_pinned_by_itself(shop: Shop, programs: Path) -> None:
    program(programs, "go", GO_SCRIPT)
    catalogue(shop, "kind: go, packages: {bin/tool: .}", "locked")
    with pytest.raises(PinError, match=r"put them, go\.mod and go\.sum into .*tool/1\.1 first"):
        pin(shop.store(), "tool", "1.1", make_default=False)

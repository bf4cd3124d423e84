# SPDX-License-Identifier: GPL-3.0-or-later
"""`n8n-check`: a release that does not load is named, and nothing is left behind."""

from __future__ import annotations

import json

import pytest

from artifacts.store.cli import main
from tests.unit.artifacts.shop import NODE, RELEASE, Shop, tarball, write_lock

FAKE_NODE = """\
#!/bin/sh
case "$*" in
  *" ci "*) mkdir -p node_modules/n8n/bin; echo x > node_modules/n8n/bin/n8n;;
  *--version) echo 'a warning'; echo {version};;
  *check.js*) test -f "$2/node_modules/n8n/bin/n8n" && echo '{result}';;
esac
"""


def arguments(shop: Shop, version: str, result: object) -> list[str]:
    script = FAKE_NODE.format(version=version, result=json.dumps(result))
    content = tarball({"bin/node": script.encode(), "lib/node_modules/npm/bin/npm-cli.js": b""})
    shop.pin = shop.vendor.put("node-amd64.tar.gz", content)
    shop.vendor.put("node-arm64.tar.gz", content)
    shop.write(NODE, "nodejs")
    shop.write(RELEASE.replace("app", "n8n"), "n8n")
    write_lock(shop, {"packages": {"": {}}}, "n8n/2.0")
    return ["--store", str(shop.directory), "--catalogue", str(shop.catalogue), "n8n-check"]


def test_a_good_release_is_counted(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(shop, "2.0", {"loaded": 1022, "failed": {}})) == 0
    assert "1022 nodes, credential types and packages load" in capsys.readouterr().out
    assert list((shop.directory / ".tmp").iterdir()) == []


def test_what_does_not_load_is_named(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(shop, "2.0", {"loaded": 1, "failed": {"base agent": "no bindings file"}})) == 7
    assert "base agent: no bindings file" in capsys.readouterr().err


def test_another_version_inside_is_noticed(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(shop, "2.1", {})) == 7
    assert "says that it is version 2.1" in capsys.readouterr().err

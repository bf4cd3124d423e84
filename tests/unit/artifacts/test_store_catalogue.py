# SPDX-License-Identifier: GPL-3.0-or-later
"""The catalogue: the committed one keeps its promises, and mistakes in one are named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from artifacts.store import n8n_env
from artifacts.store.archive import pack
from artifacts.store.catalogue import ARCHITECTURES, LOCKED, Tool, load_catalogue, load_tool
from artifacts.store.cli import CATALOGUE, main
from artifacts.store.errors import BuildError, UsageError
from artifacts.store.npm_release import check_lock
from artifacts.store.progress import Reporter
from artifacts.store.store import Options
from tests.unit.artifacts.shop import CATALOGUE as TEMPLATE
from tests.unit.artifacts.shop import Shop

COMMITTED = load_catalogue(CATALOGUE)


@pytest.mark.parametrize("tool", COMMITTED.values(), ids=list(COMMITTED))
def test_every_committed_version_can_be_had_with_pins(tool: Tool) -> None:
    for version in tool.versions:
        for arch in tool.architectures(version):
            assert any(source.pinned for source in tool.sources(version, arch)), f"{version} {arch} has no pin"
    assert set(tool.architectures(tool.default)) == set(ARCHITECTURES)


def test_every_placeholder_is_filled() -> None:
    for tool in COMMITTED.values():
        for version in tool.versions:
            for source in tool.sources(version, "arm64"):
                texts = [source.settings.get("url", ""), *source.files, *source.files.values()]
                assert not [text for text in texts if re.search(r"\{\w+\}", text)]


def test_committed_locks_carry_hashes_and_no_addresses_of_registries() -> None:
    for tool in COMMITTED.values():
        for version in tool.versions:
            if LOCKED in {source.pin for source in tool.sources(version, "amd64")} and tool.name == "n8n":
                locks = tool.lock_directory(version)
                check_lock(locks)
                manifest = json.loads((locks / "package.json").read_text())
                assert manifest["dependencies"] == {"n8n": version}
                assert manifest["overrides"].items() <= tool.overrides.items()
                assert (locks / n8n_env.FILE_NAME).is_file()


def test_the_list_of_variables_is_sorted_and_knows_the_ones_the_platform_needs() -> None:
    names = (COMMITTED["n8n"].lock_directory(COMMITTED["n8n"].default) / n8n_env.FILE_NAME).read_text().split()
    assert names == sorted(set(names))
    needed = (
        "N8N_ENCRYPTION_KEY",
        "N8N_ENCRYPTION_KEY_FILE",
        "QUEUE_BULL_REDIS_HOST",
        "EXECUTIONS_MODE",
        "WEBHOOK_URL",
    )
    assert set(needed) <= set(names)
    assert {"PATH", "HOME", "ProgramFiles"}.isdisjoint(names)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("description: a tool for tests\n", "", "missing key 'description'"),
        ("description:", "colour: red\ndescription:", "unknown key 'colour'"),
        ("kind: url\n    url: {url}/tool", "kind: magic\n    url: {url}/tool", "unknown kind 'magic'"),
        ("    checksums: {url}/SHA256SUMS", "    checksum: {url}/SHA256SUMS", "unknown key 'checksum'"),
        ("url: {url}/mirror", "uri: {url}/mirror", "missing key 'url'"),
        ('  "1.0":', "  1.0:", "quoted text"),
        ("    amd64:", "    x86:", "unknown architecture"),
        ("      upstream: {pin}", "      elsewhere: {pin}", "unknown source 'elsewhere'"),
        ("{pin}", "abc", "not a sha256"),
        ('default: "1.0"', 'default: "9.9"', "not one of the versions"),
        ("description:", "description: [", "not valid YAML"),
    ],
)
def test_mistakes_are_named(shop: Shop, old: str, new: str, message: str) -> None:
    assert old in TEMPLATE
    shop.write(TEMPLATE.replace(old, new, 1))
    with pytest.raises(UsageError, match=message) as caught:
        load_tool(shop.catalogue / "tool.yml")
    assert "tool.yml" in str(caught.value)


def test_a_file_that_is_no_mapping_is_refused(shop: Shop) -> None:
    shop.write("- a list", "other")
    with pytest.raises(UsageError, match="is a mapping"):
        load_catalogue(shop.catalogue)


class TestVariables:
    CONFIG = """
      __decorate([(0, config_1.Env)('N8N_PORT'), __metadata("design:type", Number)], X.prototype, "port", void 0);
      (0, config_1.Env)(otel_constants_1.OTEL_ENV_VARS.enabled), __decorate([Env("DB_TYPE")])
    """
    CONSTANTS = "exports.OTEL_ENV_VARS = { enabled: 'N8N_OTEL_ENABLED', headers: 'N8N_OTEL_HEADERS' };"
    OTHER = "process.env.N8N_PLAIN; process.env['N8N_QUOTED']; process.env.PATH; process.env.http_proxy"

    def test_names_come_from_decorators_constants_and_direct_reads(self) -> None:
        assert n8n_env.variables(iter([self.CONFIG, self.CONSTANTS, self.OTHER])) == [
            "DB_TYPE",
            "DB_TYPE_FILE",
            "N8N_OTEL_ENABLED",
            "N8N_OTEL_ENABLED_FILE",
            "N8N_OTEL_HEADERS",
            "N8N_OTEL_HEADERS_FILE",
            "N8N_PLAIN",
            "N8N_PORT",
            "N8N_PORT_FILE",
            "N8N_QUOTED",
            "http_proxy",
        ]

    def release(self, tmp_path: Path, number: int) -> Path:
        tree = tmp_path / "tree"
        code = "".join(f"process.env.N8N_VARIABLE_{index};" for index in range(number))
        for name in ("node_modules/n8n/dist/a.js", "node_modules/@n8n/config/dist/b.js"):
            (tree / name).parent.mkdir(parents=True)
            (tree / name).write_text(code)
        for name in ("node_modules/other/dist/c.js", "node_modules/n8n/dist/d.txt"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text("process.env.NOT_N8NS_OWN")
        pack(tree, tmp_path / "release", "it", Reporter(quiet=True))
        return tmp_path / "release"

    def test_only_n8ns_own_code_counts(self, tmp_path: Path) -> None:
        assert n8n_env.write(self.release(tmp_path, 400), tmp_path / "out/list.txt") == 400
        lines = (tmp_path / "out/list.txt").read_text().splitlines()
        assert len(lines) == 400
        assert all(re.fullmatch(r"N8N_VARIABLE_\d+", line) for line in lines)

    def test_code_that_has_changed_beyond_recognition_is_noticed(self, tmp_path: Path) -> None:
        with pytest.raises(BuildError, match="only 3 variables found"):
            n8n_env.write(self.release(tmp_path, 3), tmp_path / "list.txt")
        assert not (tmp_path / "list.txt").exists()

    def test_the_command_writes_beside_the_lock(
        self, shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shop.write(TEMPLATE.replace("executable: [bin/tool]\n", "").replace("links: {{bin/alias: tool}}\n", ""), "n8n")
        store = shop.store()
        artifact, _ = store.ensure("n8n", None, "amd64", Options())
        artifact.path.write_bytes(self.release(tmp_path, 400).read_bytes())
        manifest = artifact.manifest | {"size": artifact.path.stat().st_size}
        (artifact.path.parent / "n8n-1.0-linux-amd64.json").write_text(json.dumps(manifest))
        assert main(["--store", str(shop.directory), "--catalogue", str(shop.catalogue), "n8n-env"]) == 0
        assert "400 names written" in capsys.readouterr().out
        assert (shop.catalogue / "n8n/1.0/environment-variables.txt").is_file()

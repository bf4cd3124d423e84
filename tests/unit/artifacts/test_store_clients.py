# SPDX-License-Identifier: GPL-3.0-or-later
"""Sources that are asked through the registries' own clients, without any network.

pip is the real one, with a directory instead of an index; npm, mvn and go are scripts that do what the real ones do.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from artifacts.store import npm_release
from artifacts.store.archive import extract
from artifacts.store.errors import BuildError, FetchError, HashError, PinError
from artifacts.store.store import Options
from tests.unit.artifacts.shop import GO_SCRIPT, GO_SOURCE, Shop, catalogue, program, tarball, write_lock


class TestWheel:
    SOURCE = 'kind: wheel, name: some-tool, files: {"some_tool-{version}.data/scripts/tool": bin/tool}'

    @pytest.fixture
    def pin(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        index = tmp_path / "index"
        index.mkdir()
        wheel = index / "some_tool-1.0-py3-none-manylinux2014_x86_64.whl"
        with zipfile.ZipFile(wheel, "w") as handle:
            handle.writestr("some_tool-1.0.data/scripts/tool", "#!/bin/sh\n")
            handle.writestr(
                "some_tool-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-tool\nVersion: 1.0\n"
            )
            handle.writestr("some_tool-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\n")
            handle.writestr("some_tool-1.0.dist-info/RECORD", "")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(index))
        return hashlib.sha256(wheel.read_bytes()).hexdigest()

    def test_a_wheel_is_fetched_by_pip(self, shop: Shop, pin: str, tmp_path: Path) -> None:
        catalogue(shop, self.SOURCE, pin)
        artifact, _ = shop.store().ensure("tool", None, "amd64", Options())
        extract(artifact.path, tmp_path / "out")
        assert (tmp_path / "out/bin/tool").read_text() == "#!/bin/sh\n"
        assert artifact.manifest["source_sha256"] == pin

    @pytest.mark.usefixtures("pin")
    def test_pip_refuses_another_hash(self, shop: Shop) -> None:
        catalogue(shop, self.SOURCE, "f" * 64)
        with pytest.raises(HashError, match="WRONG HASH"):
            shop.store().ensure("tool", None, "amd64", Options())
        assert list(shop.directory.rglob("*.whl")) == []

    def test_without_required_pins_the_index_is_trusted(self, shop: Shop, pin: str) -> None:
        catalogue(shop, self.SOURCE, None)
        artifact, _ = shop.store().ensure("tool", None, "amd64", Options(require_pins=False))
        assert artifact.manifest["source_sha256"] == pin

    @pytest.mark.usefixtures("pin")
    def test_a_package_that_does_not_exist_is_a_fetch_error(self, shop: Shop) -> None:
        catalogue(shop, self.SOURCE.replace("some-tool", "no-such-tool"), "f" * 64)
        with pytest.raises(FetchError, match="pip download no-such-tool==1"):
            shop.store().ensure("tool", None, "amd64", Options())


class TestNpm:
    SOURCE = "kind: npm, name: '@some/tool', files: {package/: ''}"
    CONTENT = tarball({"package/index.js": b"1"})

    def client(self, programs: Path, shop: Shop) -> str:
        shop.directory.mkdir()
        (programs / "tool.tgz").write_bytes(self.CONTENT)
        script = f'for a; do case $a in --pack-destination=*) cp {programs}/tool.tgz "${{a#*=}}/";; esac; done'
        program(programs, "npm", script)
        return hashlib.sha256(self.CONTENT).hexdigest()

    def test_a_package_is_fetched_without_running_its_scripts(self, shop: Shop, programs: Path) -> None:
        catalogue(shop, self.SOURCE, self.client(programs, shop))
        shop.store().ensure("tool", None, "amd64", Options())
        assert "pack @some/tool@1.0 --ignore-scripts" in (programs / "npm.log").read_text()

    def test_a_wrong_hash_is_refused(self, shop: Shop, programs: Path) -> None:
        self.client(programs, shop)
        catalogue(shop, self.SOURCE, "f" * 64)
        with pytest.raises(HashError, match="from it: expected"):
            shop.store().ensure("tool", None, "amd64", Options())

    def test_a_client_that_leaves_nothing_is_noticed(self, shop: Shop, programs: Path) -> None:
        program(programs, "npm", "true")
        catalogue(shop, self.SOURCE, "f" * 64)
        with pytest.raises(FetchError, match="left 0 files"):
            shop.store().ensure("tool", None, "amd64", Options())

    def test_a_missing_client_says_what_to_install(
        self, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        catalogue(shop, self.SOURCE, "f" * 64)
        with pytest.raises(BuildError, match="apt install npm"):
            shop.store().ensure("tool", None, "amd64", Options())

    def test_credentials_in_the_output_of_a_client_are_hidden(self, shop: Shop, programs: Path) -> None:
        program(programs, "npm", "echo 'GET https://me:s3cret@mirror.example/x _authToken=abc123'; exit 1")
        catalogue(shop, self.SOURCE, "f" * 64)
        with pytest.raises(FetchError) as caught:
            shop.store().ensure("tool", None, "amd64", Options())
        assert "https://***@mirror.example/x _authToken=***" in str(caught.value)
        assert "s3cret" not in str(caught.value)
        assert "abc123" not in str(caught.value)


class TestMaven:
    SOURCE = "kind: maven, coordinates: 'org.example:server:{version}:tar.gz:bin', files: {'server-{version}/': ''}"
    CONTENT = tarball({"server-1.0/bin/server": b"1"})

    def test_an_artifact_is_copied_by_maven(self, shop: Shop, programs: Path) -> None:
        (programs / "server.tgz").write_bytes(self.CONTENT)
        script = f"for a; do case $a in -DoutputDirectory=*) cp {programs}/server.tgz"
        program(programs, "mvn", script + ' "${a#*=}/server-1.0-bin.tar.gz";; esac; done')
        catalogue(shop, self.SOURCE, hashlib.sha256(self.CONTENT).hexdigest())
        artifact, _ = shop.store().ensure("tool", None, "amd64", Options())
        assert artifact.manifest["source_kind"] == "maven"
        assert "-Dartifact=org.example:server:1.0:tar.gz:bin" in (programs / "mvn.log").read_text()


class TestGo:
    def test_it_is_built_from_the_committed_module(self, shop: Shop, programs: Path, tmp_path: Path) -> None:
        program(programs, "go", GO_SCRIPT)
        catalogue(shop, GO_SOURCE, "locked")
        locks = shop.catalogue / "tool/1.0"
        locks.mkdir(parents=True)
        (locks / "go.mod").write_text("module x\n")
        (locks / "go.sum").write_text("sums\n")
        artifact, _ = shop.store().ensure("tool", None, "amd64", Options())
        extract(artifact.path, tmp_path / "out")
        assert (tmp_path / "out/bin/tool").read_text() == "sums\n"
        log = (programs / "go.log").read_text()
        assert "build -trimpath -mod=readonly -buildvcs=false -ldflags -X v=1.0 -tags lean" in log
        assert "CGO_ENABLED=0\nGOARCH=amd64\nGOOS=linux\n" in log
        assert artifact.manifest["source_sha256"] == hashlib.sha256(b"sums\n").hexdigest()

    def module(self, shop: Shop, programs: Path, source: str = GO_SOURCE, results: str = "") -> Path:
        program(programs, "go", GO_SCRIPT)
        catalogue(shop, source, "locked")
        locks = shop.catalogue / "tool/1.0"
        locks.mkdir(parents=True)
        (locks / "go.mod").write_text("module x\n")
        (locks / "go.sum").write_text("sums\n")
        if results:
            (locks / "sha256sums").write_text(results)
        return locks

    def test_a_known_result_must_come_out(self, shop: Shop, programs: Path) -> None:
        right = hashlib.sha256(b"sums\n").hexdigest()
        locks = self.module(shop, programs, results=f"{'0' * 64}  go1.99/amd64/bin/tool\n")
        with pytest.raises(HashError, match=rf"go1\.99/amd64/bin/tool should be sha256 0{{64}} .* gave {right}"):
            shop.store().ensure("tool", None, "amd64", Options())
        assert list(shop.directory.rglob("*.tar.zst")) == []
        (locks / "sha256sums").write_text(f"{right}  go1.99/amd64/bin/tool\n")
        shop.store().ensure("tool", None, "amd64", Options())

    def test_another_release_of_go_is_not_compared(self, shop: Shop, programs: Path) -> None:
        self.module(shop, programs, results=f"{'0' * 64}  go1.98/amd64/bin/tool\n")
        shop.store().ensure("tool", None, "amd64", Options())
        assert "the catalogue has hashes of other builds only" in shop.log.getvalue()

    def test_changed_sources_of_its_own_are_built_anew(self, shop: Shop, programs: Path) -> None:
        locks = self.module(shop, programs, source="kind: go, packages: {bin/tool: .}")
        (locks / "main.go").write_text("package main\n")
        assert shop.store().ensure("tool", None, "amd64", Options())[1]
        assert not shop.store().ensure("tool", None, "amd64", Options())[1]
        (locks / "main.go").write_text("package main // other\n")
        assert shop.store().ensure("tool", None, "amd64", Options())[1]
        assert (programs / "go.log").read_text().count("build -trimpath") == 2

    def test_without_the_module_files_nothing_is_built(self, shop: Shop, programs: Path) -> None:
        program(programs, "go", GO_SCRIPT)
        catalogue(shop, GO_SOURCE, "locked")
        with pytest.raises(PinError, match=r"go\.mod is missing"):
            shop.store().ensure("tool", None, "amd64", Options())
        assert not (programs / "go.log").exists()


class TestNpmRelease:
    def test_it_is_built_by_the_stores_own_npm_without_install_scripts(
        self, shop: Shop, npm_release: Path, tmp_path: Path
    ) -> None:
        artifact, _ = shop.store().ensure("app", None, "amd64", Options())
        extract(artifact.path, tmp_path / "out")
        names = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
        assert names == ["app", "package-lock.json", "package.json"]
        (line,) = npm_release.read_text().splitlines()
        for part in (
            "npm-cli.js",
            f"--cache={shop.directory}/.cache/npm",
            " ci --ignore-scripts",
            "--cpu=x64",
            "--libc=glibc",
        ):
            assert part in line

    @pytest.mark.usefixtures("npm_release")
    def test_a_second_build_uses_the_unpacked_node_again(self, shop: Shop) -> None:
        store = shop.store()
        assert store.node() == store.node()

    @pytest.mark.usefixtures("npm_release")
    @pytest.mark.parametrize(
        ("lock", "message"),
        [
            ({"packages": {"a": {"resolved": "https://x", "integrity": "y"}}}, "names an address"),
            ({"packages": {"node_modules/a": {}}}, "has no integrity hash"),
            ({"lockfileVersion": 1}, "not an npm lock file"),
            ("{", "not an npm lock file"),
        ],
    )
    def test_a_lock_that_proves_nothing_is_refused(self, shop: Shop, lock: object, message: str) -> None:
        write_lock(shop, lock)
        with pytest.raises((BuildError, PinError), match=message):
            shop.store().ensure("app", None, "amd64", Options())

    @pytest.mark.usefixtures("npm_release")
    def test_too_little_disk_is_said_before_the_work_starts(self, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(npm_release, "FREE_BYTES", 10**18)
        with pytest.raises(BuildError, match="make room or put the store elsewhere"):
            shop.store().ensure("app", None, "amd64", Options())

    @pytest.mark.usefixtures("npm_release")
    def test_a_missing_lock_is_named(self, shop: Shop) -> None:
        (shop.catalogue / "app/2.0/package-lock.json").unlink()
        with pytest.raises(PinError, match=r"package-lock\.json is missing"):
            shop.store().ensure("app", None, "amd64", Options())

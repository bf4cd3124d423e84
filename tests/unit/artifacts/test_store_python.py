# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases made of Python packages: a requirements file with hashes, and pip."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from artifacts.store.archive import extract
from artifacts.store.errors import BuildError, FetchError, HashError, PinError
from artifacts.store.pin import pin
from artifacts.store.python_release import platforms
from artifacts.store.store import Options
from tests.unit.artifacts.shop import Shop, catalogue

SOURCE = 'kind: python, requirements: app.txt, python: "3.13"'


def wheel(directory: Path, name: str, tag: str, files: dict[str, str]) -> str:
    """Write a wheel and return its requirement with its hash."""
    metadata = f"{name}-1.0.dist-info"
    content = {
        **files,
        f"{metadata}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{metadata}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    lines = []
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text)}\n")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in content.items():
            archive.writestr(path, text)
        archive.writestr(f"{metadata}/RECORD", "".join(lines) + f"{metadata}/RECORD,,\n")
    directory.mkdir(exist_ok=True)
    (directory / f"{name}-1.0-{tag}.whl").write_bytes(buffer.getvalue())
    return f"{name}==1.0 \\\n    --hash=sha256:{hashlib.sha256(buffer.getvalue()).hexdigest()}\n    # via app\n"


@pytest.fixture
def wheels(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give pip a directory as its only index, and the catalogue a tool made of two of its wheels."""
    directory = tmp_path / "wheels"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    requirements = wheel(directory, "plain", "py3-none-any", {"plain.py": "ANSWER = 42\n"})
    requirements += wheel(directory, "native", "cp313-cp313-manylinux_2_28_x86_64", {"native.so": "\x7fELF"})
    catalogue(shop, SOURCE, "locked")
    (shop.catalogue / "tool" / "1.0").mkdir(parents=True)
    (shop.catalogue / "tool" / "1.0" / "requirements.txt").write_text(f"# made\n{requirements}")
    return directory


def lock_file(shop: Shop) -> Path:
    return shop.catalogue / "tool" / "1.0" / "requirements.txt"


@pytest.mark.usefixtures("wheels")
def test_the_packages_are_those_of_the_hosts_python(shop: Shop, tmp_path: Path) -> None:
    artifact, fetched = shop.store().ensure("tool", None, "amd64", Options())
    assert fetched
    extract(artifact.path, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / "site-packages").iterdir()}
    assert names == {"plain.py", "native.so", "plain-1.0.dist-info", "native-1.0.dist-info"}
    assert artifact.manifest["source_sha256"] == hashlib.sha256(lock_file(shop).read_bytes()).hexdigest()
    assert not shop.store().ensure("tool", None, "amd64", Options())[1]


@pytest.mark.usefixtures("wheels")
def test_a_changed_lock_or_python_makes_it_anew(shop: Shop) -> None:
    shop.store().ensure("tool", None, "amd64", Options())
    lock_file(shop).write_text(lock_file(shop).read_text() + "# again\n")
    assert shop.store().ensure("tool", None, "amd64", Options())[1]
    (shop.catalogue / "tool.yml").write_text((shop.catalogue / "tool.yml").read_text().replace("3.13", "3.12"))
    with pytest.raises(FetchError, match="native"):
        shop.store().ensure("tool", None, "amd64", Options())


def test_a_changed_wheel_is_refused(shop: Shop, wheels: Path) -> None:
    wheel(wheels, "plain", "py3-none-any", {"plain.py": "ANSWER = 43\n"})
    with pytest.raises(HashError, match="WRONG HASH for tool"):
        shop.store().ensure("tool", None, "amd64", Options())


@pytest.mark.usefixtures("wheels")
@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("other==1.0", PinError, "other has no version with a hash"),
        ("other @ https://example.org/other.whl", BuildError, "an address or an option"),
        ("--index-url=x", BuildError, "an address or an option"),
        (f"old==1.0 ; python_version < '3.12' --hash=sha256:{'0' * 64}", BuildError, "some releases of Python only"),
    ],
)
def test_a_lock_that_proves_nothing_is_refused(shop: Shop, line: str, error: type[Exception], message: str) -> None:
    lock_file(shop).write_text(f"{line}\n")
    with pytest.raises(error, match=message):
        shop.store().ensure("tool", None, "amd64", Options())


@pytest.mark.usefixtures("wheels")
def test_a_missing_lock_is_named(shop: Shop) -> None:
    lock_file(shop).unlink()
    with pytest.raises(PinError, match=r"requirements\.txt is missing"):
        shop.store().ensure("tool", None, "amd64", Options())


@pytest.mark.usefixtures("wheels")
def test_pin_copies_the_requirements_and_keeps_what_is_pinned(shop: Shop) -> None:
    source = shop.catalogue.parent / "app.txt"
    with pytest.raises(PinError, match=r"app\.txt is missing: make it first"):
        pin(shop.store(), "tool", "2.0", make_default=False)
    source.write_text(lock_file(shop).read_text())
    assert pin(shop.store(), "tool", "2.0", make_default=True) == {"amd64": {"it": "locked"}, "arm64": {"it": "locked"}}
    copied = shop.catalogue / "tool" / "2.0" / "requirements.txt"
    assert copied.read_text() == source.read_text()
    source.write_text("# other\n")
    pin(shop.store(), "tool", "2.0", make_default=False)
    assert copied.read_text() != source.read_text()


def test_wheels_for_the_hosts_libc_are_taken() -> None:
    for tag in ("manylinux_2_28_aarch64", "manylinux2014_aarch64", "manylinux_2_41_aarch64"):
        assert tag in platforms("arm64")

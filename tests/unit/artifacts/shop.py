# SPDX-License-Identifier: GPL-3.0-or-later
"""A vendor's web server on loopback, a small catalogue and an empty store."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from artifacts.store.catalogue import load_catalogue
from artifacts.store.progress import Reporter
from artifacts.store.store import Store


@dataclass
class Vendor:
    """What the server serves, and what it was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: list[str | None] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    break_after: int | None = None  # bytes after which the next answer breaks off
    redirects: dict[str, str] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)  # errors the next answers are made of
    before_answer: Callable[[], None] = lambda: None

    def put(self, name: str, content: bytes) -> str:
        """Serve ``content`` as ``name`` and return its sha256."""
        self.files["/" + name] = content
        return hashlib.sha256(content).hexdigest()


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    state = Vendor()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(self.path)
            state.ranges.append(self.headers.get("Range"))
            state.before_answer()
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            content = state.files.get(self.path)
            if self.path in state.redirects:
                self.send_response(302)
                self.send_header("Location", state.redirects[self.path])
                self.end_headers()
                return
            if content is None:
                self.send_error(404)
                return
            etag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
            start = 0
            if self.headers.get("Range") and self.headers.get("If-Range") == etag:
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:]
            if state.break_after is not None:
                body, state.break_after = body[: state.break_after], None
            with contextlib.suppress(BrokenPipeError):  # some tests kill the client
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def tarball(entries: dict[str, bytes | str], mode: int = 0o755) -> bytes:
    """Make a .tar.gz; a text value is the target of a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.mode = mode
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


CATALOGUE = """\
# a comment that must survive
description: a tool for tests
default: "1.0"
executable: [bin/tool]
links: {{bin/alias: tool}}
prune: {{all: ["*.md"], amd64: [share/arm/*]}}
keep: [share/KEEP.md]
sources:
  upstream:
    kind: url
    url: {url}/tool-{{version}}-{{machine}}.tar.gz
    checksums: {url}/SHA256SUMS
    arch_names: {{machine: {{amd64: x64, arm64: arm64}}}}
    files: {{"tool-{{version}}/": ""}}
  mirror:
    kind: url
    url: {url}/mirror/tool-{{version}}.tar.gz
    files: {{"tool-{{version}}/": ""}}
versions:
  "1.0":
    amd64:
      upstream: {pin}
"""


@dataclass
class Shop:
    """A store with one tool in its catalogue."""

    vendor: Vendor
    catalogue: Path
    directory: Path
    content: bytes
    pin: str
    log: io.StringIO

    def write(self, text: str, name: str = "tool") -> None:
        """Replace a catalogue file; {url} and {pin} are filled in."""
        text = text.format(url=self.vendor.url, pin=self.pin)
        (self.catalogue / f"{name}.yml").write_text(text, encoding="utf-8")

    def store(self) -> Store:
        """Open the store with the catalogue as it is now."""
        return Store(self.directory, load_catalogue(self.catalogue), Reporter(self.log))


@pytest.fixture
def shop(tmp_path: Path, vendor: Vendor) -> Shop:
    content = tarball(
        {
            "tool-1.0/bin/tool": b"#!/bin/sh\necho tool\n",
            "tool-1.0/share/README.md": b"dead weight",
            "tool-1.0/share/KEEP.md": b"read at run time",
            "tool-1.0/share/arm/lib.so": b"for another machine",
        }
    )
    pin = vendor.put("tool-1.0-x64.tar.gz", content)
    catalogue = tmp_path / "catalogue"
    catalogue.mkdir()
    made = Shop(vendor, catalogue, tmp_path / "store", content, pin, io.StringIO())
    made.write(CATALOGUE)
    return made


CLIENT = """\
description: a tool for tests
default: "1.0"
sources:
  {source}
versions:
  "1.0":
    amd64:
      it: {pin}
"""


def catalogue(shop: Shop, source: str, pin: str | None) -> None:
    """Write a catalogue whose only tool has one source, given as the inside of a YAML mapping."""
    text = CLIENT.replace("{source}", f"it: {{{source}}}")
    text = text.replace("      it: {pin}\n", "      {}\n") if pin is None else text.replace("{pin}", pin)
    (shop.catalogue / "tool.yml").write_text(text)


def program(directory: Path, name: str, script: str) -> None:
    """Put a shell script called ``name`` before everything else in PATH; it logs its arguments."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f'#!/bin/sh\necho "$@" >> {directory}/{name}.log\n{script}\n')
    (directory / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory that comes first in PATH."""
    directory = tmp_path / "programs"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


GO_SOURCE = "kind: go, packages: {bin/tool: example.org/tool/cmd/tool}, ldflags: '-X v={version}', tags: lean"
GO_SCRIPT = """
env | grep -E '^(CGO_ENABLED|GOARCH|GOOS)=' | sort >> "$(dirname "$0")/go.log"
case "$1" in
  mod) echo "module $3" > go.mod;;
  get) echo "example.org/tool v1.0 h1:abc" > go.sum;;
  env) echo go1.99;;
  build) while [ "$1" != -o ]; do shift; done; mkdir -p "$(dirname "$2")"; cp go.sum "$2";;
esac"""

NODE = """\
description: a stand-in for Node.js
default: "24.0"
executable: [bin/node]
sources:
  upstream: {{kind: url, url: "{url}/node-{{arch}}.tar.gz"}}
versions:
  "24.0":
    amd64: {{upstream: {pin}}}
    arm64: {{upstream: {pin}}}
"""
RELEASE = """\
description: an application
default: "2.0"
executable: [node_modules/app/bin/app]
prune: {{all: ["*.map"]}}
overrides: {{left-pad: 1.0.0}}
sources:
  npm: {{kind: npm-release, package: app}}
versions:
  "2.0":
    amd64: {{npm: locked}}
"""
FAKE_NODE = """\
#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *" ci "*) mkdir -p node_modules/app/bin; echo app > node_modules/app/bin/app; echo m > node_modules/app/x.map;;
  *" install "*) cat > package-lock.json <<X
{lock}
X
  ;;
esac
"""
LOCK = {"lockfileVersion": 3, "packages": {"": {"name": "x"}, "node_modules/app": {"integrity": "sha512-abc"}}}


def write_lock(shop: Shop, content: object, directory: str = "app/2.0") -> None:
    """Write the lock files of a built release."""
    locks = shop.catalogue / directory
    locks.mkdir(parents=True, exist_ok=True)
    (locks / "package.json").write_text("{}")
    (locks / "package-lock.json").write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def npm_release(shop: Shop, tmp_path: Path) -> Path:
    """Set up a catalogue with an application, built by a Node.js that is a shell script; return its log."""
    log = tmp_path / "node.log"
    script = FAKE_NODE.format(log=log, lock=json.dumps(LOCK))
    content = tarball({"bin/node": script.encode(), "lib/node_modules/npm/bin/npm-cli.js": b""})
    shop.pin = shop.vendor.put("node-amd64.tar.gz", content)
    shop.vendor.put("node-arm64.tar.gz", content)
    shop.write(NODE, "nodejs")
    shop.write(RELEASE, "app")
    write_lock(shop, LOCK)
    return log

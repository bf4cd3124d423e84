"""A vendor's web server on loopback, a small catalogue and an empty store."""

from __future__ import annotations

import hashlib
import io
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
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

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

"""Clients of the store, run on the controller against the test host."""

from __future__ import annotations

import json
import socket
import ssl
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
import testinfra
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError

SECRETS = "/etc/n8n-platform/secrets"
SETTINGS = "/etc/n8n-platform/object-store/settings.json"
SERVER = "docker://n8n-platform-object-store"
BACKUP = "docker://n8n-platform-object-store-backup"


@pytest.fixture(scope="session")
def server() -> Any:
    """Return the host that runs the store."""
    return testinfra.get_host(SERVER)


@pytest.fixture(scope="session")
def backup_host() -> Any:
    """Return the host that uses the store as an external one."""
    return testinfra.get_host(BACKUP)


@dataclass(frozen=True)
class Store:
    """A store as a host of the platform knows it."""

    settings: dict[str, Any]
    ca_file: str
    secret: str

    @property
    def bucket(self) -> str:
        """Return the bucket of the backups."""
        return str(self.settings["bucket"])

    def client(self, config: Config | None = None, **other: Any) -> Any:
        """Return a client of the writer; ``config`` adds to the usual one, ``other`` replaces arguments of boto3."""
        usual = Config(
            s3={"addressing_style": "path"},
            retries={"mode": "standard", "max_attempts": 1},
            connect_timeout=5,
            read_timeout=30,
        )
        given: dict[str, Any] = {
            "endpoint_url": self.settings["url"],
            "region_name": self.settings["region"],
            "aws_access_key_id": self.settings["writer"],
            "aws_secret_access_key": self.secret,
            "verify": self.ca_file,
            "config": usual.merge(config) if config else usual,
        }
        return boto3.client("s3", **{**given, **other})


def store_of(host: Any, directory: Path) -> Store:
    """Return the store that a host's settings describe."""
    settings = json.loads(host.file(SETTINGS).content_string)
    ca_file = directory / f"{uuid.uuid4()}.crt"
    ca_file.write_text(host.file(settings["ca_file"]).content_string, encoding="utf-8")
    return Store(settings, str(ca_file), host.file(f"{SECRETS}/object_store_backup_secret").content_string)


@pytest.fixture(scope="session")
def ours(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return the store as its own host knows it."""
    return store_of(server, tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="session")
def external(backup_host: Any, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return the store as another host knows it, to whom it is external."""
    return store_of(backup_host, tmp_path_factory.mktemp("external"))


@pytest.fixture(scope="session")
def root(server: Any, ours: Store) -> Any:
    """Return a client of the root key, which only the store's own host has."""
    secret = server.file(f"{SECRETS}/object_store_root_secret").content_string
    return ours.client(aws_access_key_id=ours.settings["root"], aws_secret_access_key=secret)


@pytest.fixture
def prefix() -> str:
    """Return a place in the bucket that no other test uses."""
    return f"test/{uuid.uuid4()}/"


class Content:
    """What botocore wants of a response's content."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def stream(self) -> Iterator[bytes]:
        """Yield all of it."""
        yield self.content


def send_at_once(request: Any, **_: Any) -> AWSResponse:
    """Send head and body of a request in one piece, and return the answer.

    The server answers a refusal and closes without reading the body. A client that is still sending it then sees a
    broken connection, or the answer, as it happens.
    """
    where = urlsplit(request.url)
    body = request.body or b""
    body = body.read() if hasattr(body, "read") else body
    content = body.encode() if isinstance(body, str) else body
    if request.headers.get("Transfer-Encoding") == "chunked":
        content = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
    headers = {"Host": where.netloc, **{name: value for name, value in request.headers.items() if name != "Expect"}}
    head = f"{request.method} {where.path}{'?' * bool(where.query)}{where.query} HTTP/1.1\r\n"
    head += "".join(
        f"{name}: {value.decode() if isinstance(value, bytes) else value}\r\n" for name, value in headers.items()
    )
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((where.hostname, where.port), timeout=30) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(f"{head}\r\n".encode() + content)
        answer = HTTPResponse(connection, method=request.method)
        answer.begin()
        return AWSResponse(request.url, answer.status, dict(answer.headers), Content(answer.read()))


@pytest.fixture
def refused() -> Callable[..., str]:
    """Return `refused(call, ...)`, which makes a call, expects an error of the store, and returns its code."""

    def attempt(call: Any, **arguments: Any) -> str:
        events = call.__self__.meta.events
        events.register("before-send.s3", send_at_once, unique_id="at-once")
        try:
            with pytest.raises(ClientError) as error:
                call(**arguments)
        finally:
            events.unregister("before-send.s3", unique_id="at-once")
        return str(error.value.response["Error"]["Code"])

    return attempt


@pytest.fixture
def program(server: Any) -> Callable[..., Any]:
    """Return `program(words, **settings)`: run the store's own program on its host, with some settings changed."""

    def call(words: str, host: Any = server, **changed: Any) -> Any:
        settings = json.loads(host.file(SETTINGS).content_string)
        path = "/run/object-store-test.json"
        text = json.dumps({**settings, **changed}).replace("'", "'\\''")
        host.check_output(f"printf %s '{text}' > {path}")
        return host.run(f"/usr/local/lib/n8n-platform/object-store {path} {words}")

    return call


@pytest.fixture
def stopped_timers(server: Any) -> Iterator[None]:
    """Keep the timers from coming between."""
    server.check_output("systemctl stop object-store-guard.timer object-store-keep.timer")
    yield
    server.check_output("systemctl start object-store-guard.timer object-store-keep.timer")

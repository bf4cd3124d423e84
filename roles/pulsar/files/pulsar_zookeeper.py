# SPDX-License-Identifier: GPL-3.0-or-later
"""The few words of ZooKeeper's protocol that the platform asks with, so that no question needs a Java program."""

from __future__ import annotations

import socket
import ssl
import struct
from dataclasses import dataclass
from types import TracebackType

OK, NO_NODE = 0, -101
DELETE, EXISTS, GET_DATA, GET_CHILDREN = 2, 3, 4, 8
TIMEOUT_MS = 10_000
LARGEST = 4 * 2**20  # bytes of an answer


class ZooKeeperError(Exception):
    """ZooKeeper cannot be asked, or refused to answer."""


@dataclass(frozen=True)
class Node:
    """What is known of a node: the transaction that made it and the session it belongs to (0: it stays)."""

    created: int
    owner: int


class ZooKeeper:
    """A session with one server; use it as a context manager."""

    def __init__(self, address: str, tls: ssl.SSLContext | None = None, timeout: float = 5) -> None:
        """Prepare a session with ``address`` (HOST:PORT). ``timeout`` is in seconds and counts for each answer."""
        self.address, self.tls, self.timeout = address, tls, timeout
        self.requests = 0

    def __enter__(self) -> ZooKeeper:
        """Connect.

        Raises:
            ZooKeeperError: nobody answers, or the server serves no requests because it has no quorum.
        """
        host, port = self.address.rsplit(":", 1)
        try:
            self.connection = socket.create_connection((host.strip("[]"), int(port)), timeout=self.timeout)
            if self.tls is not None:
                self.connection = self.tls.wrap_socket(self.connection, server_hostname=host)
            # Version of the protocol, last transaction seen, session timeout, session, its password, read-only or not.
            self._send(struct.pack(">iqiqi16s?", 0, 0, TIMEOUT_MS, 0, 16, b"", False))
            self._receive()
        except OSError as error:
            raise ZooKeeperError(f"{self.address}: {error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the session."""
        self.connection.close()

    def _send(self, body: bytes) -> None:
        self.connection.sendall(struct.pack(">i", len(body)) + body)

    def _receive(self) -> bytes:
        (length,) = struct.unpack(">i", self._exactly(4))
        if not 0 <= length <= LARGEST:
            raise ZooKeeperError(f"{self.address}: an answer of {length} bytes; is this ZooKeeper?")
        return self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            part = self.connection.recv(count - len(found))
            if not part:
                raise ConnectionError("the connection was closed")
            found += part
        return found

    def _ask(self, kind: int, path: str, option: bytes = b"\0") -> bytes | None:
        """Ask about a path; None if there is no such node. The option is to set no watch, or a version."""
        self.requests += 1
        name = path.encode()
        try:
            self._send(struct.pack(f">iii{len(name)}s", self.requests, kind, len(name), name) + option)
            answer = self._receive()
        except OSError as error:
            raise ZooKeeperError(f"{self.address}: {error}") from error
        _request, _transaction, code = struct.unpack(">iqi", answer[:16])
        if code == NO_NODE:
            return None
        if code != OK:
            raise ZooKeeperError(f"{self.address}: error {code} about {path}")
        return answer[16:]

    def node(self, path: str) -> Node | None:
        """Return what is known of a node, or None if there is none."""
        answer = self._ask(EXISTS, path)
        if answer is None:
            return None
        created, _modified, _ctime, _mtime, *_versions, owner = struct.unpack(">qqqqiiiq", answer[:52])
        return Node(created, owner)

    def data(self, path: str) -> bytes:
        """Return what a node holds; nothing if there is none."""
        answer = self._ask(GET_DATA, path)
        if answer is None:
            return b""
        (length,) = struct.unpack(">i", answer[:4])
        return answer[4 : 4 + max(length, 0)]

    def delete(self, path: str) -> None:
        """Remove a node; that there is none is as good."""
        self._ask(DELETE, path, struct.pack(">i", -1))

    def children(self, path: str) -> list[str]:
        """Return the names of the nodes below one, sorted; none if it does not exist."""
        answer = self._ask(GET_CHILDREN, path)
        if answer is None:
            return []
        (count,), position, names = struct.unpack(">i", answer[:4]), 4, []
        for _ in range(count):
            (length,) = struct.unpack(">i", answer[position : position + 4])
            names.append(answer[position + 4 : position + 4 + length].decode())
            position += 4 + length
        return sorted(names)

# SPDX-License-Identifier: GPL-3.0-or-later
"""A small Redis client for modules: the standard library only, so that a host needs nothing installed for it."""

from __future__ import annotations

import socket
from types import TracebackType

CRLF = b"\r\n"


class RedisError(Exception):
    """The server refused a command; ``kind`` is the first word of its answer, such as ``WRONGPASS`` or ``NOPERM``."""

    def __init__(self, answer: str) -> None:
        super().__init__(answer)
        self.kind = answer.split(" ", 1)[0]


class Redis:
    """One connection to a Redis server over its UNIX socket; use it as a context manager.

    ``timeout`` is in seconds and holds for each read. A server that is not there raises ``OSError``.
    """

    def __init__(self, path: str, timeout: float = 5.0) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        self.reader = self.socket.makefile("rb")

    def __enter__(self) -> Redis:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reader.close()
        self.socket.close()

    def call(self, *words: str | int) -> object:
        """Send one command and return the answer: ``str``, ``int``, ``None`` or a list of these. Raises RedisError."""
        parts = [str(word).encode() for word in words]
        lines = [b"*%d" % len(parts)]
        for part in parts:
            lines += [b"$%d" % len(part), part]
        self.socket.sendall(CRLF.join(lines) + CRLF)
        return self._answer()

    def _answer(self) -> object:
        line = self.reader.readline()
        if not line.endswith(CRLF):
            raise ConnectionError("Redis closed the connection")
        kind, rest = line[:1], line[1:-2].decode()
        if kind == b"+":
            return rest
        if kind == b"-":
            raise RedisError(rest)
        if kind == b":":
            return int(rest)
        size = int(rest)
        if size < 0:
            return None
        if kind == b"*":
            return [self._answer() for _ in range(size)]
        return self.reader.read(size + 2)[:-2].decode(errors="replace")

    def info(self, section: str = "default") -> dict[str, str]:
        """Return a section of INFO as a dictionary."""
        text = str(self.call("INFO", section))
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def pairs(self, *words: str | int) -> dict[str, str]:
        """Return an answer made of alternating names and values, such as CONFIG GET, as a dictionary."""
        answer = self.call(*words)
        flat = [str(item) for item in answer] if isinstance(answer, list) else []
        return dict(zip(flat[::2], flat[1::2], strict=False))

# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that speaks Redis's protocol on a UNIX socket and answers what a test says."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

Answer = Callable[[list[str]], str | None]

# What a queue that is well says of itself.
INFO = {
    "redis_version": "8.0.2",
    "used_memory": str(10 * 2**20),
    "maxmemory": str(100 * 2**20),
    "maxmemory_policy": "noeviction",
    "evicted_keys": "0",
    "rejected_connections": "0",
    "aof_enabled": "1",
    "aof_last_write_status": "ok",
    "aof_last_bgrewrite_status": "ok",
}


class FakeRedis:
    """Use it as a context manager. ``answer`` gets a command's words and returns the raw answer; None hangs up."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self.path = str(path)
        self.calls: list[list[str]] = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while header := self.rfile.readline():
                    words = []
                    for _ in range(int(header[1:])):
                        size = int(self.rfile.readline()[1:])
                        words.append(self.rfile.read(size + 2)[:-2].decode())
                    outer.calls.append(words)
                    raw = answer(words)
                    if raw is None:
                        return
                    self.wfile.write(raw.encode())

        self.server = socketserver.ThreadingUnixStreamServer(self.path, Handler)
        self.server.daemon_threads = True

    def __enter__(self) -> FakeRedis:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()


def bulk(*items: str) -> str:
    """Return an answer that is a list of texts."""
    return f"*{len(items)}\r\n" + "".join(f"${len(item.encode())}\r\n{item}\r\n" for item in items)


class Queue:
    """Answers as Redis would with these jobs; ``later`` replaces the jobs from the second look on."""

    def __init__(self, info: dict[str, str], later: dict[str, int] | None = None, **jobs: int) -> None:
        self.info, self.later, self.jobs, self.looks = {**INFO, **info}, later, jobs, 0

    def __call__(self, words: list[str]) -> str:
        if words[0] == "AUTH":
            return "+OK\r\n"
        if words[0] == "INFO":
            text = "".join(f"{name}:{value}\r\n" for name, value in self.info.items())
            return f"${len(text)}\r\n{text}\r\n"
        state = words[1].rsplit(":", 1)[1]
        self.looks += state == "wait" and words[0] == "LLEN"
        jobs = self.later if self.later is not None and self.looks > 1 else self.jobs
        return "$-1\r\n" if words[0] == "LINDEX" else f":{jobs.get(state, 0)}\r\n"

# SPDX-License-Identifier: GPL-3.0-or-later
"""Note what is sent here, one JSON line each: alerts, the dead man's switch, calls of workflows.

python3 receiver.py PORT DIRECTORY

A request to /NAME is appended to DIRECTORY/NAME with the time, its headers and its body.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """Notes a request and answers 200."""

    directory: Path

    def answer(self) -> None:
        """Append the request to its file."""
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode("utf-8", "replace")
        name = self.path.strip("/").split("?")[0].replace("/", "-") or "root"
        headers = {key.lower(): value for key, value in self.headers.items()}
        line = json.dumps({"at": time.time(), "headers": headers, "body": body})
        with (self.directory / name).open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        """Print nothing: the journal is part of the test."""


def main() -> None:
    """Serve until the end."""
    Handler.directory = Path(sys.argv[2])
    Handler.directory.mkdir(parents=True, exist_ok=True)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()

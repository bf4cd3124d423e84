# SPDX-License-Identifier: GPL-3.0-or-later
"""Note every effect of a workflow, so that they can be counted; runs on the test host.

    python3 sink.py FILE

POST /effect {"uid": ..., "event": ..., "execution": ...} writes one line; the answer comes when it is on the disk.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ADDRESS = ("127.0.86.2", 8700)


class Handler(BaseHTTPRequestHandler):
    """Takes effects."""

    protocol_version = "HTTP/1.1"
    lock = threading.Lock()

    def do_POST(self) -> None:
        """Write down an effect."""
        effect = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.lock, open(sys.argv[1], "a", encoding="utf-8") as stream:
            stream.write(f"{effect['uid']} {effect['event']} {effect['execution']}\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.send_response(200)
        self.send_header("content-length", "2")
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(ADDRESS, Handler).serve_forever()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Send webhooks with unique ids at a steady rate and note which ones were acknowledged; runs on the test host.

    python3 client.py DIRECTORY RATE DOMAIN

They go through Traefik as those of any visitor, because n8n itself answers 200 while it starts and forgets the request.

The phase (a word) is read from DIRECTORY/phase for every request and is part of its id, ``fx-PHASE-NUMBER``. Ids go to
DIRECTORY/sent before, and to DIRECTORY/acknowledged after n8n answered 200. Ends with SIGTERM.
"""

from __future__ import annotations

import http.client
import itertools
import json
import signal
import socket
import ssl
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import TextIO

HTTP_OK = 200
AUTHORITY = "/etc/n8n-platform/tls/ca.crt"


class Connection(http.client.HTTPSConnection):
    """A connection to Traefik on this host, whatever the name resolves to."""

    def connect(self) -> None:
        """Connect to loopback and check the certificate for the name."""
        plain = socket.create_connection(("127.0.0.1", 443), self.timeout)
        self.sock = ssl.create_default_context(cafile=AUTHORITY).wrap_socket(plain, server_hostname=self.host)


class Client:
    """The client; numbers begin with ``first``."""

    def __init__(self, directory: Path, domain: str, first: int) -> None:
        self.directory = directory
        self.domain = domain
        self.numbers = itertools.count(first)
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.sent: TextIO = (directory / "sent").open("a", buffering=1)
        self.acknowledged: TextIO = (directory / "acknowledged").open("a", buffering=1)

    def note(self, stream: TextIO, uid: str) -> None:
        """Write an id as one line."""
        with self.lock:
            stream.write(f"{uid}\n")

    def send(self, uid: str) -> None:
        """Send one request; anything but 200 counts as refused."""
        connection = Connection(self.domain, timeout=20)
        try:
            self.note(self.sent, uid)
            body = json.dumps({"uid": uid, "text": "x" * 200})
            connection.request("POST", "/webhook/faults", body, {"content-type": "application/json"})
            if connection.getresponse().status == HTTP_OK:
                self.note(self.acknowledged, uid)
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()

    def run(self, rate: float) -> None:
        """Send at ``rate`` requests a second, whether or not earlier ones were answered (20 open ones at most)."""
        start = time.monotonic()
        with ThreadPoolExecutor(20) as pool:
            for index in itertools.count():
                if self.ended.wait(max(start + index / rate - time.monotonic(), 0)):
                    return
                phase = (self.directory / "phase").read_text().strip()
                pool.submit(self.send, f"fx-{phase}-{next(self.numbers)}")


def main() -> None:
    """Run until SIGTERM."""
    directory, rate, domain = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    # Never a number twice, in later runs either, as long as the rate stays below ten a second.
    client = Client(directory, domain, int(time.time() * 10))

    def end(number: int, frame: FrameType | None) -> None:
        client.ended.set()

    signal.signal(signal.SIGTERM, end)
    client.run(rate)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Send webhooks with unique ids at a steady rate and note which ones were acknowledged; runs on the test host.

    python3 client.py DIRECTORY RATE PORT...

The phase (a word) is read from DIRECTORY/phase for every request and is part of its id, ``fx-PHASE-NUMBER``. Ids go to
DIRECTORY/sent before, and to DIRECTORY/acknowledged after n8n answered 200. Ends with SIGTERM.
"""

from __future__ import annotations

import http.client
import itertools
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import TextIO

HTTP_OK = 200


class Client:
    """The client; numbers begin with ``first``."""

    def __init__(self, directory: Path, ports: list[int], first: int) -> None:
        self.directory = directory
        self.ports: Iterator[int] = itertools.cycle(ports)
        self.numbers = itertools.count(first)
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.sent: TextIO = (directory / "sent").open("a", buffering=1)
        self.acknowledged: TextIO = (directory / "acknowledged").open("a", buffering=1)

    def note(self, stream: TextIO, uid: str) -> None:
        """Write an id as one line."""
        with self.lock:
            stream.write(f"{uid}\n")

    def send(self, uid: str, port: int) -> None:
        """Send one request; anything but 200 counts as refused."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
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
                pool.submit(self.send, f"fx-{phase}-{next(self.numbers)}", next(self.ports))


def main() -> None:
    """Run until SIGTERM."""
    directory, rate, ports = Path(sys.argv[1]), float(sys.argv[2]), [int(port) for port in sys.argv[3:]]
    # Never a number twice, in later runs either, as long as the rate stays below ten a second.
    client = Client(directory, ports, int(time.time() * 10))

    def end(number: int, frame: FrameType | None) -> None:
        client.ended.set()

    signal.signal(signal.SIGTERM, end)
    client.run(rate)


if __name__ == "__main__":
    main()

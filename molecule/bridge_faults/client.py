# SPDX-License-Identifier: GPL-3.0-or-later
"""Publish events with unique ids at a steady rate, as a careful client does; runs on the test host.

    python3 client.py DIRECTORY RATE DOMAIN SECRET_FILE

Through Traefik, with an idempotency key, and again with the same key until the bridge has answered 202 or a minute is
over. The phase (a word) is read from DIRECTORY/phase for every event and is part of its id, ``bf-PHASE-NUMBER``; even
numbers go by the topic, odd ones by the queue. Ids go to DIRECTORY/sent before the first try and to
DIRECTORY/acknowledged, with the event's id and how many tries it took, after the 202. Ends with SIGTERM.
"""

from __future__ import annotations

import base64
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
from typing import Any, TextIO

AUTHORITY = "/etc/n8n-platform/tls/ca.crt"
ACCOUNT = "faults"
PATIENCE_SECONDS = 60
OK, ACCEPTED, UNAUTHORIZED = 200, 202, 401


class Connection(http.client.HTTPSConnection):
    """A connection to Traefik on this host, whatever the name resolves to."""

    def connect(self) -> None:
        """Connect to loopback and check the certificate for the name."""
        plain = socket.create_connection(("127.0.0.1", 443), self.timeout)
        self.sock = ssl.create_default_context(cafile=AUTHORITY).wrap_socket(plain, server_hostname=self.host)


class Client:
    """The client; numbers begin with ``first``."""

    def __init__(self, directory: Path, domain: str, secret: str, first: int) -> None:
        self.directory = directory
        self.domain = domain
        self.secret = secret
        self.numbers = itertools.count(first)
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.token = ""
        self.sent: TextIO = (directory / "sent").open("a", buffering=1)
        self.acknowledged: TextIO = (directory / "acknowledged").open("a", buffering=1)

    def note(self, stream: TextIO, line: str) -> None:
        """Write a line."""
        with self.lock:
            stream.write(f"{line}\n")

    def request(self, path: str, body: str, headers: dict[str, str]) -> tuple[int, Any]:
        """Send a request and return status and parsed answer; 0 when there was none."""
        connection = Connection(self.domain, timeout=20)
        try:
            connection.request("POST", f"/pulsar{path}", body, headers)
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if answer.status in (OK, ACCEPTED) else None
        except (OSError, http.client.HTTPException, ValueError):
            return 0, None
        finally:
            connection.close()

    def sign_in(self) -> None:
        """Get an access token, if there is none."""
        if self.token:
            return
        basic = base64.b64encode(f"{ACCOUNT}:{self.secret}".encode()).decode()
        headers = {"authorization": f"Basic {basic}", "content-type": "application/x-www-form-urlencoded"}
        status, answer = self.request("/oauth/token", "grant_type=client_credentials", headers)
        if status == OK:
            self.token = answer["access_token"]

    def publish(self, uid: str, number: int) -> None:
        """Publish one event until it is accepted; give up after a minute."""
        self.note(self.sent, uid)
        kind = "topic.fault" if number % 2 == 0 else "queue.fault"
        body = json.dumps({"type": kind, "data": {"uid": uid, "text": "x" * 200}})
        until = time.monotonic() + PATIENCE_SECONDS
        for attempt in itertools.count(1):
            self.sign_in()
            headers = {
                "authorization": f"Bearer {self.token}",
                "content-type": "application/json",
                "idempotency-key": uid,
            }
            status, answer = self.request("/publish", body, headers)
            if status == ACCEPTED:
                self.note(self.acknowledged, f"{uid} {answer['id']} {attempt}")
                return
            if status == UNAUTHORIZED:
                self.token = ""
            if time.monotonic() > until or self.ended.wait(min(0.2 * attempt, 2)):
                return

    def run(self, rate: float) -> None:
        """Publish ``rate`` events a second, whether or not earlier ones were answered (60 open ones at most)."""
        start = time.monotonic()
        with ThreadPoolExecutor(60) as pool:
            for index in itertools.count():
                if self.ended.wait(max(start + index / rate - time.monotonic(), 0)):
                    return
                phase = (self.directory / "phase").read_text().strip()
                number = next(self.numbers)
                pool.submit(self.publish, f"bf-{phase}-{number}", number)


def main() -> None:
    """Run until SIGTERM."""
    directory, rate, domain = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    secret = Path(sys.argv[4]).read_text(encoding="utf-8").strip()
    # Never a number twice, in later runs either, as long as the rate stays below ten a second.
    client = Client(directory, domain, secret, int(time.time() * 10))

    def end(number: int, frame: FrameType | None) -> None:
        client.ended.set()

    signal.signal(signal.SIGTERM, end)
    client.run(rate)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""Talk to the bridge as a client would: over HTTPS through Traefik, from the test host."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from molecule.waiting import until

DOMAIN = "n8n.test"
AUTHORITY = "/etc/n8n-platform/tls/ca.crt"
SECRETS = "/etc/n8n-platform/secrets"
STATUS = "\n%{http_code} %header{retry-after}"


@dataclass(frozen=True)
class Answer:
    """What the bridge said."""

    status: int
    text: str
    retry_after: str = ""

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.text)


class Api:
    """The bridge's interface; ``run`` runs a shell command on a host of the bridge and returns what it printed.

    ``address`` is that of Traefik, as that host sees it.
    """

    def __init__(self, run: Callable[[str], str], address: str = "127.0.0.1") -> None:
        self.run = run
        self.address = address
        self.tokens: dict[str, str] = {}

    def secret(self, name: str) -> str:
        """Return a secret of the host."""
        return self.run(f"cat {SECRETS}/{name}").strip()

    def call(self, method: str, path: str, *options: str, body: Any = None) -> Answer:
        """Send a request; a body that is text goes as it is, anything else as JSON."""
        command = ["curl", "--silent", "--show-error", "--max-time", "30", "--cacert", AUTHORITY, "--request", method]
        command += ["--resolve", f"{DOMAIN}:443:{self.address}", "--write-out", STATUS, *options]
        given = ""
        if body is not None:
            text = body if isinstance(body, str) else json.dumps(body)
            given = f"echo {base64.b64encode(text.encode()).decode()} | base64 -d | "
            command += ["--data-binary", "@-"]
            if not any("content-type" in option for option in options):
                command += ["--header", "content-type: application/json"]
        said = self.run(given + shlex.join([*command, f"https://{DOMAIN}/pulsar{path}"]))
        text, _, line = said.rpartition("\n")
        status, _, retry_after = line.partition(" ")
        return Answer(int(status), text, retry_after.strip())

    def token(self, account: str, scope: str = "") -> str:
        """Return an access token of an account, the same one for all requests of a test."""
        key = f"{account} {scope}"
        if key not in self.tokens:
            answer = self.call(
                "POST",
                "/oauth/token",
                *("--user", f"{account}:{self.secret(f'bridge_client_{account}')}"),
                *("--header", "content-type: application/x-www-form-urlencoded"),
                body="grant_type=client_credentials" + (f"&scope={scope}" if scope else ""),
            )
            assert answer.status == 200, answer
            self.tokens[key] = answer.json["access_token"]
        return self.tokens[key]

    def ask(self, account: str, method: str, path: str, *options: str, body: Any = None) -> Answer:
        """Send a request with the token of an account."""
        header = ("--header", f"authorization: Bearer {self.token(account)}")
        return self.call(method, path, *header, *options, body=body)

    def publish(self, account: str, kind: str, data: Any, *options: str, **more: Any) -> Answer:
        """Publish an event."""
        return self.ask(account, "POST", "/publish", *options, body={"type": kind, "data": data, **more})

    def state(self, account: str, event: str) -> str:
        """Return the state of an event."""
        answer = self.ask(account, "GET", f"/events/{event}")
        assert answer.status == 200, answer
        return str(answer.json["state"])

    def wait(self, account: str, event: str, wanted: str, seconds: float = 30) -> float:
        """Wait until an event is in a state; return how long that took."""
        return until(lambda: self.state(account, event) == wanted, seconds, f"event {event} is {wanted}")

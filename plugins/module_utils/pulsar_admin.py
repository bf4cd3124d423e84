# SPDX-License-Identifier: GPL-3.0-or-later
"""Pulsar's administration over HTTP: ask, compare, write."""

from __future__ import annotations

import json
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote, urlencode

from ansible.module_utils.basic import AnsibleModule

NOT_FOUND, CONFLICT = 404, 409
# A broker that has just started, or whose bookie has, answers some requests with these; the next attempt succeeds.
PASSING = {500, 502, 503}
# The broker that is asked names the one that serves the topic.
REDIRECTED = {307, 308}
HOPS = 5
ARGUMENTS: dict[str, Any] = {
    "url": {"type": "str", "required": True},
    "token_file": {"type": "path", "required": True, "no_log": False},
    "ca_file": {"type": "path"},
    "timeout": {"type": "int", "default": 60},
}


class PulsarError(Exception):
    """The broker refused a request; ``status`` is that of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class UnreachableError(Exception):
    """No broker answers."""


class Admin:
    """One broker, asked as an administrator."""

    def __init__(self, url: str, token: str, ca_file: str | None = None, timeout: float = 60) -> None:
        """Prepare requests; each is repeated for up to ``timeout`` seconds while the broker is not ready."""
        self.url, self.token, self.timeout = url.rstrip("/"), token, timeout
        self.context = ssl.create_default_context(cafile=ca_file) if ca_file else None

    def call(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """Make a request and return the answer; None if it is empty.

        Raises:
            PulsarError: the broker refused.
            UnreachableError: nobody answered.
        """
        until = time.monotonic() + self.timeout
        while True:
            try:
                return self._once(method, f"{self.url}/admin/v2/{path}", body, content_type)
            except PulsarError as error:
                if error.status not in PASSING or time.monotonic() > until:
                    raise
            time.sleep(0.5)

    def _once(self, method: str, url: str, body: Any, content_type: str, hops: int = HOPS) -> Any:
        data = None if body is None and method == "GET" else json.dumps(body).encode() if body is not None else b""
        request = urllib.request.Request(url, data=data, method=method)  # noqa: S310
        request.add_header("Authorization", f"Bearer {self.token}")
        request.add_header("Content-Type", content_type)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.context) as answer:  # noqa: S310
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            if error.code in REDIRECTED and hops and error.headers.get("Location"):
                return self._once(method, error.headers["Location"], body, content_type, hops - 1)
            said = error.read().decode(errors="replace")
            try:
                said = json.loads(said)["reason"]
            except (ValueError, KeyError, TypeError):
                said = said[:200]
            raise PulsarError(error.code, f"{method} {url}: HTTP {error.code} {said}") from error
        except (OSError, urllib.error.URLError) as error:
            raise UnreachableError(f"{self.url}: {getattr(error, 'reason', error)}") from error
        try:
            return json.loads(text) if text else None
        except ValueError:
            # Some answers are plain text.
            return text

    def get(self, path: str) -> Any:
        """Return what is there, or None if there is nothing."""
        try:
            return self.call("GET", path)
        except PulsarError as error:
            if error.status == NOT_FOUND:
                return None
            raise

    def put(self, path: str, body: Any = None, content_type: str = "application/json") -> None:
        """Make something; that it is there already is as good."""
        try:
            self.call("PUT", path, body, content_type)
        except PulsarError as error:
            if error.status != CONFLICT:
                raise

    def post(self, path: str, body: Any = None, **query: str) -> None:
        """Change something."""
        self.call("POST", path + (f"?{urlencode(query)}" if query else ""), body)

    def delete(self, path: str, **query: str) -> None:
        """Remove something; that it is gone already is as good."""
        try:
            self.call("DELETE", path + (f"?{urlencode(query)}" if query else ""))
        except PulsarError as error:
            if error.status != NOT_FOUND:
                raise


def quoted(name: str) -> str:
    """Return a name of several parts for the path of a request."""
    return "/".join(quote(part, safe="") for part in name.split("/"))


def connect(module: AnsibleModule) -> Admin:
    """Return the broker that the module's options name, or end the module."""
    given = module.params
    try:
        token = Path(given["token_file"]).read_text(encoding="utf-8").strip()
        return Admin(given["url"], token, given["ca_file"], given["timeout"])
    except OSError as error:
        unknown(module, f"Cannot read the token or the certificate: {error}")


def unknown(module: AnsibleModule, reason: str) -> NoReturn:
    """End the module because the broker cannot be asked; check mode may run before there is one."""
    if module.check_mode:
        module.exit_json(changed=True, changes=["everything: there is no broker to ask yet"])
    module.fail_json(msg=reason)
    raise SystemExit  # both have ended the module


def finish(module: AnsibleModule, before: dict[str, Any], after: dict[str, Any], changes: list[str]) -> NoReturn:
    """End the module, telling what differs."""
    texts = [json.dumps(side, indent=2, sort_keys=True) + "\n" for side in (before, after)]
    diff = {"before": texts[0], "after": texts[1]} if changes else {}
    module.exit_json(changed=bool(changes), changes=changes, diff=diff)
    raise SystemExit  # it has ended the module

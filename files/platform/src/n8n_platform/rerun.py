# SPDX-License-Identifier: GPL-3.0-or-later
"""Run lost executions again by n8n's own retry: the payload goes back to its place, the owner asks for the retry."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any

from n8n_platform.settings import Settings
from n8n_platform.store import Store

# n8n answers a retry when the execution has ended. We only want it begun, so we hang up after this many seconds.
ANSWER_SECONDS = 10.0
BEGIN_SECONDS = 30.0


class ApiError(Exception):
    """n8n refused; the text is what it said."""


class Api:
    """n8n's internal REST interface, as its owner."""

    def __init__(self, url: str, ca_file: str = "") -> None:
        self.url = url.rstrip("/")
        self.context = ssl.create_default_context(cafile=ca_file) if ca_file else None
        if self.context:
            # The certificate names the host; we come by its address. The authority is our own and is checked.
            self.context.check_hostname = False
        self.cookie = ""

    def post(self, path: str, body: dict[str, Any], timeout: float) -> Any:
        """Send JSON, return the answer's headers. Raises ApiError for a refusal, OSError for no answer in time."""
        request = urllib.request.Request(  # noqa: S310  (the address comes from our own settings)
            f"{self.url}{path}",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json", **({"cookie": self.cookie} if self.cookie else {})},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout, context=self.context) as answer:  # noqa: S310
                return answer.headers
        except urllib.error.HTTPError as error:
            text = error.read(2000).decode(errors="replace")
            with contextlib.suppress(ValueError, LookupError, TypeError):
                text = str(json.loads(text)["message"])
            raise ApiError(f"n8n answered {error.code}: {text}") from error

    def login(self, email: str, password: str) -> None:
        """Sign in; n8n allows five attempts a minute."""
        headers = self.post("/rest/login", {"emailOrLdapLoginId": email, "password": password}, 30)
        cookie = SimpleCookie()
        for line in headers.get_all("set-cookie") or []:
            cookie.load(line)
        if "n8n-auth" not in cookie:
            raise ApiError("n8n gave no session; does the owner need a second factor to sign in?")
        self.cookie = f"n8n-auth={cookie['n8n-auth'].value}"

    def retry(self, execution_id: int) -> None:
        """Ask n8n to run an execution again from the data stored with it, with the workflow as it was."""
        self.post(f"/rest/executions/{execution_id}/retry", {"loadWorkflow": False}, ANSWER_SECONDS)


@dataclass(frozen=True)
class Result:
    """What became of a request to run an execution again: the new id, or why there is none."""

    execution_id: int
    rerun_id: int | None
    error: str = ""


class Rerunner:
    """Runs entries of the list again, each at most once at a time."""

    def __init__(self, store: Store, api: Api, pause: Callable[[float], None] = time.sleep) -> None:
        self.store = store
        self.api = api
        self.pause = pause

    def rerun(self, execution_id: int) -> Result:
        """Run one entry again and return as soon as n8n has begun."""
        if not self.store.claim(execution_id):
            return Result(execution_id, None, "is not in the list, or is being run again already")
        error: list[Exception] = []

        def ask() -> None:
            try:
                self.api.retry(execution_id)
            except urllib.error.URLError as problem:
                refused = isinstance(problem.reason, ConnectionRefusedError)
                error.append(ApiError("n8n's main process does not answer; is it running?") if refused else problem)
            except (ApiError, OSError) as problem:
                error.append(problem)

        try:
            self.store.restore(execution_id)
        except Exception:
            self.store.release(execution_id)
            raise
        request = threading.Thread(target=ask, daemon=True)
        request.start()
        waited = 0.0
        while waited < BEGIN_SECONDS:
            asking = request.is_alive()
            if (rerun_id := self.store.rerun_of(execution_id)) is not None:
                return Result(execution_id, rerun_id)
            if not asking and error and isinstance(error[0], ApiError):
                break
            self.pause(0.2)
            waited += 0.2
        reason = str(error[0]) if error else "n8n did not begin in time"
        if error and isinstance(error[0], ApiError):
            self.store.release(execution_id)
        else:
            # It may still begin. The guard finds it, or opens the entry again after five minutes.
            reason += "; n8n-platform executions lost shows in five minutes whether it began"
        return Result(execution_id, None, reason)


def connect(settings: Settings, store: Store) -> Rerunner:
    """Sign in to n8n as its owner."""
    email = store.owner_email()
    if not email:
        raise ApiError("n8n has no owner account")
    api = Api(settings.api_url, settings.api_ca_file)
    api.login(email, settings.secret("n8n_owner_password"))
    return Rerunner(store, api)

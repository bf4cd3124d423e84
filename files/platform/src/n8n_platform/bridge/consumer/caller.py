# SPDX-License-Identifier: GPL-3.0-or-later
"""One call of a webhook of n8n, and what its answer means."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from enum import Enum
from urllib.parse import quote

import httpx

from n8n_platform.bridge import signing
from n8n_platform.bridge.consumer.addresses import Addresses
from n8n_platform.bridge.consumer.limits import Verdict
from n8n_platform.bridge.deliveries import Event

# What n8n says to everything while it starts, with the status 200; it has forgotten the request then.
STARTING = b"n8n is starting up"
# A webhook n8n does not know may be known soon: while n8n starts, or while its workflow is replaced.
MISSING = 404
# Answers below 500 that may be different next time.
PASSING = frozenset({408, 409, 425, 429})
BUSY = frozenset({429, 503})
ANSWER_BYTES = 300
CONNECT_SECONDS = 5.0
LONGEST_RETRY_AFTER_SECONDS = 86400.0
# Printable ASCII, which a header can carry; all else in it is percent-encoded UTF-8.
HEADER_SAFE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class Kind(Enum):
    """What is to become of the delivery."""

    DONE = "done"
    RETRY = "retry"
    DEAD = "dead"


@dataclass(frozen=True)
class Outcome:
    """What came of a call. ``retry_after_s`` is what n8n asked for, ``verdict`` what the limits learn from it.

    ``free``: nobody took the call, so it is no attempt. ``missing``: n8n does not know the webhook, yet or any more.
    """

    kind: Kind
    verdict: Verdict
    status: int | None = None
    error: str | None = None
    retry_after_s: float = 0.0
    seconds: float = 0.0
    free: bool = False
    missing: bool = False


def retry_after(value: str | None, now: float) -> float:
    """Return the seconds a Retry-After header asks for: a number or a date; 0 for anything else."""
    if not value:
        return 0.0
    try:
        seconds = float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER_SECONDS)


def judge(status: int, retry_statuses: frozenset[int]) -> tuple[Kind, Verdict]:
    """Return what a status means for the delivery and for the limits."""
    if 200 <= status < 300:  # noqa: PLR2004
        return Kind.DONE, Verdict.WELL
    if status in BUSY:
        return Kind.RETRY, Verdict.BUSY
    if status >= 500:  # noqa: PLR2004
        return Kind.RETRY, Verdict.ILL
    if status == MISSING or status in PASSING or status in retry_statuses:
        return Kind.RETRY, Verdict.NOTHING
    # Redirects are final, too: a webhook that moved is a mistake in the routes.
    return Kind.DEAD, Verdict.WELL


def client(ca_file: str | None, most: int) -> httpx.AsyncClient:
    """Return an HTTP client for at most so many connections; it follows no redirects and knows no proxies."""
    verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=ca_file) if ca_file else True
    return httpx.AsyncClient(
        verify=verify,
        trust_env=False,
        follow_redirects=False,
        limits=httpx.Limits(max_connections=most, max_keepalive_connections=most, keepalive_expiry=4.0),
    )


class Caller:
    """Calls webhooks at the addresses of n8n that can be called."""

    def __init__(
        self,
        addresses: Addresses,
        keys: Sequence[bytes],
        http: httpx.AsyncClient,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.addresses = addresses
        self.keys = keys
        self.http = http
        self.clock = clock

    def headers(self, event: Event, traceparent: str | None) -> dict[str, str]:
        """Return the headers of a call: Standard Webhooks, the trace and what the bridge knows."""
        headers = signing.webhook_headers(self.keys, str(event.id), int(self.clock()), event.body)
        headers |= {
            "content-type": quote(event.content_type, HEADER_SAFE),
            "accept-encoding": "identity",
            "user-agent": "n8n-bridge",
            "x-bridge-tenant": quote(event.tenant, HEADER_SAFE),
            "x-bridge-execution-id": quote(event.execution_id, HEADER_SAFE),
            "x-bridge-type": quote(event.type, HEADER_SAFE),
            "x-bridge-attempt": str(event.attempt),
        }
        if traceparent:
            headers["traceparent"] = traceparent
        return headers

    async def call(
        self, event: Event, path: str, timeout_s: float, retry_statuses: frozenset[int], traceparent: str | None
    ) -> Outcome:
        """Call a webhook and return what came of it; never raises for anything n8n or the network does."""
        begin = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                outcome = await self._call(event, path, timeout_s, retry_statuses, traceparent)
        except TimeoutError:
            outcome = Outcome(Kind.RETRY, Verdict.ILL, error=f"no answer within {timeout_s:g} s")
        # A bad address is a mistake in the settings, for which no event should die.
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            text = f"{type(error).__name__}: {error}".rstrip(": ")
            outcome = Outcome(Kind.RETRY, Verdict.ILL, error=text)
        return replace(outcome, seconds=time.perf_counter() - begin)

    async def _call(
        self, event: Event, path: str, timeout_s: float, retry_statuses: frozenset[int], traceparent: str | None
    ) -> Outcome:
        headers = self.headers(event, traceparent)
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_SECONDS, timeout_s))
        # Where nothing was sent, another process of n8n may be asked at once.
        for base in self.addresses.order():
            try:
                async with self.http.stream(
                    "POST", base + path, content=event.body, headers=headers, timeout=timeout
                ) as answer:
                    outcome = await self._understand(answer, retry_statuses)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                self.addresses.down(base)
                continue
            if not outcome.free:
                return outcome
            self.addresses.down(base)
        return Outcome(Kind.RETRY, Verdict.NOTHING, error="no process of n8n can be called", free=True)

    async def _understand(self, answer: httpx.Response, retry_statuses: frozenset[int]) -> Outcome:
        kind, verdict = judge(answer.status_code, retry_statuses)
        begin = b""
        # The answer to a success is read to its end so that the connection can be used again; nobody keeps it.
        with contextlib.suppress(httpx.HTTPError):
            async for part in answer.aiter_bytes():
                begin = (begin + part)[:ANSWER_BYTES]
                if kind is not Kind.DONE and len(begin) == ANSWER_BYTES:
                    break
        if kind is Kind.DONE and begin[: len(STARTING)].lower() == STARTING:
            return Outcome(Kind.RETRY, Verdict.NOTHING, answer.status_code, "n8n is starting up", free=True)
        if kind is Kind.DONE:
            return Outcome(kind, verdict, answer.status_code)
        return Outcome(
            kind,
            verdict,
            answer.status_code,
            f"n8n answered {answer.status_code}: {begin.decode(errors='replace')}".rstrip(": "),
            retry_after(answer.headers.get("retry-after"), self.clock()),
            missing=answer.status_code == MISSING and MISSING not in retry_statuses,
        )

# SPDX-License-Identifier: GPL-3.0-or-later
"""One call of a webhook: what n8n is sent, and what each answer means."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from n8n_platform.bridge.consumer.caller import Kind, Outcome, client, judge, retry_after
from n8n_platform.bridge.consumer.limits import Verdict
from n8n_platform.bridge.signing import webhook_is_genuine

from files.platform.tests.bridge.consumer_fakes import KEYS, NOW, FakeN8n, event

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def call(
    n8n: FakeN8n, *bases: str, timeout_s: float = 5, retry: frozenset[int] = frozenset(), **changes: Any
) -> Outcome:
    async def run() -> Outcome:
        return await n8n.caller(*bases).call(event(**changes), "/webhook/orders", timeout_s, retry, TRACE)

    return asyncio.run(run())


def answering(status: int, text: str = "no", **headers: str) -> FakeN8n:
    return FakeN8n(lambda request: httpx.Response(status, text=text, headers=headers))


def test_the_call_is_a_standard_webhook() -> None:
    n8n = FakeN8n()
    item = event(attempt=3)

    async def run() -> Outcome:
        return await n8n.caller("http://n8n:5701/").call(item, "/webhook/orders", 5, frozenset(), TRACE)

    outcome = asyncio.run(run())
    assert (outcome.kind, outcome.verdict, outcome.status, outcome.error) == (Kind.DONE, Verdict.WELL, 200, None)
    (request,) = n8n.requests
    assert (request.method, str(request.url), request.content) == ("POST", "http://n8n:5701/webhook/orders", item.body)
    assert webhook_is_genuine(KEYS, request.headers, request.content, NOW)
    assert request.headers["webhook-id"] == str(item.id)
    assert request.headers["traceparent"] == TRACE
    assert request.headers["content-type"] == "application/json"
    assert {name: value for name, value in request.headers.items() if name.startswith("x-bridge")} == {
        "x-bridge-tenant": "acme",
        "x-bridge-execution-id": "run-1",
        "x-bridge-type": "short.x",
        "x-bridge-attempt": "3",
    }


@given(st.text(max_size=20))
def test_any_id_can_be_sent(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    n8n = FakeN8n()
    assert call(n8n, tenant=text, execution_id=text, content_type=text, type=text).kind is Kind.DONE
    assert n8n.requests[0].headers["x-bridge-tenant"].isascii()


@pytest.mark.parametrize(
    ("status", "kind", "verdict"),
    [
        (200, Kind.DONE, Verdict.WELL),
        (204, Kind.DONE, Verdict.WELL),
        (302, Kind.DEAD, Verdict.WELL),
        (400, Kind.DEAD, Verdict.WELL),
        (404, Kind.RETRY, Verdict.NOTHING),
        (408, Kind.RETRY, Verdict.NOTHING),
        (409, Kind.RETRY, Verdict.NOTHING),
        (418, Kind.RETRY, Verdict.NOTHING),
        (425, Kind.RETRY, Verdict.NOTHING),
        (429, Kind.RETRY, Verdict.BUSY),
        (500, Kind.RETRY, Verdict.ILL),
        (503, Kind.RETRY, Verdict.BUSY),
        (504, Kind.RETRY, Verdict.ILL),
    ],
)
def test_what_answers_mean(status: int, kind: Kind, verdict: Verdict) -> None:
    assert judge(status, frozenset({418})) == (kind, verdict)
    outcome = call(answering(status), retry=frozenset({418}))
    assert (outcome.kind, outcome.verdict, outcome.status) == (kind, verdict, status)
    assert outcome.error == (None if kind is Kind.DONE else f"n8n answered {status}: no")


def test_long_answers_are_cut() -> None:
    outcome = call(answering(500, "x" * 10_000))
    assert outcome.error is not None
    assert len(outcome.error) < 400


def test_no_answer_in_time_is_tried_again() -> None:
    n8n = FakeN8n()

    async def run() -> Outcome:
        n8n.gate.clear()
        return await n8n.caller().call(event(), "/webhook/x", 0.02, frozenset(), None)

    outcome = asyncio.run(run())
    assert (outcome.kind, outcome.verdict, outcome.error) == (Kind.RETRY, Verdict.ILL, "no answer within 0.02 s")
    assert outcome.seconds >= 0.02


def test_another_process_of_n8n_is_asked_when_one_is_down() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.port == 5701:
            raise httpx.ConnectError("refused")
        return httpx.Response(200)

    n8n = FakeN8n(answer)

    async def run() -> list[Kind]:
        caller = n8n.caller("http://n8n:5701", "http://n8n:5702")
        return [(await caller.call(event(), "/webhook/x", 5, frozenset(), None)).kind for _ in range(4)]

    assert asyncio.run(run()) == [Kind.DONE] * 4
    # It is not asked again before its readiness says so.
    assert [request.url.port for request in n8n.requests] == [5702, 5701, 5702, 5702, 5702]


@pytest.mark.parametrize("error", [httpx.ReadError("reset"), httpx.ReadTimeout(""), httpx.RemoteProtocolError("x")])
def test_trouble_of_the_network_is_tried_again(error: Exception) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error

    outcome = call(FakeN8n(answer), "http://a", "http://b")
    assert (outcome.kind, outcome.verdict, outcome.status) == (Kind.RETRY, Verdict.ILL, None)
    assert outcome.error == f"{type(error).__name__}: {error}".rstrip(": ")


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ConnectTimeout("")])
def test_when_nobody_can_be_called_it_is_no_attempt(error: Exception) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error

    n8n = FakeN8n(answer)
    outcome = call(n8n, "http://a", "http://b")
    assert len(n8n.requests) == 2
    assert (outcome.kind, outcome.verdict, outcome.free) == (Kind.RETRY, Verdict.NOTHING, True)
    assert outcome.error == "no process of n8n can be called"


def test_an_n8n_that_starts_forgets_what_it_answers() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="n8n is starting up. Please wait" if request.url.host == "b" else "ok")

    n8n = FakeN8n(answer)
    assert call(n8n, "http://a", "http://b").kind is Kind.DONE
    assert [request.url.host for request in n8n.requests] == ["b", "a"]
    outcome = call(FakeN8n(lambda request: httpx.Response(200, text="N8N is starting up. Please wait")))
    assert (outcome.kind, outcome.free) == (Kind.RETRY, True)


def test_a_webhook_that_is_not_there_is_told_apart() -> None:
    assert call(answering(404)).missing
    assert not call(answering(404), retry=frozenset({404})).missing


def test_what_was_sent_is_not_sent_to_another_at_once() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("reset")

    n8n = FakeN8n(answer)
    call(n8n, "http://a", "http://b")
    assert len(n8n.requests) == 1


def test_a_bad_address_in_the_settings_kills_no_event() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.InvalidURL("no such port")

    outcome = call(FakeN8n(answer))
    assert (outcome.kind, outcome.verdict) == (Kind.RETRY, Verdict.ILL)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("120", 120),
        ("-5", 0),
        ("soon", 0),
        ("999999999", 86400),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str | None, seconds: float) -> None:
    assert retry_after(value, 1800000000) == seconds


@given(st.text(max_size=40))
def test_no_retry_after_is_trouble(value: str) -> None:
    assert 0 <= retry_after(value, NOW) <= 86400


def test_retry_after_of_an_answer_is_heard() -> None:
    assert call(answering(503, **{"retry-after": "7"})).retry_after_s == 7


def test_the_real_client_follows_nothing_and_knows_no_proxy(tmp_path: Any) -> None:
    made = client(None, 7)
    assert made.follow_redirects is False
    assert made.trust_env is False
    with pytest.raises(OSError, match="No such file"):
        client(str(tmp_path / "ca.crt"), 7)

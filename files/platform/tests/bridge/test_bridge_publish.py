"""POST /pulsar/publish and /pulsar/publish/batch."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from n8n_platform.bridge import ids
from n8n_platform.bridge.broker import NotStoredError
from n8n_platform.bridge.outbox import Backlog
from n8n_platform.bridge.settings import Limits, Tenant
from starlette.requests import Request

from files.platform.tests.bridge.api_fakes import Bench

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def pointers(answer: Any) -> list[str]:
    return [error["pointer"] for error in answer.json()["errors"]]


def test_an_event_is_stored_before_pulsar_hears_of_it(bench: Bench) -> None:
    answer = bench.publish(execution_id="4711", headers={"traceparent": TRACE})
    assert answer.status_code == 202
    body = answer.json()
    assert body == {"id": body["id"], "execution_id": "4711", "state": "published"}
    assert answer.headers["location"] == f"/pulsar/events/{body['id']}"
    assert answer.headers["cache-control"] == "no-store"
    event = bench.store.events[UUID(body["id"])]
    assert event["tenant"] == "acme"
    assert event["body"] == b'{"n": 1}'
    assert event["created_at"] == ids.born(event["id"])
    assert event["traceparent"].split("-")[1] == TRACE.split("-")[1]
    topic, payload, properties = bench.broker.messages[0]
    assert topic == "dealscale.workflow.short"
    assert bench.keyring.verify(properties, payload, topic, bench.clock).id == body["id"]
    assert bench.outbox.done == [1]
    assert bench.sample("bridge_publish_requests_total", route="short", tenant="acme", code="202") == 1
    assert bench.decided == ["short"]


def test_the_trace_goes_on_through_the_bridge(bench: Bench) -> None:
    bench.publish(headers={"traceparent": TRACE})
    send, request = bench.spans.get_finished_spans()
    assert format(request.context.trace_id, "032x") == TRACE.split("-")[1]
    assert request.attributes is not None
    assert request.attributes["bridge.state"] == "published"
    assert send.name == "send dealscale.workflow.short"
    assert send.parent is not None
    assert send.parent.span_id == request.context.span_id
    assert send.attributes is not None
    assert send.attributes["messaging.message.id"] == "1:1:0:-1"


def test_a_message_that_is_not_stored_is_a_failed_span(bench: Bench) -> None:
    bench.broker.error = NotStoredError("Timeout", "no receipt")
    bench.publish()
    send, _ = bench.spans.get_finished_spans()
    assert send.status.description == "no receipt"


def test_without_an_execution_id_the_event_s_own_id_serves(bench: Bench) -> None:
    body = bench.publish().json()
    assert body["execution_id"] == body["id"]


def test_an_event_may_come_straight_from_the_database(bench: Bench) -> None:
    body = bench.publish(type="direct.call").json()
    assert body["state"] == "queued"
    assert bench.broker.messages == []
    assert bench.store.events[UUID(body["id"])]["topic"] is None


@pytest.mark.parametrize(
    ("field", "value"), [("up", False), ("answers", False), ("error", NotStoredError("Timeout", "no receipt"))]
)
def test_without_a_receipt_the_answer_is_queued_and_the_outbox_keeps_the_row(
    bench: Bench, field: str, value: Any
) -> None:
    setattr(bench.broker, field, value)
    answer = bench.publish()
    assert answer.status_code == 202
    assert answer.json()["state"] == "queued"
    assert bench.outbox.done == []
    # What was given up is the sweeper's at once; what may still come is left alone until it cannot come any more.
    assert bench.outbox.lost == ([1] if field == "error" else [])
    patience = bench.store.events[UUID(answer.json()["id"])]["patience"]
    assert patience == (1 if field == "up" else 6)


def test_the_same_key_gets_the_same_answer(bench: Bench) -> None:
    first = bench.publish(headers={"idempotency-key": "a-1"})
    again = bench.publish(idempotency_key="a-1")
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["execution_id"] == first.json()["execution_id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert len(bench.store.events) == 1
    assert len(bench.broker.messages) == 1
    changed = bench.publish(idempotency_key="a-1", data={"n": 2})
    assert changed.status_code == 422
    assert changed.json()["type"].endswith("#key-reused")
    # Another tenant's keys are its own.
    assert bench.publish("other", idempotency_key="a-1").json()["id"] != first.json()["id"]


@pytest.mark.parametrize(
    ("event", "pointer"),
    [
        ({"type": 5}, "/type"),
        ({"type": "a\nb"}, "/type"),
        ({"type": "order.created\n"}, "/type"),
        ({"type": ""}, "/type"),
        ({"tenant": "rival"}, "/tenant"),
        ({"execution_id": "with space"}, "/execution_id"),
        ({"execution_id": "ä"}, "/execution_id"),
        ({"ttl_seconds": 0}, "/ttl_seconds"),
        ({"ttl_seconds": "60"}, "/ttl_seconds"),
        ({"ttl_seconds": 10**9}, "/ttl_seconds"),
        ({"workflow": "../etc"}, "/workflow"),
        ({"idempotency_key": "x" * 201}, "/idempotency_key"),
        ({"type": "nobody.wants"}, "/type"),
    ],
)
def test_mistakes_are_answered_with_their_place(bench: Bench, event: dict[str, Any], pointer: str) -> None:
    answer = bench.publish(**event)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert pointers(answer) == [pointer]
    assert bench.store.events == {}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"type": "order.x"}', 422),
        (b'{"type": "order.x", "data": [1,}', 400),
        (b'{"type": "order.x", "data": "\xff"}', 400),
        (b'{"type": "order.x", "data": "\\ud800"}', 400),
        (b'{"type": "order.x", "data": ' + b"[" * 100_000, 400),
        (b'{"type": "order.x", "data": NaN}', 400),
    ],
)
def test_bad_bodies(bench: Bench, content: bytes, status: int) -> None:
    answer = bench.ask("POST", "/pulsar/publish", content=content)
    assert answer.status_code == status
    assert answer.json()["status"] == status
    assert "Traceback" not in answer.text


def test_only_json_is_taken(bench: Bench) -> None:
    for headers in ({"content-type": "text/plain"}, {"content-type": ""}, {"content-encoding": "gzip"}):
        answer = bench.ask("POST", "/pulsar/publish", content=b'{"type": "order.x", "data": 1}', headers=headers)
        assert answer.status_code == 415
    plus = {"content-type": "application/vnd.acme+json; charset=utf-8"}
    assert bench.ask("POST", "/pulsar/publish", content=b'{"type":"order.x","data":1}', headers=plus).status_code == 202


def test_sizes_are_limited(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Limits(event_bytes=100, batch_bytes=1000, batch_events=2))
    assert bench.publish(data="x" * 90).status_code == 202
    answer = bench.publish(data="x" * 200)
    assert answer.status_code == 413
    assert pointers(answer) == ["/data"]
    assert bench.publish(data="x" * 10_000).status_code == 413

    async def parts() -> Any:
        for _ in range(100):
            yield b" " * 100

    assert bench.ask("POST", "/pulsar/publish", content=parts()).status_code == 413
    three = json.dumps({"events": [{"type": "order.x", "data": 1}] * 3})
    assert bench.ask("POST", "/pulsar/publish/batch", content=three).status_code == 413
    assert bench.ask("POST", "/pulsar/publish/batch", content=b" " * 1001).status_code == 413


def test_the_header_and_the_field_must_not_contradict(bench: Bench) -> None:
    answer = bench.publish(idempotency_key="a", headers={"idempotency-key": "b"})
    assert pointers(answer) == ["/idempotency_key"]
    assert bench.publish(idempotency_key="a", headers={"idempotency-key": "a"}).status_code == 202
    assert bench.publish(headers={"idempotency-key": "x" * 300}).status_code == 422


def test_scopes_are_of_routes(bench: Bench) -> None:
    assert bench.publish("narrow", type="direct.call").status_code == 202
    answer = bench.publish("narrow")
    assert answer.status_code == 403
    assert 'scope="publish:short"' in answer.headers["www-authenticate"]
    assert bench.store.events.keys() == {next(iter(bench.store.events))}


def test_without_the_database_nothing_is_accepted(bench: Bench) -> None:
    bench.store.error = ConnectionResetError("gone")
    answer = bench.publish()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert bench.broker.messages == []


@pytest.mark.parametrize("backlog", [Backlog(rows=10), Backlog(1, {"dealscale.workflow.short": 61.0})])
def test_a_full_outbox_refuses_before_anything_is_stored(tmp_path: Path, backlog: Backlog) -> None:
    bench = Bench(tmp_path, Limits(outbox_rows=10, outbox_age_seconds=60))
    bench.outbox.backlog = backlog
    answer = bench.publish()
    assert answer.status_code == 503
    assert answer.json()["type"].endswith("#backlog")
    assert int(answer.headers["retry-after"]) > 0
    assert bench.store.events == {}
    # What does not go through Pulsar is not held up by it.
    assert bench.publish(type="direct.call").status_code == 202
    batch = json.dumps({"events": [{"type": "order.x", "data": 1}]})
    assert bench.ask("POST", "/pulsar/publish/batch", content=batch).status_code == 503


def test_rates_and_quotas(tmp_path: Path) -> None:
    slow = {"acme": Tenant(events_per_second=1, burst=2), "rival": Tenant(events_per_day=2)}
    bench = Bench(tmp_path, Limits(tenants=slow))
    assert [bench.publish().status_code for _ in range(3)] == [202, 202, 429]
    assert [bench.publish("other").status_code for _ in range(3)] == [202, 202, 429]
    answer = bench.publish("other")
    assert answer.json()["type"].endswith("#quota-exceeded")
    assert int(answer.headers["retry-after"]) <= 86400


def test_too_many_requests_at_a_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Limits(concurrent_requests=1, receipt_ms=200))
    bench.broker.answers = False

    async def both() -> list[int]:
        async with bench.client() as client:
            content = b'{"type": "order.x", "data": 1}'
            requests = [client.post("/pulsar/publish", content=content, headers=bench.headers()) for _ in range(2)]
            return sorted(answer.status_code for answer in await asyncio.gather(*requests))

    assert asyncio.run(both()) == [202, 503]


def test_large_bodies_wait_for_room(tmp_path: Path) -> None:
    bench = Bench(tmp_path, Limits(buffered_bytes=1000, receipt_ms=200))
    bench.broker.answers = False

    async def both() -> list[int]:
        async with bench.client() as client:
            content = json.dumps({"type": "order.x", "data": "x" * 600})
            requests = [client.post("/pulsar/publish", content=content, headers=bench.headers()) for _ in range(2)]
            return sorted(answer.status_code for answer in await asyncio.gather(*requests))

    assert asyncio.run(both()) == [202, 503]
    # One that is larger than the room is taken when it is alone.
    assert bench.publish(data="x" * 2000).status_code == 202


def test_a_batch_is_answered_event_by_event(bench: Bench) -> None:
    events = [
        {"type": "order.a", "data": 1, "execution_id": "e1"},
        {"type": "order.b"},
        {"type": "direct.c", "data": None},
        {"type": "nobody.wants", "data": 1},
        {"type": "order.a", "data": 1, "idempotency_key": "k"},
        {"type": "order.a", "data": 2, "idempotency_key": "k"},
    ]
    answer = bench.ask("POST", "/pulsar/publish/batch", content=json.dumps({"events": events}))
    assert answer.status_code == 207
    body = answer.json()
    assert body["accepted"] == 3
    assert [item["status"] for item in body["results"]] == [202, 422, 202, 422, 202, 422]
    assert [item.get("state") for item in body["results"]] == ["published", None, "queued", None, "published", None]
    assert body["results"][1]["problem"]["errors"][0]["pointer"] == "/events/1/data"
    assert body["results"][3]["problem"]["errors"][0]["pointer"] == "/events/3/type"
    assert len(bench.broker.messages) == 2
    good = bench.ask("POST", "/pulsar/publish/batch", content=json.dumps({"events": events[:1]}))
    assert good.status_code == 202


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 400),
        (b'{"events": []}', 422),
        (b'{"events": 1}', 422),
        (b'{"events": [1], "x": 2}', 422),
        (b'{"events": ' + b"[" * 100_000, 400),
        (b"\xff", 400),
        (b'{"events": [1]}', 207),
    ],
)
def test_bad_batches(bench: Bench, content: bytes, status: int) -> None:
    assert bench.ask("POST", "/pulsar/publish/batch", content=content).status_code == status


def test_an_event_does_not_outlive_its_route(bench: Bench) -> None:
    def life(**event: Any) -> float:
        row = bench.store.events[UUID(bench.publish(**event).json()["id"])]
        return float((row["expires_at"] - row["created_at"]).total_seconds())

    assert life() == 86400
    assert life(ttl_seconds=60) == 60
    assert life(ttl_seconds=30 * 86400) == 86400


def test_a_client_that_goes_away(bench: Bench) -> None:
    async def go() -> int:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(name.encode(), value.encode()) for name, value in bench.headers().items()]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/pulsar/publish",
            "raw_path": b"/pulsar/publish",
            "query_string": b"",
            "headers": headers,
            "root_path": "",
        }
        await bench.app(scope, receive, send)
        assert Request(scope).method == "POST"
        return int(sent[0]["status"])

    assert asyncio.run(go()) == 400
    assert bench.store.events == {}


def test_what_breaks_is_a_problem_without_a_trace(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.store.error = RuntimeError("secret detail")
    answer = bench.publish()
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret detail" not in answer.text
    assert "secret detail" in caplog.text

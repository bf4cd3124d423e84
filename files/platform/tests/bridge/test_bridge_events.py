"""Requests about events: state, payload, cancel, replay, claims, dead letters; and what all requests share."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from n8n_platform.bridge.api import models

from files.platform.tests.bridge.api_fakes import Bench

MISSING = "01a206a0-33f4-73b6-b3fd-13d44db8f275"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def published(bench: Bench, **fields: Any) -> tuple[str, dict[str, Any]]:
    """Publish an event and return its id and its row, changed as the test wants."""
    event_id = bench.publish().json()["id"]
    row = bench.store.events[UUID(event_id)]
    row.update(waiting=False, **fields)
    return event_id, row


@pytest.mark.parametrize(
    ("state", "waiting", "attempt", "expected"),
    [
        (None, True, None, "queued"),
        (None, False, None, "published"),
        ("waiting", False, 0, "delivering"),
        ("leased", False, 1, "delivering"),
        ("retry", False, 0, "queued"),
        ("retry", False, 2, "retrying"),
        ("done", False, 1, "done"),
        ("dead", False, 9, "dead"),
        ("cancelled", False, 0, "cancelled"),
    ],
)
def test_the_state_of_an_event(bench: Bench, state: str | None, waiting: bool, attempt: int, expected: str) -> None:
    event_id, row = published(bench)
    row |= {"state": state, "waiting": waiting, "attempt": attempt}
    answer = bench.ask("GET", f"/pulsar/events/{event_id}")
    assert answer.status_code == 200
    assert answer.json()["state"] == expected
    assert answer.json()["type"] == "order.created"


def test_the_payload_is_what_was_published(bench: Bench) -> None:
    event_id, _ = published(bench)
    answer = bench.ask("GET", f"/pulsar/events/{event_id}/payload")
    assert answer.content == b'{"n": 1}'
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_events_of_others_are_not_there(bench: Bench) -> None:
    event_id, _ = published(bench)
    for method, path in (("GET", ""), ("GET", "/payload"), ("POST", "/cancel"), ("POST", "/replay")):
        answer = bench.ask(method, f"/pulsar/events/{event_id}{path}", "other")
        assert answer.status_code == 404, path
        assert answer.json()["type"].endswith("#not-found")
    for path, body in (("claim", {"execution": "1"}), ("claim/done", {"execution": "1"})):
        assert bench.ask("PUT", f"/pulsar/events/{event_id}/{path}", "other", json=body).status_code == 404
    assert bench.ask("GET", f"/pulsar/events/{MISSING}").status_code == 404


def test_ids_of_another_kind_are_not_there(bench: Bench) -> None:
    other = uuid.UUID(int=7)
    assert bench.ask("GET", f"/pulsar/events/{other}").status_code == 404
    assert bench.ask("PUT", f"/pulsar/events/{other}/claim", json={"execution": "1"}).status_code == 404
    answer = bench.ask("GET", "/pulsar/events/not-an-id")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/path/event_id"


def test_cancel(bench: Bench) -> None:
    event_id, row = published(bench)
    answer = bench.ask("POST", f"/pulsar/events/{event_id}/cancel")
    assert answer.json()["state"] == "cancelled"
    assert bench.ask("POST", f"/pulsar/events/{event_id}/cancel").status_code == 200
    row["state"] = "leased"
    answer = bench.ask("POST", f"/pulsar/events/{event_id}/cancel")
    assert answer.status_code == 409
    assert "delivering" in answer.json()["detail"]


def test_replay_makes_a_new_event(bench: Bench) -> None:
    event_id, row = published(bench, state="dead", execution_id="4711")
    answer = bench.ask("POST", f"/pulsar/events/{event_id}/replay", headers={"idempotency-key": "again-1"})
    assert answer.status_code == 202
    new = bench.store.events[UUID(answer.json()["id"])]
    assert new["replay_of"] == UUID(event_id)
    assert new["body"] == row["body"]
    assert new["execution_id"] == "4711"
    assert row["replaced_by"] == new["id"]
    repeated = bench.ask("POST", f"/pulsar/events/{event_id}/replay", headers={"idempotency-key": "again-1"})
    assert repeated.json()["id"] == answer.json()["id"]
    other, _ = published(bench, state="done")
    reused = bench.ask("POST", f"/pulsar/events/{other}/replay", headers={"idempotency-key": "again-1"})
    assert reused.json()["type"].endswith("#key-reused")


def test_only_events_at_their_end_are_replayed(bench: Bench) -> None:
    event_id, _ = published(bench)
    assert bench.ask("POST", f"/pulsar/events/{event_id}/replay").status_code == 409
    bad = {"idempotency-key": "x y"}
    event_id, _ = published(bench, state="done")
    assert bench.ask("POST", f"/pulsar/events/{event_id}/replay", headers=bad).status_code == 422


def test_claims(bench: Bench) -> None:
    event_id, _ = published(bench)

    def claim(execution: str, path: str = "claim", **more: Any) -> Any:
        return bench.ask("PUT", f"/pulsar/events/{event_id}/{path}", json={"execution": execution, **more})

    assert claim("815", lease_seconds=60).json() == {
        "id": event_id,
        "granted": True,
        "state": "running",
        "execution": "815",
    }
    assert claim("816").json()["granted"] is False
    assert claim("816", "claim/done").status_code == 409
    assert claim("815", "claim/done").json()["state"] == "done"
    assert claim("815").json() == {"id": event_id, "granted": False, "state": "done", "execution": "815"}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/execution"),
        ({"execution": ""}, "/execution"),
        ({"execution": "a b"}, "/execution"),
        ({"execution": "1", "lease_seconds": 0}, "/lease_seconds"),
        ({"execution": "1", "extra": 1}, "/extra"),
    ],
)
def test_bad_claims(bench: Bench, body: dict[str, Any], pointer: str) -> None:
    answer = bench.ask("PUT", f"/pulsar/events/{MISSING}/claim", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_bodies_that_are_no_json(bench: Bench) -> None:
    answer = bench.ask("PUT", f"/pulsar/events/{MISSING}/claim", content=b"{")
    assert answer.status_code == 400
    assert bench.ask("PUT", f"/pulsar/events/{MISSING}/claim", content=b" " * 9000).status_code == 413


def test_dead_events_come_in_pages(bench: Bench) -> None:
    dead = [published(bench, state="dead", last_error="410 Gone")[0] for _ in range(3)]
    # Ids of one millisecond have no order of time.
    dead.sort(reverse=True)
    published(bench, state="done")
    first = bench.ask("GET", "/pulsar/dead", params={"limit": 2}).json()
    assert [event["id"] for event in first["events"]] == dead[:2]
    assert first["events"][0]["last_error"] == "410 Gone"
    second = bench.ask("GET", "/pulsar/dead", params={"limit": 2, "before": first["next"]}).json()
    assert [event["id"] for event in second["events"]] == dead[2:]
    assert second["next"] is None
    assert bench.ask("GET", "/pulsar/dead", params={"route": "direct"}).json()["events"] == []
    assert bench.ask("GET", "/pulsar/dead", "other").json()["events"] == []
    assert bench.ask("GET", "/pulsar/dead", params={"limit": 0}).status_code == 422


def test_scopes(bench: Bench) -> None:
    event_id, _ = published(bench)
    for method, path in (
        ("GET", f"events/{event_id}"),
        ("POST", f"events/{event_id}/cancel"),
        ("POST", f"events/{event_id}/replay"),
        ("PUT", f"events/{event_id}/claim"),
        ("GET", "dead"),
    ):
        answer = bench.ask(method, f"/pulsar/{path}", "narrow", json={"execution": "1"})
        assert answer.status_code == 403, path
        assert "insufficient_scope" in answer.headers["www-authenticate"]


def test_the_database_may_be_away(bench: Bench) -> None:
    event_id, _ = published(bench)
    bench.store.error = TimeoutError("slow")
    answer = bench.ask("GET", f"/pulsar/events/{event_id}")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"


def test_paths_and_methods_that_are_not_there(bench: Bench) -> None:
    answer = bench.ask("GET", "/pulsar/nothing")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    answer = bench.ask("GET", "/pulsar/publish")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert bench.ask("DELETE", f"/pulsar/events/{MISSING}").json()["status"] == 405


def test_the_description_and_its_page(bench: Bench) -> None:
    document = bench.ask("GET", "/pulsar/openapi.json", None).json()
    assert list(document["paths"])[:2] == ["/pulsar/publish", "/pulsar/publish/batch"]
    assert document["paths"]["/pulsar/publish"]["post"]["requestBody"]["content"]["application/json"]["example"]
    text = str(document)
    for name in ("Draft", "ProblemBody", "Accepted", "FieldError"):
        assert name in document["components"]["schemas"]
    assert "HTTPValidationError" not in text
    page = bench.ask("GET", "/pulsar/docs", None)
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "<script" not in page.text
    for name in ("publish_event", "claim_event", "key-reused"):
        assert f'id="{name}"' in page.text
    assert str(models.EXAMPLE_ID) in page.text

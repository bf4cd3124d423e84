"""Nothing that the bridge accepted is lost, and nothing happens twice, whatever dies."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator

import pytest

from molecule.breaking import table
from molecule.bridge.api import Api
from molecule.bridge_faults.driver import DIRECTORY, FAULTS, Platform, Row
from molecule.waiting import until

# Where n8n died, the claim has to run out first, several times on a busy machine.
SETTLE_SECONDS = 420
LIBRARIES = "/opt/n8n-platform/bridge/current/site-packages"


@pytest.fixture(scope="module")
def platform() -> Iterator[Platform]:
    """Return the platform, with the client stopped at the end whatever happens."""
    found = Platform(os.environ.get("FAULTS_CONTAINER", "n8n-platform-bridge_faults"))
    found.prepare()
    yield found
    found.stop_client()


@pytest.fixture(scope="module")
def api(platform: Platform) -> Api:
    """Return the bridge as a client sees it."""
    return Api(platform.run)


@pytest.fixture(scope="module")
def reckoning(platform: Platform, request: pytest.FixtureRequest) -> dict[str, Row]:
    """Break everything once under load, wait for the effects of all that was accepted; return the rows by fault."""
    platform.start_client()
    platform.wait_for("none", 30)
    for name, inject in {**FAULTS, "converge": Platform.converge}.items():
        platform.phase(name)
        platform.wait_for(name, 10)
        inject(platform)
        platform.wait_for(name, 45, seconds=240)
    platform.stop_client()
    try:
        seconds = until(platform.settled, SETTLE_SECONDS, "everything accepted has had its effect", every=5)
    except AssertionError:
        print(table(platform.reckon()), platform.report(), sep="\n")
        raise
    # Late duplicates, if there are any, have come by then.
    until(lambda: not int(platform.sql(UNDER_WAY)[0][0]), 120, "no delivery is under way", every=2)
    rows = platform.reckon()
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nsettled {seconds:.0f} s after the last event", table(rows), sep="\n")
    return {row.phase: row for row in rows}


UNDER_WAY = "SELECT count(*) FROM bridge.delivery WHERE tenant = 'main' AND state IN ('waiting', 'leased', 'retry')"


@pytest.mark.parametrize("fault", ["none", *FAULTS, "converge"])
def test_what_was_accepted_had_its_effect_once(reckoning: dict[str, Row], fault: str) -> None:
    row = reckoning[fault]
    assert row.acknowledged >= 30
    assert (row.lost, row.twice) == (0, 0), table([row])


def test_a_careful_client_gets_everything_in(reckoning: dict[str, Row]) -> None:
    """With an idempotency key and patience no event is refused for good, whatever dies."""
    assert sum(row.sent - row.acknowledged for row in reckoning.values()) <= 2, table(reckoning.values())


def test_without_a_fault_nothing_is_tried_again(reckoning: dict[str, Row]) -> None:
    assert reckoning["none"].retried == 0


def test_publishing_goes_on_without_pulsar(platform: Platform, api: Api, reckoning: dict[str, Row]) -> None:
    platform.run("systemctl stop n8n-pulsar-broker.service")
    uid = f"bf-away-{uuid.uuid4().hex}"
    answer = api.publish("faults", "topic.fault", {"uid": uid})
    assert (answer.status, answer.json["state"]) == (202, "queued")
    platform.run("systemctl start n8n-pulsar-broker.service")
    until(lambda: effects(platform, uid) == 1, 120, "the event had its effect once Pulsar was back")


def effects(platform: Platform, uid: str) -> int:
    """Return how often an id had its effect."""
    return sum(words[0] == uid for words in platform.lines("effects"))


def metric(platform: Platform, name: str) -> float:
    """Return the sum of a metric over both consumers."""
    said = platform.run("curl -s http://127.0.0.1:8641/metrics http://127.0.0.1:8642/metrics")
    return sum(float(value) for value in re.findall(rf"^{name}{{?.*?}}? (\S+)$", said, re.MULTILINE))


@pytest.mark.parametrize("kind", ["tenant", "signature", "payload", "expired"])
def test_a_forged_message_is_not_delivered(platform: Platform, api: Api, reckoning: dict[str, Row], kind: str) -> None:
    event, uid = delivered(platform, api)
    before = metric(platform, "bridge_signature_failures_total")
    forge(platform, event, kind)
    until(lambda: metric(platform, "bridge_signature_failures_total") > before, 30, "the forged message is counted")
    assert effects(platform, uid) == 1


def test_a_message_that_comes_twice_is_delivered_once(platform: Platform, api: Api, reckoning: dict[str, Row]) -> None:
    event, uid = delivered(platform, api)
    before = metric(platform, 'bridge_deliveries_total{[^}]*outcome="duplicate"[^}]*}')
    forge(platform, event, "copy")
    until(
        lambda: metric(platform, 'bridge_deliveries_total{[^}]*outcome="duplicate"[^}]*}') > before,
        30,
        "the duplicate is counted",
    )
    assert effects(platform, uid) == 1


def delivered(platform: Platform, api: Api) -> tuple[str, str]:
    """Publish an event and wait for its effect; return its id and what it carries."""
    uid = f"bf-forge-{uuid.uuid4().hex}"
    event = api.publish("faults", "topic.fault", {"uid": uid}).json["id"]
    until(lambda: effects(platform, uid) == 1, 30, "the event had its effect")
    return event, uid


def forge(platform: Platform, event: str, kind: str) -> None:
    """Put a changed copy of an event's message into Pulsar."""
    platform.run(f"PYTHONPATH={LIBRARIES} python3 {DIRECTORY}/forge.py {event} slow {kind}")


def test_a_poison_message_ends_as_a_dead_letter(platform: Platform, api: Api, reckoning: dict[str, Row]) -> None:
    event = api.publish("faults", "poison.pill", {"uid": "bf-poison-1"}).json["id"]
    api.wait("faults", event, "dead", 90)
    assert "500" in platform.run(f"n8n-platform events show {event}")


def test_a_slow_tenant_does_not_hold_up_a_fast_one(platform: Platform, api: Api, reckoning: dict[str, Row]) -> None:
    batch = {"events": [{"type": "slow.work", "data": {"uid": f"bf-slow-{number}"}} for number in range(100)]}
    for _ in range(2):
        assert api.ask("slow", "POST", "/publish/batch", body=batch).status in (200, 202)
    seconds = []
    for _ in range(10):
        uid = f"bf-fast-{uuid.uuid4().hex}"
        assert api.publish("faults", "topic.fault", {"uid": uid}).status == 202
        seconds.append(until(lambda uid=uid: effects(platform, uid) == 1, 20, "a fast tenant's event", every=0.2))  # type: ignore[misc]
    assert sorted(seconds)[5] < 3, seconds
    waiting = platform.sql("SELECT event_id FROM bridge.delivery WHERE tenant = 'slow' AND state = 'retry'")
    platform.run(f"n8n-platform events cancel {' '.join(words[0] for words in waiting)}")


def test_every_unit_came_back_by_itself(platform: Platform, reckoning: dict[str, Row]) -> None:
    assert platform.run("systemctl --failed --no-legend").strip() == ""

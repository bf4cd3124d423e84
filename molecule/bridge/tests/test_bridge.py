"""Ask the running bridge, over HTTPS through Traefik; look into n8n for what came of it."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from molecule.bridge.api import SECRETS, Api
from molecule.host import Host
from molecule.waiting import until

PROCESSES = [f"n8n-bridge-{kind}@{number}.service" for kind in ("api", "consumer") for number in (1, 2)]
SETTINGS = "/etc/n8n-platform/bridge"
# What db.py locks.
SCHEMA_LOCK = 0x6E386E5F6272


run = Host("n8n-platform-bridge").run


@pytest.fixture(scope="module")
def api() -> Api:
    """Return the bridge as a client sees it, with the test workflow in place."""
    workflow = (Path(__file__).parents[1] / "workflow.json").read_text(encoding="utf-8")
    target = "/var/lib/n8n/cli/bridge.json"
    run(f"cat > {target} <<'END'\n{workflow}\nEND\nchown n8n {target}; n8n import:workflow --input={target}")
    run("n8n publish:workflow --id=bridgeecho000001")
    hook = "curl -s -m 5 http://127.0.0.1:5701/webhook/bridge/echo || true"
    until(lambda: "POST request" in run(hook), 120, "the test workflow answers")
    return Api(run)


def sql(query: str, database: str = "n8n") -> list[str]:
    """Return the rows of a query."""
    return run(f"su postgres -c \"psql -d {database} -XAt\" <<'END'\n{query}\nEND\n").splitlines()


def executions(uid: str) -> int:
    """Return how many executions of n8n carry an id."""
    return int(sql(f"SELECT count(*) FROM execution_data WHERE data LIKE '%{uid}%'")[0])


def starts() -> str:
    """Return when each process of the bridge was started."""
    return run(f"systemctl show -P ExecMainStartTimestampMonotonic {' '.join(PROCESSES)}")


# --- the services -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", PROCESSES)
def test_each_process_runs_in_a_sandbox(
    running: Callable[[str], None], exposure: Callable[[str], float], unit: str
) -> None:
    running(unit)
    assert exposure(unit) <= 2.0


def test_tables_and_partitions_are_there(running: Callable[[str], None]) -> None:
    running("n8n-bridge-migrate.service")
    running("n8n-bridge-maintain.timer")
    days = sql("SELECT count(*) FROM pg_inherits WHERE inhparent = 'bridge.event'::regclass", "n8n_bridge")
    assert int(days[0]) >= 8
    for unit in ("n8n-bridge-migrate", "n8n-bridge-maintain"):
        assert run(f"systemctl show -P Result {unit}.service").strip() == "success"


def test_two_hosts_may_change_the_tables_at_once() -> None:
    """Another host's session makes tomorrow's table while this host's upkeep is about to do the same."""
    newest = sql("SELECT max(relname) FROM pg_class WHERE relname ~ '^event_[0-9]{8}$'", "n8n_bridge")[0]
    bounds = sql(f"SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = '{newest}'", "n8n_bridge")[0]
    sql(f"DROP TABLE bridge.{newest}", "n8n_bridge")
    waiting = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    run(
        f"""rm -f /var/tmp/locked
        su postgres -c "psql -d n8n_bridge -v ON_ERROR_STOP=1" <<'END' &
        SET statement_timeout = '60s';
        SET ROLE n8n_bridge;
        BEGIN;
        SELECT pg_advisory_xact_lock({SCHEMA_LOCK});
        \\! touch /var/tmp/locked
        DO $$ BEGIN WHILE NOT EXISTS ({waiting}) LOOP PERFORM pg_sleep(0.05); END LOOP; END $$;
        CREATE TABLE bridge.{newest} PARTITION OF bridge.event {bounds};
        COMMIT;
END
        other=$!
        timeout 30 sh -c 'until [ -e /var/tmp/locked ]; do sleep 0.1; done'
        systemctl start n8n-bridge-maintain.service && wait $other"""
    )


def test_it_listens_on_addresses_of_its_own(listeners: Callable[[], set[tuple[str, int]]]) -> None:
    wanted = {("127.0.86.1", 8601), ("127.0.86.1", 8602)}
    wanted |= {("127.0.0.1", port) for port in (8621, 8622, 8641, 8642)}
    assert {one for one in listeners() if 8600 <= one[1] < 8700} == wanted


def test_health_and_metrics() -> None:
    for port in (8621, 8622, 8641, 8642):
        assert '"ready"' in run(f"curl --silent --fail http://127.0.0.1:{port}/health/ready")
        assert "bridge_" in run(f"curl --silent --fail http://127.0.0.1:{port}/metrics")


def test_secrets_are_in_no_environment_and_no_log(api: Api) -> None:
    api.token("shop")
    names = run(f"ls {SECRETS} | grep -E '^(bridge|pulsar)_'").split()
    values = [value for name in names if len(value := api.secret(name)) >= 16]
    said = run(f"for pid in $(systemctl show -P MainPID {' '.join(PROCESSES)}); do cat /proc/$pid/environ; done")
    said += run("journalctl --no-pager -o cat -u 'n8n-bridge-*'")
    assert [value[:4] for value in values if value in said] == []
    assert api.token("shop") not in said


# --- from a client to a workflow ----------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "account"), [("order.created", "shop"), ("direct.check", "n8n")])
def test_an_event_becomes_one_execution(api: Api, kind: str, account: str) -> None:
    uid = f"e2e-{uuid.uuid4().hex}"
    answer = api.publish(account, kind, {"uid": uid})
    assert answer.status == 202, answer
    assert answer.json["state"] == ("published" if account == "shop" else "queued")
    api.wait(account, answer.json["id"], "done")
    until(lambda: executions(uid) == 1, 30, "the execution is stored")
    (data,) = sql(f"SELECT data FROM execution_data WHERE data LIKE '%{uid}%'")
    assert answer.json["id"] in data
    assert ("shop" if account == "shop" else "main") in data


def test_one_workflow_starts_another(play: Callable[..., Any]) -> None:
    """The examples that every user is given, by the playbook that proves a platform."""
    result = play(Path(__file__).parents[3] / "playbooks" / "verify_bridge.yml")
    assert result.returncode == 0, result.stdout
    assert "had its effect once" in result.stdout


def test_the_same_key_is_the_same_event(api: Api) -> None:
    uid = f"key-{uuid.uuid4().hex}"
    header = ("--header", f"idempotency-key: {uid}")
    first = api.publish("n8n", "direct.key", {"uid": uid}, *header)
    second = api.publish("n8n", "direct.key", {"uid": uid}, *header)
    assert (first.status, second.status) == (202, 202)
    assert first.json["id"] == second.json["id"]
    other = api.publish("n8n", "direct.key", {"uid": "another"}, *header)
    assert other.status == 422, other
    api.wait("n8n", first.json["id"], "done")
    until(lambda: executions(uid) == 1, 30, "the execution is stored")


def test_a_batch_says_of_each_event_what_became_of_it(api: Api) -> None:
    good = {"type": "direct.batch", "data": {"uid": "batch"}}
    answer = api.ask("n8n", "POST", "/publish/batch", body={"events": [good, {"type": "direct.batch"}, good]})
    assert answer.status in (200, 202, 207), answer
    assert len(answer.json["results"]) == 3
    assert "data" in json.dumps(answer.json["results"][1])


def test_what_cannot_be_delivered_is_a_dead_letter_that_can_be_replayed(api: Api) -> None:
    answer = api.publish("n8n", "nowhere.at.all", {"uid": "dead"})
    assert answer.status == 202, answer
    event = answer.json["id"]
    api.wait("n8n", event, "dead", 60)
    assert event in run("n8n-platform events dead")
    assert "404" in run(f"n8n-platform events show {event}")
    again = api.ask("n8n", "POST", f"/events/{event}/replay")
    assert again.status == 202, again
    assert again.json["id"] != event
    api.wait("n8n", again.json["id"], "dead", 60)


def test_an_event_without_a_webhook_is_for_those_who_listen(api: Api) -> None:
    answer = api.publish("n8n", "analytics.page", {"page": "/"})
    assert (answer.status, answer.json["state"]) == (202, "published")


# --- who may not --------------------------------------------------------------------------------------------


def test_without_a_right_token_nothing_is_taken(api: Api) -> None:
    body = {"type": "order.created", "data": {}}
    assert api.call("POST", "/publish", body=body).status == 401
    for token in ("x", "a.b.c", api.token("shop")[:-4] + "AAAA"):
        answer = api.call("POST", "/publish", "--header", f"authorization: Bearer {token}", body=body)
        assert answer.status == 401, answer
        assert "Traceback" not in answer.text
    assert api.call("POST", "/oauth/token", "--user", "shop:wrong", body="grant_type=client_credentials").status in (
        400,
        401,
        415,
    )


def test_scopes_and_tenants_bound_what_a_client_may_do(api: Api) -> None:
    assert api.publish("reader", "order.created", {}).status == 403
    assert api.publish("shop", "direct.check", {}).status == 403
    event = api.publish("n8n", "direct.check", {"uid": "mine"}).json["id"]
    assert api.ask("shop", "GET", f"/events/{event}").status == 404
    assert api.ask("shop", "POST", f"/events/{event}/cancel").status in (403, 404)


def test_mistakes_are_answered_with_their_place(api: Api) -> None:
    missing = api.ask("n8n", "POST", "/publish", body={"type": "direct.x"})
    assert missing.status == 422, missing
    assert "data" in json.dumps(missing.json["errors"])
    assert api.ask("n8n", "POST", "/publish", body="{").status in (400, 422)
    assert api.ask("n8n", "POST", "/publish", "--header", "content-type: text/plain", body="x").status == 415
    assert api.publish("n8n", "direct.large", {"text": "x" * 70_000}).status == 413
    assert api.publish("n8n", "no.such.type", {}).status == 422


def test_a_tenant_has_its_rate(api: Api) -> None:
    body = {"events": [{"type": "order.many", "data": {}}] * 100}
    # Each of the two processes lets one batch overdraw its half of the rate.
    answers = [api.ask("shop", "POST", "/publish/batch", body=body) for _ in range(3)]
    assert "429" in " ".join(f"{answer.status} {answer.text}" for answer in answers)
    # The others are not held up by it.
    assert api.publish("n8n", "direct.check", {"uid": "other"}).status == 202


def test_traefik_asks_for_no_password_but_guards_the_rest(api: Api) -> None:
    assert api.call("GET", "/openapi.json").status == 200
    answer = api.call("GET", "/../")
    assert answer.status in (401, 404)


# --- when something changes ---------------------------------------------------------------------------------


def test_a_killed_process_is_not_noticed_by_clients(api: Api) -> None:
    """A request with a key goes to another process even when the killed one had read it."""
    api.token("n8n")
    for unit in ("n8n-bridge-api@1.service", "n8n-bridge-api@2.service"):
        run(f"systemctl kill --signal=KILL {unit}")
        keys = [f"idempotency-key: {uuid.uuid4()}" for _ in range(5)]
        answers = [api.publish("n8n", "direct.check", {"uid": "kill"}, "--header", key).status for key in keys]
        assert answers == [202] * 5
        ops = 8620 + int(re.findall(r"@(\d)", unit)[0])
        run(
            "curl --silent --fail --retry 60 --retry-delay 1 --retry-all-errors --output /dev/null "
            f"http://127.0.0.1:{ops}/health/ready"
        )


def test_changed_routes_count_without_a_restart(api: Api, play: Callable[..., Any]) -> None:
    before = starts()
    assert api.publish("n8n", "fresh.one", {}).status == 422
    routes = [{"name": "fresh", "match": {"type": "fresh.*"}, "via": "queue", "webhook": "/webhook/bridge/echo"}]
    run(f"cp {SETTINGS}/routes.yml /var/tmp/")
    try:
        result = play("again.yml", bridge_routes=routes)
        assert result.returncode == 0, result.stdout
        until(lambda: api.publish("n8n", "fresh.one", {"uid": "fresh"}).status == 202, 10, "the new route counts")
        assert starts() == before
    finally:
        run(f"mv /var/tmp/routes.yml {SETTINGS}/")
    until(lambda: api.publish("n8n", "direct.check", {"uid": "old"}).status == 202, 10, "the old routes count again")


def test_a_replaced_key_is_believed_until_the_next_one(api: Api, play: Callable[..., Any]) -> None:
    old = api.token("n8n")
    for name in ("bridge_token_key", "bridge_signing_key"):
        run(f"umask 377; openssl rand -hex 32 > {SECRETS}/{name}.made && mv {SECRETS}/{name}.made {SECRETS}/{name}")
    result = play("again.yml")
    assert result.returncode == 0, result.stdout
    body = {"type": "order.rotated", "data": {"uid": "rotated"}}
    answer = api.call("POST", "/publish", "--header", f"authorization: Bearer {old}", body=body)
    assert answer.status == 202, answer
    api.tokens.clear()
    assert api.token("n8n").split(".")[0] != old.split(".")[0]
    api.wait("n8n", answer.json["id"], "done")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bridge_routes": [{"name": "x", "match": {"typ": "a"}, "webhook": "/webhook/x"}]}, "typ"),
        ({"bridge_settings": {"limits": {"colour": 1}}}, "colour"),
        ({"bridge_accounts": [{"name": "shop", "tenant": "shop", "scopes": ["fly"]}]}, "scopes"),
        ({"bridge_accounts": [{"name": "stranger", "tenant": "shop", "scopes": []}]}, "platform_secrets_more"),
        ({"bridge_event_days": 2}, "must be longer than bridge_delivery_hours"),
    ],
)
def test_what_the_bridge_would_not_take_never_reaches_it(
    play: Callable[..., Any], settings: dict[str, Any], reason: str
) -> None:
    look = f"systemctl show -P MainPID {' '.join(PROCESSES)}; md5sum {SETTINGS}/*"
    before = run(look)
    result = play("again.yml", **settings)
    assert result.returncode != 0
    assert reason in result.stdout
    assert run(look) == before


def test_the_loss_of_pulsars_disks_loses_no_event(api: Api, play: Callable[..., Any]) -> None:
    """What no consumer had seen is sent to the new, empty Pulsar by hand, as docs/pulsar.md says."""
    consumers = " ".join(PROCESSES[2:])
    run(f"systemctl stop {consumers}")
    uids = [f"lost-{uuid.uuid4().hex}" for _ in range(5)]
    events = [api.publish("shop", "order.created", {"uid": uid}).json["id"] for uid in uids]
    for event in events:
        api.wait("shop", event, "published")
    run("systemctl stop n8n-pulsar-broker n8n-pulsar-bookie n8n-pulsar-zookeeper && rm -rf /var/lib/pulsar")
    result = play("pulsar.yml")
    assert result.returncode == 0, result.stdout
    run(f"systemctl start {consumers}")
    # Events of the last minute are still on their way, as far as it knows.
    sent: list[int] = []

    def resent() -> bool:
        sent.append(int(run("n8n-platform events resend --tenant shop").split()[0]))
        return sum(sent) == len(events)

    until(resent, 90, "all of them are sent again", every=5)
    for event in events:
        api.wait("shop", event, "done", 60)
    assert [executions(uid) for uid in uids] == [1] * len(uids)


def test_each_process_stays_small() -> None:
    for unit in PROCESSES:
        assert int(run(f"systemctl show -P MemoryCurrent {unit}")) < 200 * 2**20, unit

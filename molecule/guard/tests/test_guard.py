"""The guard against real PostgreSQL and Redis, with a stand-in for n8n."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from molecule.waiting import until

PSQL = "runuser -u postgres -- psql -XAtq -p 15432 -d automation"
REDIS = (
    "REDISCLI_AUTH=$(cat /etc/n8n-platform/secrets/redis_admin_password)"
    " redis-cli -s /run/redis-queue/redis.sock --user admin --no-auth-warning"
)
WORKFLOW = '{"id": "w1", "name": "Orders", "nodes": [], "connections": {}}'
EMPTY = '[{"resultData":"1"},{"error":"2","runData":"3"},{"message":"4"},{},"job stalled more than maxStalledCount"]'


def payload(uid: str, parent: int | None = None) -> str:
    """Return what n8n stores when an execution starts."""
    items: list[Any] = [
        {"resultData": "1", "executionData": "3"},
        {"runData": "2"},
        {},
        {"nodeExecutionStack": "4"},
        ["5"],
        {"data": "6"},
        {"main": "7"},
        ["8"],
        ["9"],
        {"json": "10"},
        {"body": "11"},
        {"uid": "12"},
        uid,
    ]
    if parent is not None:
        items[0]["parentExecution"] = str(len(items))
        items += [{"executionId": str(len(items) + 1)}, str(parent)]
    return json.dumps(items)


class Bench:
    """What the tests do to the host."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def sql(self, query: str, user: str = "n8n") -> str:
        return str(self.host.check_output(f"cd /; {PSQL} <<'END'\nSET ROLE {user};\n{query}\nEND\n"))

    def redis(self, command: str) -> str:
        return str(self.host.check_output(f"{REDIS} {command}"))

    def run(self, words: str, code: int = 0) -> str:
        done = self.host.run(f"n8n-platform {words}")
        assert done.rc == code, done.stdout + done.stderr
        return str(done.stdout)

    def execution(self, uid: str, status: str = "new", mode: str = "webhook", parent: int | None = None) -> int:
        """Accept an execution as n8n does, a minute ago."""
        return int(
            self.sql(
                f"""WITH e AS (INSERT INTO execution_entity (finished, mode, status, "workflowId", "createdAt")
                    VALUES (false, '{mode}', '{status}', 'w1', now() - interval '1 minute') RETURNING id)
                    INSERT INTO execution_data SELECT id, '{WORKFLOW}', '{payload(uid, parent)}' FROM e
                    RETURNING "executionId";"""
            )
        )

    def status(self, execution: int) -> str:
        return self.sql(f"SELECT status FROM execution_entity WHERE id = {execution};").strip()

    def end(self, execution: int, status: str, data: str | None = None) -> None:
        """End an execution as n8n does."""
        self.sql(f'UPDATE execution_entity SET status = $${status}$$, "stoppedAt" = now() WHERE id = {execution};')
        if data:
            self.sql(f"UPDATE execution_data SET data = '{data}' WHERE \"executionId\" = {execution};")

    def job(self, execution: int) -> None:
        self.redis(f"""HSET shop:jobs:{execution} data '{{"executionId":"{execution}"}}'""")
        self.redis(f"LPUSH shop:jobs:wait {execution}")

    def settle(self) -> None:
        """Do passes until an execution without a job, accepted now, has been ended; all others had their turn."""
        canary = self.execution("canary")

        def ended() -> bool:
            self.one_pass()
            return self.status(canary) == "crashed"

        until(ended, 60, "an execution without a job is ended")
        self.run(f"executions dismiss {canary}")

    def one_pass(self) -> None:
        self.host.check_output("systemctl start n8n-guard.service")

    def lost(self) -> dict[int, dict[str, Any]]:
        return {entry["id"]: entry for entry in json.loads(self.run("executions lost --json --payload"))}


@pytest.fixture
def bench(host: Any) -> Iterator[Bench]:
    """Return the host with an n8n that reports to Redis, an empty list, and nothing under way."""
    found = Bench(host)
    found.redis("SADD 'shop:{instance:}members' one")
    yield found
    found.redis("DEL shop:jobs:wait 'shop:{instance:}members'")
    found.sql("DELETE FROM execution_entity; DELETE FROM n8n_platform.lost_execution;")
    host.run("rm -f /run/red /run/asked")


@pytest.mark.parametrize("unit", ["n8n-guard", "n8n-watchdog"])
def test_timers_run_and_services_are_sandboxed(
    running: Callable[[str], None], exposure: Callable[[str], float], unit: str
) -> None:
    running(f"{unit}.timer")
    assert exposure(f"{unit}.service") <= 2.0


def test_passes_without_news_are_silent(bench: Bench, host: Any) -> None:
    bench.one_pass()
    since = host.check_output("date '+%F %T'")
    bench.one_pass()
    host.check_output("systemctl start n8n-watchdog.service")
    assert host.check_output(f"journalctl -q -o cat -u n8n-guard -u n8n-watchdog --since '{since}'") == ""


def test_what_an_execution_starts_with_is_kept(bench: Bench) -> None:
    execution = bench.execution("kept-1")
    assert "kept-1" in bench.sql(f"SELECT data FROM n8n_platform.execution_payload WHERE execution_id = {execution};")
    assert json.loads(bench.run(f"executions show {execution}")) == [{"body": {"uid": "kept-1"}}]


@pytest.mark.parametrize(
    "fault",
    [
        "ALTER TABLE n8n_platform.execution_payload RENAME COLUMN data TO elsewhere;",
        "REVOKE ALL ON n8n_platform.execution_payload FROM n8n; DROP TABLE n8n_platform.execution_payload;",
        "LOCK TABLE n8n_platform.execution_payload IN ACCESS EXCLUSIVE MODE;",
        "ALTER TABLE execution_data RENAME COLUMN data TO other;",
    ],
    ids=["column", "table", "lock", "migration"],
)
def test_n8n_stores_executions_whatever_happens_to_the_copy(bench: Bench, fault: str) -> None:
    """The fault holds in a transaction of its own, the insert runs inside it or, for the lock, beside it."""
    column = "other" if "other" in fault else "data"
    insert = f"""SET statement_timeout = '3s';
        WITH e AS (INSERT INTO execution_entity (finished, mode, status, "workflowId")
        VALUES (false, 'manual', 'success', 'w1') RETURNING id)
        INSERT INTO execution_data ("executionId", "workflowData", {column}) SELECT id, '{{}}', '[]' FROM e
        RETURNING 'stored';"""
    if "LOCK" in fault:
        bench.host.check_output(
            "systemd-run --quiet --unit=holder --uid=postgres sh -c"
            f" '(echo \"BEGIN; {fault}\"; exec tail -f /dev/null) | psql -X -p 15432 -d automation'"
        )
        held = (
            "SELECT count(*) FROM pg_locks WHERE granted AND mode = 'AccessExclusiveLock'"
            " AND relation = 'n8n_platform.execution_payload'::regclass;"
        )
        until(lambda: bench.sql(held, user="postgres").strip() == "1", 30, "the lock is held")
        try:
            answer = bench.sql(insert)
        finally:
            bench.host.check_output("systemctl stop holder.service")
    else:
        answer = bench.sql(f"BEGIN; {fault} {insert} ROLLBACK;")
    assert "stored" in answer


def test_a_trigger_that_a_migration_dropped_comes_back(bench: Bench, host: Any) -> None:
    bench.sql("DROP TRIGGER n8n_platform_keep_payload ON execution_data; DROP INDEX n8n_platform_unsettled;")
    bench.one_pass()
    execution = bench.execution("again-1")
    assert "again-1" in bench.sql(f"SELECT data FROM n8n_platform.execution_payload WHERE execution_id = {execution};")
    assert bench.sql("SELECT to_regclass('n8n_platform_unsettled') IS NOT NULL;").strip() == "t"


def test_executions_without_a_job_are_ended_and_listed(bench: Bench) -> None:
    stuck, queued, done = bench.execution("stuck-1"), bench.execution("queued-1"), bench.execution("done-1")
    bench.job(queued)
    bench.end(done, "success")
    bench.settle()
    assert [bench.status(item) for item in (stuck, queued, done)] == ["crashed", "new", "success"]
    entry = bench.lost()[stuck]
    assert (entry["reason"], entry["workflow"], entry["payload"]) == (
        "crashed",
        "Orders",
        [{"body": {"uid": "stuck-1"}}],
    )
    assert queued not in bench.lost()


def test_sub_workflows_share_the_fate_of_the_execution_that_called_them(bench: Bench) -> None:
    alive, dead = bench.execution("alive-1"), bench.execution("dead-1")
    bench.job(alive)
    child = bench.execution("child-1", "running", "integrated", parent=alive)
    orphan = bench.execution("child-2", "running", "integrated", parent=dead)
    bench.settle()
    bench.settle()
    assert (bench.status(child), bench.status(orphan)) == ("running", "crashed")
    assert dead in bench.lost()
    assert orphan not in bench.lost()


def test_a_payload_that_n8n_threw_away_is_listed_from_the_copy(bench: Bench) -> None:
    execution, failed = bench.execution("gone-1", "running"), bench.execution("failed-1", "running")
    bench.end(execution, "error", EMPTY)
    # A node has met n8n's own database while it was down.
    met = bench.execution("met-1", "running")
    stack = "error: starting up at /opt/n8n-platform/n8n/2.41.1/node_modules/@n8n/typeorm/dist/x.js:1:1"
    bench.end(
        met,
        "error",
        json.dumps([{"resultData": "1"}, {"runData": "2", "error": "3"}, {"N": "4"}, {"stack": "5"}, [], stack]),
    )
    # A node has failed: an ordinary error of the workflow.
    bench.end(failed, "error", '[{"resultData":"1"},{"runData":"2"},{"Node":"3"},[]]')
    bench.one_pass()
    lost = bench.lost()
    assert failed not in lost
    assert lost[execution]["reason"] == "payload-overwritten"
    assert lost[execution]["payload"] == [{"body": {"uid": "gone-1"}}]
    assert "stalled" in lost[execution]["detail"]
    assert (lost[met]["reason"], lost[met]["payload"]) == ("platform-error", [{"body": {"uid": "met-1"}}])


def test_a_rerun_restores_the_payload_and_is_asked_for_once(bench: Bench, host: Any) -> None:
    execution = bench.execution("rerun-1", "running")
    bench.end(execution, "error", EMPTY)
    bench.one_pass()
    # The stand-in begins nothing by itself; this is what n8n would write, in time.
    bench.sql(
        "CREATE OR REPLACE FUNCTION begin() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        ' INSERT INTO execution_entity (finished, mode, status, "workflowId", "retryOf")'
        " VALUES (true, 'retry', 'success', 'w1', NEW.\"executionId\"); RETURN NULL; END $$;"
        " CREATE TRIGGER begin AFTER UPDATE ON execution_data FOR EACH ROW EXECUTE FUNCTION begin();"
    )
    try:
        assert "runs again as execution" in bench.run(f"executions rerun {execution}")
    finally:
        bench.sql("DROP FUNCTION begin CASCADE;")
    assert "rerun-1" in bench.sql(f'SELECT data FROM execution_data WHERE "executionId" = {execution};')
    assert "is being run again already" in bench.run(f"executions rerun {execution}", code=1)
    login, retry = host.check_output("cat /run/asked").splitlines()[:2]
    assert login.startswith('/rest/login {"emailOrLdapLoginId": "owner@n8n.test"')
    assert retry == f'/rest/executions/{execution}/retry {{"loadWorkflow": false}} n8n-auth=session'
    bench.sql(f'UPDATE execution_entity SET "retrySuccessId" = 1 WHERE id = {execution};')
    bench.one_pass()
    assert execution not in bench.lost()


def test_a_pruned_execution_can_be_run_again(bench: Bench) -> None:
    execution = bench.execution("pruned-1", "running")
    bench.end(execution, "crashed")
    bench.one_pass()
    bench.sql(f"DELETE FROM execution_entity WHERE id = {execution};")
    # The stand-in accepts the request and begins nothing; the entry stays taken until the guard opens it again.
    assert "n8n did not begin in time" in bench.run(f"executions rerun {execution}", code=1)
    assert bench.status(execution) == "crashed"
    assert "pruned-1" in bench.sql(f'SELECT data FROM execution_data WHERE "executionId" = {execution};')
    assert bench.lost()[execution]["state"] == "rerunning"
    bench.sql(
        "UPDATE n8n_platform.lost_execution SET claimed_at = now() - interval '1 hour'"
        f" WHERE execution_id = {execution};"
    )
    bench.one_pass()
    assert bench.lost()[execution]["state"] == "open"


def test_what_n8n_prunes_is_archived(bench: Bench) -> None:
    execution = bench.execution("archive-1")
    bench.end(execution, "success")
    bench.sql(f"DELETE FROM execution_entity WHERE id = {execution};")
    row = bench.sql(
        f"SELECT status, mode, workflow_id FROM n8n_platform.execution_archive WHERE execution_id = {execution};"
    )
    assert row.strip() == "success|webhook|w1"


def test_old_copies_go_a_day_at_a_time(bench: Bench) -> None:
    bench.sql(
        "CREATE TABLE n8n_platform.execution_payload_20200101 PARTITION OF n8n_platform.execution_payload"
        " FOR VALUES FROM ('2020-01-01') TO ('2020-01-02');"
    )
    bench.one_pass()
    assert bench.sql("SELECT to_regclass('n8n_platform.execution_payload_20200101') IS NULL;").strip() == "t"


def test_nothing_is_concluded_from_a_queue_that_is_not_n8ns(bench: Bench, host: Any) -> None:
    execution = bench.execution("other-1")
    bench.redis("DEL 'shop:{instance:}members'")
    bench.one_pass()
    assert "No n8n process reports" in host.check_output("cat /var/lib/n8n-platform/guard.json")
    host.check_output("systemctl stop redis-queue.service")
    bench.one_pass()
    assert "Redis does not answer" in host.check_output("cat /var/lib/n8n-platform/guard.json")
    host.check_output("systemctl start redis-queue.service")
    assert bench.status(execution) == "new"


def test_metrics_count_what_is_open(bench: Bench, host: Any) -> None:
    bench.end(bench.execution("count-1"), "crashed")
    bench.one_pass()
    metrics = host.check_output("cat /var/lib/n8n-platform/metrics/n8n_guard.prom")
    assert "\nn8n_guard_lost_executions 1\n" in metrics
    assert "\nn8n_guard_payload_copy_active 1\n" in metrics
    assert bench.run("guard status", code=1)


def test_a_process_that_stays_red_is_restarted(bench: Bench, host: Any) -> None:
    before = host.check_output("systemctl show -P MainPID n8n-main.service")
    look = "systemctl start n8n-watchdog.service"
    host.check_output(look)
    host.check_output("touch /run/red")

    def restarted() -> bool:
        host.check_output(look)
        return bool(host.check_output("systemctl show -P MainPID n8n-main.service") not in (before, "0"))

    until(restarted, 60, "the red process has been restarted")
    assert "was not ready" in host.check_output("journalctl -q -o cat -u n8n-watchdog -n 5")
    assert 'restarts_total{unit="n8n-main.service"} 1' in host.check_output(
        "cat /var/lib/n8n-platform/metrics/n8n_watchdog.prom"
    )

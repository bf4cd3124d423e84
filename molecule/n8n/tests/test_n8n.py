"""Ask a running n8n: two workers, one webhook process, real PostgreSQL and Redis."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

UNITS = ("n8n-main", "n8n-webhook@1", "n8n-worker@1", "n8n-worker@2")
RUNNERS = ("n8n-runner@1", "n8n-runner@2")
WEBHOOK = "http://127.0.0.1:5701/webhook"
SECRETS = "/etc/n8n-platform/secrets"


def sql(host: Any, query: str) -> str:
    """Return what the database answers, unaligned."""
    return str(host.check_output("runuser -u postgres -- psql -d n8n -tAc %s", query)).strip()


def eventually(host: Any, command: str, seconds: int = 60) -> str:
    """Run a command in the host until it succeeds; return its output."""
    script = f"for _ in $(seq {seconds * 2}); do if {command}; then exit 0; fi; sleep 0.5; done; exit 1"
    result = host.run("bash -c %s", script)
    assert result.rc == 0, f"{command}: {result.stdout[-500:]} {result.stderr[-500:]}"
    return str(result.stdout).strip()


@pytest.fixture(scope="module", autouse=True)
def workflows(host: Any) -> None:
    """Have the test workflows imported and published."""
    text = (Path(__file__).parents[1] / "files" / "workflows.json").read_text(encoding="utf-8")
    if sql(host, "SELECT count(*) FROM workflow_entity WHERE id LIKE 'test%'") == "0":
        host.check_output("bash -c %s", f"cat > /data/exports/test.json <<'EOF'\n{text}\nEOF")
        host.check_output("chown n8n /data/exports/test.json")
        host.check_output("n8n import:workflow --input=/data/exports/test.json")
        for workflow in json.loads(text):
            host.check_output("n8n publish:workflow --id=%s", workflow["id"])
    for path in ("test-code", "test-echo", "test-wait", "test-private"):
        request = f'curl -sf --max-time 15 -o /dev/null --json \'{{"text":"x"}}\' {WEBHOOK}/{path}'
        eventually(host, request)


@pytest.mark.parametrize("unit", [*UNITS, *RUNNERS])
def test_unit_runs_in_a_tight_sandbox(
    unit: str, running: Callable[..., None], exposure: Callable[[str], float]
) -> None:
    running(unit, enabled=not unit.startswith("n8n-runner"))
    assert exposure(unit) <= 2.0


def test_only_loopback_and_only_the_ports_of_the_table(listeners: Callable[[], set[tuple[str, int]]]) -> None:
    ours = {(address, port) for address, port in listeners() if port not in (5432, 6379, 6380)}
    assert {port for _, port in ours} == {5678, 5701, 5721, 5722, 5761, 5762}
    assert {address for address, _ in ours} == {"127.0.0.1"}


def call(host: Any, path: str, body: str) -> dict[str, Any]:
    """Return the answer of a workflow that responds with its result."""
    command = f"curl -sf --max-time 15 --json '{body}' {WEBHOOK}/{path}"
    return dict(json.loads(host.check_output("bash -c %s", command)))


def test_a_worker_runs_the_workflow_and_the_runner_its_code(host: Any) -> None:
    answer = call(host, "test-code", '{"text":"hello"}')
    assert answer["hash"] == hashlib.sha256(b"hello").hexdigest()
    assert answer["fs"].startswith("refused"), "only the modules of n8n_code_builtin_modules may be required"
    assert answer["process"] == "undefined"
    log = f'grep -l \'"executionId":"{answer["execution"]}"\' /var/log/n8n/worker-*/events*.log'
    assert "worker-" in eventually(host, log)
    assert sql(host, f"SELECT status, mode FROM execution_entity WHERE id = {answer['execution']}") == "success|webhook"


def test_every_caller_who_waits_for_a_result_gets_it(host: Any) -> None:
    """With n8n's defaults about one answer in 300 never comes, see the README's settings."""
    ask = f"curl -s --max-time 30 -o /dev/null -w '%{{http_code}}\\n' --json '{{}}' {WEBHOOK}/test-echo"
    answers = host.check_output("bash -c %s", f"seq 600 | xargs -P 12 -I@ {ask} | sort | uniq -c").split()
    assert answers == ["600", "200"], answers


def test_every_worker_gets_work(host: Any) -> None:
    before = int(sql(host, "SELECT coalesce(max(id), 0) FROM execution_entity"))
    host.check_output("bash -c %s", f"seq 24 | xargs -P 8 -I% curl -sf -o /dev/null --json '{{}}' {WEBHOOK}/test-wait")
    query = f"SELECT count(*) FROM execution_entity WHERE status = 'success' AND id > {before}"
    eventually(host, f'[ "$(runuser -u postgres -- psql -d n8n -tAc "{query}")" = 24 ]')
    for worker in (1, 2):
        done = int(
            host.check_output("bash -c %s", f"grep -c n8n.node.finished /var/log/n8n/worker-{worker}/events.log")
        )
        assert done > 5, f"worker {worker} finished {done} nodes of 24 executions"


def test_restarting_the_workers_lets_running_executions_finish(host: Any) -> None:
    before = int(sql(host, "SELECT coalesce(max(id), 0) FROM execution_entity"))
    host.check_output("bash -c %s", f"seq 6 | xargs -P 6 -I% curl -sf -o /dev/null --json '{{}}' {WEBHOOK}/test-wait")
    host.check_output("systemctl restart n8n-worker@1 n8n-worker@2")
    query = f"SELECT string_agg(DISTINCT status, ',') || count(*) FROM execution_entity WHERE id > {before}"
    eventually(host, f'[ "$(runuser -u postgres -- psql -d n8n -tAc "{query}")" = success6 ]')
    for port in (5721, 5722):
        eventually(host, f"curl -sf -o /dev/null http://127.0.0.1:{port}/healthz/readiness", 120)


def test_metadata_service_is_out_of_reach(host: Any) -> None:
    answer = json.dumps(call(host, "test-private", "{}"))
    assert "error" in answer
    assert "169.254" in answer or "blocked" in answer.lower() or "not allowed" in answer.lower(), answer


def test_no_secret_in_environment_or_command_line(host: Any) -> None:
    names = host.check_output(f"ls {SECRETS}").split()
    assert "n8n_encryption_key" in names
    exposed = host.run(
        "bash -c %s",
        f"for s in {SECRETS}/*; do cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'"
        " | grep -qFf <(cat $s; echo) && echo $s; done; true",
    )
    assert exposed.stdout.strip() == ""


def test_runner_is_another_user_and_sees_nothing_of_the_platform(host: Any) -> None:
    pid = host.check_output("systemctl show -P MainPID n8n-runner@1")
    assert host.check_output("ps -o user= -p %s", pid) == "n8n-runner"
    inside = f"nsenter --target {pid} --mount --setuid $(id -u n8n-runner) --setgid $(id -g n8n-runner)"
    assert host.run("bash -c %s", f"{inside} ls /etc/n8n-platform").rc != 0
    assert host.run("bash -c %s", f"{inside} ls /data/n8n/main").rc != 0


def test_worker_and_runner_share_one_memory_limit(host: Any) -> None:
    assert host.check_output("systemctl show -P MemoryMax n8n-platform-worker-1.slice") == str(512 * 1024 * 1024)
    for unit in ("n8n-worker@1", "n8n-runner@1"):
        assert host.check_output("systemctl show -P Slice %s", unit) == "n8n-platform-worker-1.slice"


def login(host: Any, password: str) -> int:
    body = json.dumps({"emailOrLdapLoginId": "owner@n8n.test", "password": password})
    code = host.check_output("curl -s -o /dev/null -w '%%{http_code}' --json %s http://127.0.0.1:5678/rest/login", body)
    return int(code)


def test_owner_exists_and_no_visitor_can_become_owner(host: Any) -> None:
    assert login(host, host.file(f"{SECRETS}/n8n_owner_password").content_string.strip()) == 200
    assert login(host, "wrong") == 401
    setup = json.dumps({"email": "a@b.c", "firstName": "a", "lastName": "b", "password": "Aa1bbbbbbbb"})
    code = host.check_output(
        "curl -s -o /dev/null -w '%%{http_code}' --json %s http://127.0.0.1:5678/rest/owner/setup", setup
    )
    assert int(code) >= 400


def test_metrics_and_policy_are_served(host: Any) -> None:
    assert "n8n_scaling_mode_queue_jobs_waiting" in host.check_output("curl -sf http://127.0.0.1:5678/metrics")
    assert "n8n_process_resident_memory_bytes" in host.check_output("curl -sf http://127.0.0.1:5721/metrics")
    headers = host.check_output("curl -sf -o /dev/null -D - http://127.0.0.1:5678/").lower()
    assert "content-security-policy: script-src 'nonce-" in headers


def test_n8n_accepted_every_value(host: Any) -> None:
    # n8n only warns about a value it cannot use, and takes its default instead.
    assert "alling back to default" not in host.check_output("journalctl --no-pager -o cat -u 'n8n-*'")


def test_misspelt_variable_is_refused_before_anything_changes(host: Any, converge: Callable[..., Any]) -> None:
    before = host.file("/etc/n8n-platform/n8n/n8n.env").content_string
    result = converge("--start-at-task", "Check the settings", n8n_environment={"N8N_LOG_LEVLE": "debug"})
    assert result.returncode != 0
    assert "N8N_LOG_LEVLE is not a variable of this n8n; did you mean N8N_LOG_LEVEL?" in " ".join(result.stdout.split())
    assert host.file("/etc/n8n-platform/n8n/n8n.env").content_string == before


def test_downgrade_without_restore_point_is_refused(host: Any, converge: Callable[..., Any]) -> None:
    link = "/opt/n8n-platform/n8n/current"
    installed, changed = host.check_output("readlink %s", link), host.check_output("stat -c %%Y %s", link)
    host.check_output("ln -sfn 9.9.9 %s", link)
    try:
        result = converge("--start-at-task", "Check the settings")
    finally:
        host.check_output("ln -sfn %s %s", installed, link)
        # A link younger than the processes would restart them at the next run.
        host.check_output("touch -h -d @%s %s", changed, link)
    assert result.returncode != 0
    assert "Migrations do not go back" in " ".join(result.stdout.split())


def test_scaling_changes_nothing_else(host: Any, converge: Callable[..., Any]) -> None:
    def started(unit: str) -> str:
        return str(host.check_output("systemctl show -P ActiveEnterTimestampMonotonic %s", unit))

    before = {unit: started(unit) for unit in UNITS}
    grown = converge("--start-at-task", "Check the settings", platform_n8n_workers=3)
    assert grown.returncode == 0, grown.stdout[-3000:]
    assert host.service("n8n-worker@3").is_running
    assert host.service("n8n-runner@3").is_running
    assert {unit: started(unit) for unit in UNITS} == before
    shrunk = converge("--start-at-task", "Check the settings")
    assert shrunk.returncode == 0, shrunk.stdout[-3000:]
    assert not host.service("n8n-worker@3").is_running
    assert not host.service("n8n-runner@3").is_running
    assert {unit: started(unit) for unit in UNITS} == before


def test_the_command_line_prints_what_it_finds(host: Any) -> None:
    assert "testCode00000001" in host.check_output("n8n list:workflow --active=true --onlyId").split()

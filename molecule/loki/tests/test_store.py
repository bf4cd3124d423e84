"""What Loki keeps, for how long, and what it refuses."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import pytest
import yaml

testinfra_hosts = ["n8n-platform-loki"]
TLS = "/etc/n8n-platform/tls"
CERTIFICATE = f"--cacert {TLS}/ca.crt --cert {TLS}/host.crt --key {TLS}/host.key"
DAY = 86400
SCHEMA = {"from": "2024-01-01", "store": "tsdb", "object_store": "filesystem", "schema": "v13"}


def test_what_was_acknowledged_survives_a_kill(store: Any, push: Any, logs: Any, wait_until_ready: Any) -> None:
    mark = secrets.token_hex(8)
    assert push("kept", [f"{mark} {number}" for number in range(50)])[0] == 204
    store.check_output("systemctl kill --signal=KILL loki")
    wait_until_ready()
    assert len(logs(f'{{service_name="kept"}} |= "{mark}"', 50)) == 50


def test_a_line_that_is_too_long_is_cut(push: Any, logs: Any) -> None:
    mark = secrets.token_hex(8)
    assert push("long", [mark + "x" * 5000])[0] == 204
    (row,) = logs(f'{{service_name="long"}} |= "{mark}"')
    assert len(row["line"]) <= 1000


def test_lines_that_are_too_old_are_refused(push: Any) -> None:
    status, reason = push("old", ["x"], age=8 * DAY)
    assert status == 400
    assert "too old" in reason


def test_a_flood_of_one_stream_is_told_to_wait(other: Any, address: str) -> None:
    values = "[[str(time.time_ns() + i), 'x' * 990] for i in range(1000)]"
    body = f"json.dumps({{'streams': [{{'stream': {{'service_name': 'flood'}}, 'values': {values}}}]}})"
    other.check_output(f'python3 -c "import json, time; print({body})" > /tmp/flood.json')
    post = (
        f"curl --silent {CERTIFICATE} --output /dev/null --write-out '%{{http_code}} ' --data-binary @/tmp/flood.json "
        f"-H 'Content-Type: application/json' https://{address}:3100/loki/api/v1/push"
    )
    answers = other.check_output(f"for i in 1 2 3 4 5 6; do {post}; done").split()
    assert answers[0] == "204"
    assert "429" in answers


def test_nobody_deletes_lines(store: Any, address: str) -> None:
    answer = store.check_output(
        f"curl --silent {CERTIFICATE} --write-out '%{{http_code}}' --request POST "
        f"'https://{address}:3100/loki/api/v1/delete?query=%7Bservice_name%3D%22n8n-audit%22%7D&start=1'"
    )
    assert answer.endswith(("403", "404")), answer


def test_each_class_is_kept_for_its_own_time(store: Any, address: str) -> None:
    told = yaml.safe_load(store.check_output(f"curl --silent {CERTIFICATE} https://{address}:3100/config"))
    limits = told["limits_config"]
    assert limits["retention_period"] == "6d"
    periods = {rule["selector"]: rule["period"] for rule in limits["retention_stream"]}
    assert periods == {'{service_name="n8n-audit"}': "90d", '{service_name="traefik-access"}': "1d"}
    assert told["compactor"]["retention_enabled"]


def test_what_is_too_old_is_removed_from_the_disk(store: Any, address: str, push: Any, wait_until_ready: Any) -> None:
    for service in ("traefik-access", "n8n-audit"):
        assert push(service, ["three days ago"], age=3 * DAY)[0] == 204
    # A restart writes what is in memory to the disk; the compactor begins a minute after it.
    store.check_output("systemctl restart loki")
    wait_until_ready()
    removed = 'sweeper_chunk_deleted_duration_seconds_count.*status="success".* [1-9]'
    metrics = f"curl --silent {CERTIFICATE} https://{address}:3100/metrics"
    store.check_output("timeout 150 bash -c %s", f"until {metrics} | grep -q '{removed}'; do sleep 1; done")
    stats = f"curl --silent --get {CERTIFICATE} https://{address}:3100/loki/api/v1/index/stats --data since=6d"
    assert '"chunks":0' not in store.check_output(f"{stats} --data-urlencode 'query={{service_name=\"n8n-audit\"}}'")


def test_loki_takes_the_settings_of_a_bucket(converge: Callable[..., Any]) -> None:
    bucket = {"loki_s3_endpoint": "s3.example:443", "loki_s3_access_key": "key", "loki_s3_secret": "not-so-secret"}
    result = converge("--limit", "n8n-platform-loki", "--check", "--diff", loki_store="s3", **bucket)
    assert result.returncode == 0, result.stdout
    assert "bucket_name: n8n-logs-test" in result.stdout
    assert "not-so-secret" not in result.stdout


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"loki_settings": {"server": {"colour": "red"}}}, "colour"),
        (
            {"loki_settings": {"schema_config": {"configs": [{**SCHEMA, "index": {"prefix": "x", "period": "12h"}}]}}},
            "24h",
        ),
        ({"loki_retention_classes": {"n8n-audit": 0}}, "must be at least 1"),
        ({"loki_retention_classes": {'x"} or {a="b': 1}}, "values of the label service_name"),
        ({"loki_store": "s3", "loki_s3_endpoint": "s3.example"}, "loki_s3_access_key"),
        ({"loki_memory_max_mb": 100}, "at least 256"),
    ],
)
def test_what_loki_would_not_take_never_reaches_it(
    store: Any, converge: Callable[..., Any], settings: dict[str, Any], reason: str
) -> None:
    state = "systemctl show -P MainPID loki; md5sum /etc/n8n-platform/loki/*"
    before = store.check_output(state)
    result = converge("--limit", "n8n-platform-loki", **settings)
    assert result.returncode != 0
    assert reason in result.stdout
    assert store.check_output(state) == before

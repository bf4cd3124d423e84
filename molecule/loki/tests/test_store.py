"""What Loki keeps, for how long, and what it refuses."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import pytest

testinfra_hosts = ["n8n-platform-loki"]
TLS = "/etc/n8n-platform/tls"
CERTIFICATE = f"--cacert {TLS}/ca.crt --cert {TLS}/host.crt --key {TLS}/host.key"
DAY = 86400


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


def test_a_flood_of_one_stream_is_told_to_wait(push: Any) -> None:
    lines = ["x" * 990] * 120
    answers = [push("flood", lines) for _ in range(30)]
    assert {status for status, _ in answers} == {204, 429}


def test_nobody_deletes_lines(store: Any, address: str) -> None:
    answer = store.check_output(
        f"curl --silent {CERTIFICATE} --write-out '%{{http_code}}' --request POST "
        f"'https://{address}:3100/loki/api/v1/delete?query=%7Bservice_name%3D%22n8n-audit%22%7D&start=1'"
    )
    assert answer.endswith(("403", "404")), answer


def test_each_class_is_kept_for_its_own_time(
    store: Any, other: Any, address: str, push: Any, wait_until_ready: Callable[[], None]
) -> None:
    mark = secrets.token_hex(8)
    for service in ("traefik-access", "n8n-audit"):
        assert push(service, [f"{mark} three days ago"], age=3 * DAY)[0] == 204
    # What is in memory goes to the store, and with it into the hands of retention.
    store.check_output("systemctl restart loki")
    wait_until_ready()
    ask = (
        f"curl --silent --get {CERTIFICATE} https://{address}:3100/loki/api/v1/query_range --data since=6d "
        f'--data-urlencode \'query={{service_name="%s"}} |= "{mark}"\''
    )
    other.check_output("timeout 90 bash -c %s", f"until ! {ask % 'traefik-access'} | grep -q {mark}; do sleep 1; done")
    assert mark in other.check_output(ask % "n8n-audit")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"loki_settings": {"server": {"colour": "red"}}}, "colour"),
        ({"loki_settings": {"limits_config": {"retention_period": "12h"}}}, "retention"),
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

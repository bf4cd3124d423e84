"""Nothing is lost while a backend is away or the collector is killed; a flood stays inside its limits."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

LOKI = "http://127.0.0.1:23100"
PROGRAM = "/usr/local/share/telemetry-test/telemetry.py"


def numbers(rows: list[Any]) -> list[int]:
    """Return the numbers of the lines the test program wrote; some may have been sent twice."""
    return sorted({int(row["line"].rsplit(" ", 1)[1]) for row in rows})


def test_an_outage_of_the_stores_and_a_kill_lose_nothing(
    host: Any, logs: Any, traces: Any, event: Any, send: Any, wait_until_ready: Callable[[], None]
) -> None:
    mark, executions = secrets.token_hex(8), [str(secrets.randbelow(10**9)) for _ in range(4)]
    host.check_output("systemctl stop loki jaeger")
    host.check_output(f"systemd-run --quiet --collect --unit=n8n-main.service {PROGRAM} write 600 100 {mark}")
    sent = []
    for execution in executions:
        event("worker-3", "n8n.workflow.success", executionId=execution)
        sent.append(send())
        host.check_output("systemctl kill --signal=KILL otel-collector.service")
        wait_until_ready()
    host.check_output("systemctl start loki jaeger")
    rows = logs(f'{{service_name="n8n-main"}} |= "{mark} "', 600, 60)
    assert numbers(rows) == list(range(600))
    for execution in executions:
        assert logs(f'{{service_name="n8n-events"}} | execution_id="{execution}"')
    assert set(traces(sent, seconds=60)) == set(sent)


def test_a_long_outage_alone_loses_nothing_at_all(host: Any, logs: Any) -> None:
    mark = secrets.token_hex(8)
    host.check_output("systemctl stop loki")
    host.check_output(f"systemd-run --quiet --wait --collect --unit=n8n-main.service {PROGRAM} write 3000 0 {mark}")
    host.check_output("systemctl restart otel-collector")
    host.check_output("systemctl start loki")
    query = f'{{service_name="n8n-main"}} |= "{mark} "'
    assert numbers(logs(f'{query} |~ " 2999$"', 1, 60)) == [2999]
    assert numbers(logs(query, 3000, 60)) == list(range(3000))


def test_a_flood_arrives_whole_and_the_memory_stays_bounded(host: Any) -> None:
    mark, count = secrets.token_hex(8), 40000
    line = f'{{"eventName":"n8n.node.started","payload":{{"nodeName":"Set","mark":"{mark} %.0f"}}}}'
    host.check_output("seq -f %s %s >> /var/log/n8n/main/events.log", line, str(count))
    query = f'{{service_name="n8n-events"}} |= "{mark} "'
    assert int(host.check_output(f"{PROGRAM} count {LOKI} %s {count} 180", query)) == count
    for unit, limit in (("otel-collector", 384), ("loki", 768)):
        peak = host.check_output(f"grep VmHWM /proc/$(systemctl show -P MainPID {unit})/status")
        assert int(peak.split()[1]) < limit * 1024 * 0.9, unit


def test_a_line_can_be_read_within_seconds(say: Any, logs: Any) -> None:
    mark = secrets.token_hex(8)
    say("n8n-main.service", mark)
    assert logs(f'{{service_name="n8n-main"}} |= "{mark}"', 1, 4)

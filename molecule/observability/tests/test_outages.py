"""What was logged while Loki was away or the collector was killed is there afterwards; a flood drowns nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from molecule.observability.driver import Stack
from molecule.observability.tests.conftest import Runs
from molecule.waiting import until

AWAY = 60
EVERY = 0.05
FLOOD = 100_000
MONITORING = ("loki", "otel-collector", "jaeger", "prometheus")


def test_an_outage_of_loki_loses_no_line(stack: Stack, runs: Runs, show: Callable[[str], None]) -> None:
    """A minute without Loki, and in the middle of it the collector is killed."""
    assert runs.good
    wanted = int((AWAY + 30) / EVERY)
    prefix = f"outage-{time.time_ns()}"
    query = f'{{service_name="platform"}} |~ "{prefix} [0-9]{{8}}"'
    stack.write_lines("n8n-test-outage", wanted, EVERY, prefix)
    until(lambda: stack.count(query) > 20, 60, "lines before the outage")
    stack.run("systemctl stop loki")
    try:
        pause = threading.Event()
        pause.wait(AWAY / 2)
        stack.run("systemctl kill --signal=SIGKILL otel-collector")
        pause.wait(AWAY / 2)
    finally:
        stack.run("systemctl start loki")
    began = time.monotonic()
    until(lambda: stack.run("systemctl is-active n8n-test-outage", check=False).strip() != "active", 300, "written")
    until(lambda: stack.count(query) >= wanted, 180, f"all {wanted} lines", every=3)
    show(f"{wanted} lines around an outage of {AWAY} s and a kill: all there {time.monotonic() - began:.0f} s later")
    numbers = {int(line.split(prefix)[1].split()[0]) for line in stack.every_line(query)}
    assert numbers == set(range(wanted)), f"missing: {sorted(set(range(wanted)) - numbers)[:20]}"


def test_a_flood_stays_inside_its_limits(stack: Stack, runs: Runs, show: Callable[[str], None]) -> None:
    """So many lines at once: nothing is killed, workflows go on, and other lines still come through."""
    assert runs.good
    prefix = f"flood-{time.time_ns()}"
    before = stack.memory_peaks(*MONITORING)
    began = time.monotonic()
    stack.write_lines("n8n-test-flood", FLOOD, 0, prefix)
    assert "execution" in stack.call("obs-good")
    text = f"beside-{time.time_ns()}"
    stack.run(f"echo {text} | systemd-cat -t beside")
    until(lambda: stack.count(f'{{service_name="system"}} |= "{text}"', 600) == 1, 180, "a line beside it", every=2)
    show(f"a line beside a flood of {FLOOD} lines: queryable after {time.monotonic() - began:.0f} s")
    settled: list[int] = [-1]

    def still() -> bool:
        settled.append(stack.count(f'{{service_name="platform"}} |~ "{prefix} [0-9]{{8}}"', 1800))
        return settled[-1] == FLOOD or (settled[-1] > 0 and settled[-4:] == settled[-1:] * 4)

    until(still, 240, "the flood has been read", every=5)
    took = time.monotonic() - began
    show(f"{settled[-1]} of {FLOOD} lines stored within {took:.0f} s ({settled[-1] / took:.0f} lines/s)")
    after = stack.memory_peaks(*MONITORING)
    for unit, (share, restarts) in after.items():
        assert share < 1, f"{unit} used {share:.0%} of its memory"
        assert restarts == before[unit][1], f"{unit} was restarted"
    show("memory, most of the limit: " + ", ".join(f"{unit} {share:.0%}" for unit, (share, _) in after.items()))

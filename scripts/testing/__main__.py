# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the tests: everything, or the scenarios (and `lint`, `unit`) that are named.

python scripts/run_tests.py [NAME...]
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

from scripts.testing import jobs, logs, report, scenarios
from scripts.testing.jobs import MINUTE, Job, Scheduler

PYTHON = sys.executable
# Part of the memory that is free at the start stays for the machine itself.
MEMORY_SHARE = 0.8
CHECKS = {
    "lint": Job("lint", (PYTHON, "scripts/lint.py"), logs.lint_counts),
    "unit": Job("unit", (PYTHON, "-m", "pytest", "--cov", "--cov-fail-under=90"), logs.pytest_counts),
}
# One step: the artifacts are there, verified, or they are not.
ARTIFACTS = Job(
    "artifacts",
    (PYTHON, "-m", "artifacts.store", "ensure"),
    lambda text: logs.Counts(1) if text else logs.Counts(),
    timeout=60 * MINUTE,
)


def scenario_job(name: str, after: str = "") -> Job:
    """Return the job that tests a scenario."""
    return Job(
        name,
        ("molecule", "test", "--scenario-name", name),
        logs.molecule_counts,
        scenario=True,
        after=after,
        memory_mb=scenarios.MEMORY_MB.get(name, scenarios.DEFAULT_MEMORY_MB),
    )


def plan(names: list[str], known: list[str], times: dict[str, float]) -> list[Job]:
    """Return the jobs in the order they should start: checks, then scenarios, the longest first."""
    ordered = sorted(
        (name for name in dict.fromkeys(names or known) if name in known),
        key=lambda name: -scenarios.expected_seconds(name, times),
    )
    if names:
        return [*(CHECKS[name] for name in names if name in CHECKS), *(scenario_job(name) for name in ordered)]
    return [ARTIFACTS, *CHECKS.values(), *(scenario_job(name, after="artifacts") for name in ordered)]


def interrupt(number: int, frame: FrameType | None) -> None:
    """Treat a polite request to end like Ctrl-C, so that everything is cleaned up."""
    raise KeyboardInterrupt


def main(names: list[str]) -> int:
    """Run the tests and return the exit code; the last line printed is `N passed, N failed`."""
    known = scenarios.names()
    unknown = [name for name in names if name not in known and name not in CHECKS]
    if unknown:
        print(f"No such scenario: {', '.join(unknown)}. There are: {', '.join([*CHECKS, *known])}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, interrupt)
    begin = time.monotonic()

    def say(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - begin), 60)
        print(f"[{minutes:2d}:{seconds:02d}] {text}", flush=True)

    planned = plan(names, known, scenarios.read_times())
    if any(job.scenario for job in planned):
        scenarios.make_network()
    say(f"{len(planned)} jobs; their output goes to {jobs.LOGS.relative_to(scenarios.ROOT)}/")
    scheduler = Scheduler(planned, say, int(scenarios.available_memory_mb() * MEMORY_SHARE))
    try:
        results = scheduler.run()
    except KeyboardInterrupt:
        print("Interrupted; the containers of the scenarios that ran are removed.", file=sys.stderr)
        return 130
    scenarios.write_times({result.job.name: round(result.seconds) for result in results if not result.counts.failed})
    counts = report.total(results)
    print(
        f"\n{report.table(results)}\n{report.reasons(results)}\n{counts.passed} passed, {counts.failed} failed",
        flush=True,
    )
    return 1 if counts.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: GPL-3.0-or-later
"""The table and the closing line of a test run."""

from __future__ import annotations

from collections.abc import Iterable

from scripts.testing import logs
from scripts.testing.jobs import Result

COLUMNS = ("job", "result", "seconds", "converge s", "2nd run s", "2nd run tasks", "passed", "failed")


def cells(result: Result) -> tuple[str, ...]:
    """Return the row of a job. The second run is Molecule's idempotence step; its tasks are summed over all hosts."""
    text = result.job.text() if result.job.scenario else ""
    first, second = logs.molecule_run(text, "converge"), logs.molecule_run(text, "idempotence")
    return (
        result.job.name,
        "FAIL" if result.counts.failed else "ok",
        f"{result.seconds:.0f}",
        f"{first.seconds:.0f}" if first else "",
        f"{second.seconds:.0f}" if second else "",
        str(second.tasks) if second else "",
        str(result.counts.passed),
        str(result.counts.failed),
    )


def table(results: Iterable[Result]) -> str:
    """Return the table of all jobs, the slowest first."""
    rows = [COLUMNS, *(cells(result) for result in sorted(results, key=lambda result: -result.seconds))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = []
    for row in rows:
        left = [row[0].ljust(widths[0]), row[1].ljust(widths[1])]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join([*left, *right]).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)


def reasons(results: Iterable[Result]) -> str:
    """Return the tests that failed with why, once more: what a job said when it ended is far above by now."""
    lines = [
        f"{result.job.name}: {line}"
        for result in results
        if result.counts.failed
        for line in logs.reasons(result.job.text()) or [result.note or logs.excerpt(result.job.text(), limit=6)]
    ]
    return "\n".join(["", "What failed:", *lines, ""]) if lines else ""


def total(results: Iterable[Result]) -> logs.Counts:
    """Return the counts of all jobs."""
    counts = logs.Counts()
    for result in results:
        counts += result.counts
    return counts

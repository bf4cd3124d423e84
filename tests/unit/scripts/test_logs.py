# SPDX-License-Identifier: GPL-3.0-or-later
"""What the test runner reads out of logs."""

from __future__ import annotations

import pytest

from scripts.testing import logs
from scripts.testing.logs import Counts

MOLECULE = """\
INFO     [redis > create] Executing
INFO     [redis > create] Executed: Successful
INFO     [redis > converge] Executing
TASK [Write a file] ****
changed: [h]
PLAY RECAP ****
h                          : ok=7    changed=3    unreachable=0    failed=0
TASKS RECAP ****
Sunday 22 November 2026  17:49:06 +0000 (0:00:01.497)       0:01:02.506 *******
INFO     [redis > converge] Executed: Successful
INFO     [redis > idempotence] Executing
PLAY RECAP ****
a                          : ok=5    changed=0    unreachable=0
b                          : ok=4    changed=0    unreachable=0
Sunday 22 November 2026  17:49:06 +0000 (0:00:00.500)       0:00:03.250 *******
INFO     [redis > idempotence] Executed: Successful
INFO     [redis > verify] Executing
"""


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("========================= 1 failed, 3 passed in 1.53s ==========================", Counts(3, 1)),
        ("48 passed in 1.08s", Counts(48, 0)),
        ("300 passed, 2 skipped in 75.10s (0:01:15)", Counts(300, 2)),
        ("= 2 passed, 1 warning, 1 error in 0.10s =", Counts(2, 1)),
        ("it took 3 passed in vain", Counts(0, 0)),
    ],
)
def test_pytest_summaries(line: str, counts: Counts) -> None:
    assert logs.pytest_counts(f"before\n{line}\nafter\n") == counts


def test_pytest_runs_add_up() -> None:
    assert logs.pytest_counts("2 passed in 1.0s\nx\n3 passed, 1 failed in 1.0s\n") == Counts(5, 1)


def test_linters_are_counted() -> None:
    text = "ok   mypy            0.8 s\nFAIL ruff check      0.1 s\n--   shellcheck    0.0 s\n--- ruff check ---\nok"
    assert logs.lint_counts(text) == Counts(1, 1)


def test_molecule_counts_test_actions_and_tests() -> None:
    verified = MOLECULE + "=== 4 passed in 1.53s ===\nINFO     [redis > verify] Executed: Successful\n"
    assert logs.molecule_counts(verified) == Counts(6, 0)
    failed = MOLECULE.replace("idempotence] Executed: Successful", "idempotence] Executed: Failed")
    assert logs.molecule_counts(failed) == Counts(1, 1)


def test_where_a_scenario_stands() -> None:
    assert logs.molecule_action("") == ""
    assert logs.molecule_action(MOLECULE) == "verify"


def test_tasks_and_seconds_of_a_run() -> None:
    assert logs.molecule_run(MOLECULE, "converge") == logs.Run(7, 62.506)
    assert logs.molecule_run(MOLECULE, "idempotence") == logs.Run(9, 3.25)
    assert logs.molecule_run(MOLECULE, "verify") is None
    assert logs.molecule_run(MOLECULE, "create") == logs.Run(0, 0.0)


@pytest.mark.parametrize(
    ("counts", "code", "result"),
    [
        (Counts(3, 0), 0, Counts(3, 0)),
        (Counts(3, 0), 1, Counts(3, 1)),
        (Counts(3, 2), 1, Counts(3, 2)),
        (Counts(0, 0), 0, Counts(0, 1)),
        (Counts(5, 1), 0, Counts(5, 1)),
    ],
)
def test_the_exit_code_has_its_say(counts: Counts, code: int, result: Counts) -> None:
    assert counts.ended_with(code) == result


def test_colours_and_links_are_removed() -> None:
    assert logs.plain("\x1b[31m\x1b]8;;https://x\x1b\\fatal\x1b]8;;\x1b\\\x1b[0m: [h]") == "fatal: [h]"


def test_excerpt_shows_the_failed_task() -> None:
    text = (
        "TASK [Fine] ***\nok: [h]\nTASK [Bad] ***\n[ERROR]: Task failed\nfatal: [h]: FAILED! =>\n    msg: no\n"
        "PLAY RECAP ***\nh : ok=1\n" + "noise\n" * 200
    )
    assert logs.excerpt(text) == "TASK [Bad] ***\n[ERROR]: Task failed\nfatal: [h]: FAILED! =>\n    msg: no"


def test_excerpt_shows_test_failures() -> None:
    text = "noise\n=== FAILURES ===\n___ test_x ___\nE  no\n=== 1 failed in 1.00s ===\n" + "noise\n" * 200
    assert logs.excerpt(text).splitlines() == [
        "=== FAILURES ===",
        "___ test_x ___",
        "E  no",
        "=== 1 failed in 1.00s ===",
    ]


def test_excerpt_shows_what_is_not_idempotent() -> None:
    failed = "CRITICAL Idempotence test failed because of the following tasks:\n*  => roles/x : Y\n"
    text = f"ok: [h]\n{failed}ERROR    [x]\nnoise\n"
    assert logs.excerpt(text).endswith("following tasks:\n*  => roles/x : Y")


def test_reasons_name_each_test_that_failed() -> None:
    text = """
____________________ test_a[x] ____________________
    assert f() == 1
E   assert 2 == 1
E    +  where 2 = f()
_ _ _ _ _ _ _ _ _ _
____________________ test_b ____________________
E   AssertionError: no
"""
    assert logs.reasons(text) == ["test_a[x]: assert 2 == 1", "test_b: AssertionError: no"]


def test_excerpt_is_bounded() -> None:
    lines = [str(number) for number in range(1000)]
    assert logs.excerpt("\n".join(lines), limit=10).splitlines() == lines[-10:]
    long = "TASK [Bad] ***\nfatal: [h]\n" + "\n".join(lines)
    shown = logs.excerpt(long, limit=10).splitlines()
    assert shown[0] == "TASK [Bad] ***"
    assert shown[5] == "... 992 lines left out ..."
    assert shown[-1] == "999"

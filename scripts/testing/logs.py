# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what linters, pytest and Molecule printed: counts, where a scenario stands, what explains a failure."""

from __future__ import annotations

import re
from dataclasses import dataclass

ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\]8;[^\x1b\x07]*(?:\x1b\\|\x07))")
PYTEST_SUMMARY = re.compile(r"^=*\s*((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s(?: \([\d:]+\))?\s*=*$", re.MULTILINE)
ACTION_BEGIN = re.compile(r"^INFO\s+\[\S+ > (\w+)\] Executing$", re.MULTILINE)
ACTION_END = re.compile(r"^\w+\s+\[\S+ > (\w+)\] Executed: (Successful|Failed)", re.MULTILINE)
LINT_LINE = re.compile(r"^(ok|FAIL) +\S.* +[\d.]+ s$", re.MULTILINE)
RECAP_HOST = re.compile(r"^\S+\s+: ok=(\d+)\s+changed=\d+", re.MULTILINE)
TASK_CLOCK = re.compile(r"\([\d:.]+\)\s+(\d+):(\d\d):(\d\d\.\d+) \*+$", re.MULTILINE)
# Molecule actions that are tests in themselves; verify is counted by its pytest tests.
TEST_ACTIONS = ("check", "converge", "idempotence", "side_effect")
BAD_OUTCOMES = ("failed", "error", "errors", "skipped", "xfailed", "xpassed")
EXCERPT_LINES = 80
REASON_CHARACTERS = 400


@dataclass(frozen=True)
class Counts:
    """Tests that passed and failed. A skipped test counts as failed: it proved nothing."""

    passed: int = 0
    failed: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Add two counts."""
        return Counts(self.passed + other.passed, self.failed + other.failed)

    def ended_with(self, code: int) -> Counts:
        """Return the counts with at least one failure when the program failed, or when nothing was tested."""
        if self.failed or (code == 0 and self.passed):
            return self
        return Counts(self.passed, 1)


@dataclass(frozen=True)
class Run:
    """One run of a playbook by Molecule: tasks that ran (over all hosts) and seconds, as Ansible counted them."""

    tasks: int
    seconds: float


def plain(text: str) -> str:
    """Return text without terminal colours and links."""
    return ANSI.sub("", text)


def pytest_counts(text: str) -> Counts:
    """Add up the summary lines of all pytest runs in a log."""
    total = Counts()
    for match in PYTEST_SUMMARY.finditer(text):
        numbers = {word: int(number) for number, word in (part.split() for part in match[1].split(", "))}
        total += Counts(numbers.get("passed", 0), sum(numbers.get(word, 0) for word in BAD_OUTCOMES))
    return total


def lint_counts(text: str) -> Counts:
    """Count the linters that passed and failed."""
    words = [match[1] for match in LINT_LINE.finditer(text)]
    return Counts(words.count("ok"), words.count("FAIL"))


def molecule_counts(text: str) -> Counts:
    """Count the actions that are tests and the tests of verify."""
    total = pytest_counts(text)
    for action, outcome in ACTION_END.findall(text):
        if action in TEST_ACTIONS:
            total += Counts(1, 0) if outcome == "Successful" else Counts(0, 1)
    return total


def molecule_action(text: str) -> str:
    """Return the action a running scenario is at, or an empty text before the first."""
    begun = ACTION_BEGIN.findall(text)
    return begun[-1] if begun else ""


def molecule_run(text: str, action: str) -> Run | None:
    """Return how many tasks an action such as ``idempotence`` ran and how long they took; None if it did not end."""
    begin = re.search(rf"^INFO\s+\[\S+ > {action}\] Executing$", text, re.MULTILINE)
    end = re.search(rf"^\w+\s+\[\S+ > {action}\] Executed", text, re.MULTILINE)
    if not begin or not end:
        return None
    section = text[begin.end() : end.start()]
    tasks = sum(int(count) for count in RECAP_HOST.findall(section))
    clocks = TASK_CLOCK.findall(section)
    seconds = 0.0
    if clocks:
        hours, minutes, rest = clocks[-1]
        seconds = int(hours) * 3600 + int(minutes) * 60 + float(rest)
    return Run(tasks, seconds)


def failed_task(lines: list[str]) -> list[str]:
    """Return the first task of an Ansible log that failed, with its message."""
    for index, line in enumerate(lines):
        if not line.startswith(("fatal: ", "failed: ", "[ERROR]: ")):
            continue
        begin = next((back for back in range(index, -1, -1) if lines[back].startswith("TASK [")), index)
        stop = ("PLAY RECAP", "TASK [", "RUNNING HANDLER", "NO MORE HOSTS LEFT")
        end = next((on for on in range(index, len(lines)) if lines[on].startswith(stop)), len(lines))
        return lines[begin:end]
    return []


def pytest_failures(lines: list[str]) -> list[str]:
    """Return the first failures part of a pytest log, to its summary."""
    marks = [i for i, line in enumerate(lines) if re.match(r"=+ (FAILURES|ERRORS) =+", line)]
    if not marks:
        return []
    ends = (i for i in range(marks[0], len(lines)) if PYTEST_SUMMARY.match(lines[i]))
    return lines[marks[0] : next(ends, len(lines) - 1) + 1]


def not_idempotent(lines: list[str]) -> list[str]:
    """Return the tasks that Molecule's idempotence step complains of."""
    for index, line in enumerate(lines):
        if "Idempotence test failed" in line:
            end = next((i for i in range(index + 1, len(lines)) if re.match(r"(INFO|WARNING|ERROR) ", lines[i])), None)
            return lines[index:end]
    return []


def reasons(text: str) -> list[str]:
    """Return a line for each test that failed: its name and the first line of pytest's explanation."""
    found: list[str] = []
    name = ""
    for line in plain(text).splitlines():
        if header := re.match(r"_{3,} (.+?) _{3,}$", line):
            name = header[1]
        elif name and line.startswith("E  "):
            found.append(f"{name}: {line[1:].strip()}"[:REASON_CHARACTERS])
            name = ""
    return found


def excerpt(text: str, limit: int = EXCERPT_LINES) -> str:
    """Return the lines of a failed job's log that explain the failure, at most about ``limit`` of them."""
    lines = plain(text).rstrip().splitlines()
    chosen = not_idempotent(lines) or failed_task(lines) or pytest_failures(lines) or lines[-limit:]
    if len(chosen) > limit:
        head = limit // 2
        left_out = len(chosen) - limit
        chosen = [*chosen[:head], f"... {left_out} lines left out ...", *chosen[head - limit :]]
    return "\n".join(chosen)

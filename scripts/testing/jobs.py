# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs and the scheduler that runs them, two at a time where memory allows."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from scripts.testing import logs, scenarios

LOGS = scenarios.ROOT / "tests" / "output"
MINUTE = 60.0
SLOTS = 2


@dataclass(frozen=True)
class Job:
    """A command whose output goes to a log; ``after`` names a job that must have ended before."""

    name: str
    command: tuple[str, ...]
    count: Callable[[str], logs.Counts]
    scenario: bool = False
    after: str = ""
    memory_mb: int = 500
    timeout: float = 35 * MINUTE

    @property
    def log(self) -> Path:
        """Where the output goes."""
        return LOGS / f"{self.name}.log"

    def text(self) -> str:
        """Return the output so far."""
        return logs.plain(self.log.read_text(encoding="utf-8", errors="replace")) if self.log.exists() else ""


@dataclass(frozen=True)
class Result:
    """How a job ended."""

    job: Job
    code: int
    seconds: float
    counts: logs.Counts
    note: str = ""


@dataclass
class Running:
    """A job under way: its process leads a process group of its own, so that nothing else is ever stopped with it."""

    job: Job
    process: subprocess.Popen[bytes]
    reserved: IO[str] | None
    begin: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self.begin

    def stop(self) -> None:
        """End the process group, first kindly, and remove the containers of a scenario."""
        for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(patience)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        if self.job.scenario:
            scenarios.remove(self.job.name)
        self.release()

    def release(self) -> None:
        """Let other runs have the scenario."""
        if self.reserved:
            self.reserved.close()


class Scheduler:
    """Runs jobs in the order given, each as soon as its turn, a slot and its memory are there."""

    def __init__(self, jobs: Iterable[Job], say: Callable[[str], None], memory_mb: int) -> None:
        self.pending = list(jobs)
        self.total = len(self.pending)
        self.running: list[Running] = []
        self.results: list[Result] = []
        self.say = say
        self.memory_mb = memory_mb
        self.begin = time.monotonic()

    def may_start(self, job: Job) -> bool:
        """Tell whether a job may start beside those that run."""
        if any(job.after == other.name for other in [*self.pending, *(run.job for run in self.running)]):
            return False
        if not self.running:
            return True
        if len(self.running) >= SLOTS:
            return False
        return job.memory_mb + sum(run.job.memory_mb for run in self.running) <= self.memory_mb

    def start(self, job: Job) -> None:
        """Start a job."""
        self.pending.remove(job)
        reserved = scenarios.lock(job.name) if job.scenario else None
        if job.scenario and reserved is None:
            note = "another run on this machine uses this scenario"
            self.finish(Result(job, 1, 0, logs.Counts(0, 1), note))
            return
        if job.scenario:
            scenarios.remove(job.name)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("wb") as stream:
            process = subprocess.Popen(
                job.command,
                cwd=scenarios.ROOT,
                env=scenarios.environment(),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append(Running(job, process, reserved))
        self.say(f"start {job.name}")

    def poll(self) -> None:
        """Take note of the jobs that ended and stop those that take too long."""
        for run in list(self.running):
            code, note = run.process.poll(), ""
            if code is None and run.seconds > run.job.timeout:
                note = f"stopped after {run.job.timeout / MINUTE:.0f} minutes, the time limit"
                run.stop()
                code = 1
            if code is None:
                continue
            run.release()
            self.running.remove(run)
            self.finish(Result(run.job, code, run.seconds, run.job.count(run.job.text()).ended_with(code), note))

    def finish(self, result: Result) -> None:
        """Keep a result; say how it ended and, if badly, why."""
        self.results.append(result)
        word = "FAIL " if result.counts.failed else "ok   "
        detail = f"{result.counts.passed} passed, {result.counts.failed} failed"
        self.say(f"{word} {result.job.name}: {detail} in {result.seconds:.0f} s")
        if result.counts.failed:
            shown = result.job.log.relative_to(scenarios.ROOT)
            body = result.note or logs.excerpt(result.job.text())
            rule = "-" * 20
            self.say(f"{rule} {result.job.name}: what failed (all of it: {shown}) {rule}\n{body}\n{rule}{rule}")

    def progress(self) -> str:
        """Return a line that says what runs and where it stands."""
        parts = []
        for run in self.running:
            action = logs.molecule_action(run.job.text()) if run.job.scenario else ""
            parts.append(f"{run.job.name} ({run.seconds:.0f} s{', ' + action if action else ''})")
        return f"      {len(self.results)} of {self.total} done; running: {', '.join(parts)}"

    def run(self, every: float = MINUTE) -> list[Result]:
        """Run all jobs and return their results; however it ends, no process or container of theirs is left."""
        next_line = time.monotonic() + every
        try:
            while self.pending or self.running:
                for job in list(self.pending):
                    if self.may_start(job):
                        self.start(job)
                self.poll()
                if time.monotonic() > next_line:
                    self.say(self.progress())
                    next_line = time.monotonic() + every
                if self.running:
                    time.sleep(0.2)
        finally:
            if self.running:
                # A second Ctrl-C must not leave containers behind.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            for run in self.running:
                self.say(f"stop  {run.job.name}")
                run.stop()
        return self.results

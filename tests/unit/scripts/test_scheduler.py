# SPDX-License-Identifier: GPL-3.0-or-later
"""How the test runner schedules, counts and cleans up."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from scripts import lint
from scripts.testing import jobs, report, scenarios
from scripts.testing.jobs import Job, Result, Scheduler
from scripts.testing.logs import Counts, pytest_counts

runner = importlib.import_module("scripts.testing.__main__")
PASS = (sys.executable, "-c", "print('2 passed in 0.1s')")
ENDLESS = (sys.executable, "-c", "import signal; print('1 passed in 0.1s', flush=True); signal.pause()")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jobs, "LOGS", tmp_path / "output")
    monkeypatch.setattr(scenarios, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(scenarios, "TIMES", tmp_path / "cache" / "times.json")
    monkeypatch.setattr(scenarios, "ROOT", tmp_path)
    return tmp_path


def job(name: str, command: tuple[str, ...] = PASS, **settings: Any) -> Job:
    return Job(name, command, pytest_counts, **settings)


def run(*planned: Job, memory_mb: int = 10_000) -> tuple[list[Result], list[str]]:
    said: list[str] = []
    return Scheduler(planned, said.append, memory_mb).run(), said


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def overlaps(said: list[str], one: str, other: str) -> bool:
    """Tell whether two jobs ran beside each other."""
    begin = {name: said.index(f"start {name}") for name in (one, other)}
    end = {name: next(i for i, line in enumerate(said) if line.startswith(f"ok    {name}")) for name in (one, other)}
    return begin[one] < end[other] and begin[other] < end[one]


def test_two_jobs_run_beside_each_other_in_order() -> None:
    results, said = run(job("a"), job("b"), job("c"))
    assert [line.split()[-1] for line in said if line.startswith("start")] == ["a", "b", "c"]
    assert overlaps(said, "a", "b")
    assert report.total(results) == Counts(6, 0)


@pytest.mark.parametrize("settings", [{"memory_mb": 9_800}, {"after": "a"}], ids=["memory", "after"])
def test_some_jobs_wait(settings: dict[str, Any]) -> None:
    _, said = run(job("a"), job("b", **settings))
    assert not overlaps(said, "a", "b")


def test_a_job_larger_than_the_memory_still_runs() -> None:
    results, _ = run(job("a", memory_mb=99_000), memory_mb=100)
    assert report.total(results) == Counts(2, 0)


def test_failures_are_explained() -> None:
    script = "print('1 passed in 0.1s'); print('the reason'); raise SystemExit(3)"
    results, said = run(job("bad", (sys.executable, "-c", script)))
    assert results[0].counts == Counts(1, 1)
    assert "the reason" in said[-1]
    assert "output/bad.log" in said[-1]
    assert "the reason" in report.reasons(results)
    assert report.reasons([]) == ""


def test_the_time_limit_ends_a_job_and_its_children() -> None:
    # A shell starts at once: the child is there well before the limit, on a busy machine too.
    hanging = job("slow", ("sh", "-c", "sleep 600 & echo $!; wait"), timeout=3.0)
    results, said = run(hanging)
    assert results[0].counts == Counts(0, 1)
    assert "time limit" in said[-1]
    # It was killed; whoever adopted it may take a moment to notice.
    child, tries, pause = int(hanging.text().strip()), 200, threading.Event()
    while alive(child) and tries:
        pause.wait(0.05)
        tries -= 1
    assert not alive(child)


def test_an_interruption_stops_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = Scheduler([job("endless", ENDLESS)], lambda _: None, 1000)

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scheduler, "poll", interrupt)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        scheduler.run()
    assert scheduler.running[0].process.returncode == -15


def test_scenarios_are_cleaned_before_and_reserved(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, fake_command: Any
) -> None:
    monkeypatch.setattr(scenarios, "PROGRAMS", Path(fake_command("molecule").path).parent)
    docker = fake_command("docker")
    definition = elsewhere / "molecule" / "x" / "molecule.yml"
    definition.parent.mkdir(parents=True)
    definition.write_text("platforms: [{name: 'n8n-platform-${MOLECULE_SCENARIO_NAME}-a'}, {name: n8n-platform-b}]\n")
    assert scenarios.names() == ["x"]
    held = scenarios.lock("x")
    results, said = run(job("x", scenario=True))
    assert results[0].counts == Counts(0, 1)
    assert "another run" in said[-1]
    assert held is not None
    held.close()
    assert run(job("x", scenario=True))[0][0].counts == Counts(2, 0)
    assert docker.calls == [["rm", "--force", "--volumes", "n8n-platform-x-a", "n8n-platform-b"]]
    definition.write_text("---\n{}\n")
    assert scenarios.containers("x") == ["n8n-platform-x"]


def test_the_network_is_made_once(fake_command: Any) -> None:
    docker = fake_command("docker", code=1)
    scenarios.make_network()
    fake_command("docker")
    scenarios.make_network()
    assert [call[:2] for call in docker.calls] == [
        ["network", "inspect"],
        ["network", "create"],
        ["network", "inspect"],
    ]


def test_times_are_remembered_and_order_the_next_run() -> None:
    assert scenarios.read_times() == {}
    scenarios.write_times({"redis": 40})
    scenarios.write_times({"pki": 400})
    times = scenarios.read_times()
    assert times == {"redis": 40, "pki": 400}
    planned = runner.plan([], ["n8n", "pki", "redis"], times)
    assert [step.name for step in planned] == ["artifacts", "lint", "unit", "n8n", "pki", "redis"]
    assert [step.after for step in planned] == ["", "", "", *["artifacts"] * 3]


def test_named_jobs_only() -> None:
    planned = runner.plan(["redis", "lint", "redis"], ["pki", "redis"], {})
    assert [step.name for step in planned] == ["lint", "redis"]
    assert planned[1].after == ""


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "names", lambda: ["redis"])
    assert runner.main(["rediss"]) == 2
    assert "lint, unit, redis" in capsys.readouterr().err


def test_the_last_line_counts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "plan", lambda *_: [job("unit"), job("bad", (sys.executable, "-c", "exit(1)"))])
    assert runner.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 passed, 1 failed"
    assert scenarios.read_times().keys() == {"unit"}


def test_memory_is_read() -> None:
    assert scenarios.available_memory_mb() > 100


def test_linters(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    monkeypatch.setattr(lint, "HOME", elsewhere / "home")
    monkeypatch.setattr(
        lint,
        "TOOLS",
        {
            "good": lint.Tool(("true",)),
            "bad": lint.Tool(("echo", "because"), lambda: [";"]),
            "idle": lint.Tool(("false",), list),
            "gone": lint.Tool(("no-such-program-here",)),
        },
    )
    assert lint.main(["what"]) == 2
    assert lint.main(["good", "idle", "bad"]) == 0
    assert lint.main([]) == 1
    output = capsys.readouterr().out
    assert "--   idle" in output
    assert "ok   good" in output
    assert "make setup" in output
    link = elsewhere / "home/collections/ansible_collections/dealscale/n8n_platform"
    assert link.resolve() == lint.ROOT
    link.unlink()
    link.symlink_to("/nowhere")
    lint.prepare_home()
    assert link.readlink() == lint.ROOT


def test_shell_programs_are_found() -> None:
    assert "scripts/engine.sh" in lint.shell_files()
    assert "plugins" in lint.python_folders()

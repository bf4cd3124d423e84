"""The platform with work done on it, for all tests of this scenario."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from molecule.observability.driver import Stack
from molecule.waiting import until

STARTED = "Workflow was started"
SETS = "/srv/n8n-platform/backups/sets"


@dataclass
class Runs:
    """What was run before the tests ask for it."""

    # Numbers of the good executions, in their order.
    good: list[int] = field(default_factory=list)
    bad: int = 0
    slow: int = 0
    # When the first backup was broken, just before the first execution, Unix time.
    broken_at: float = 0.0
    # What was counted before: the calls that waited for the workflows, and earlier runs of these tests.
    counted: dict[tuple[str, str], float] = field(default_factory=dict)


def break_a_backup(stack: Stack) -> None:
    """Let a backup fail by taking away the place it goes to."""
    stack.run(f"mv {SETS} {SETS}.away && touch {SETS}")
    try:
        stack.run("n8n-platform-backup run", check=False, timeout=300)
    finally:
        stack.run(f"rm -f {SETS} && mv {SETS}.away {SETS}")


@pytest.fixture(scope="session")
def stack() -> Stack:
    """Return the platform; its workflows answer."""
    found = Stack()
    found.prepare()
    return found


@pytest.fixture(scope="session")
def runs(stack: Stack) -> Runs:
    """Run workflows for a minute and a half: good, failing and slow ones; break a backup meanwhile.

    Counters need two scrapes before and after, so the work is spread over several.
    """
    done = Runs(broken_at=time.time())
    break_a_backup(stack)
    # What happens at night otherwise.
    stack.run("systemctl start object-store-keep.service")
    # Two scrapes, so that everything before is in.
    since = time.time()
    until(lambda: stack.value('timestamp(up{job="n8n-webhook"})') > since + 15, 60, "two scrapes")
    done.counted = stack.executions()
    end = time.monotonic() + 90
    while time.monotonic() < end or len(done.good) < 30:
        done.good.append(int(stack.call("obs-good")["execution"]))
        if len(done.good) % 8 == 1:
            done.bad += stack.call("obs-bad").get("message") == STARTED
            done.slow += stack.call("obs-slow").get("message") == STARTED
    ended = "SELECT count(*) FROM execution_entity WHERE status IN ('new', 'running', 'waiting')"
    until(lambda: stack.sql(ended) == [["0"]], 60, "every execution has ended")
    return done


@pytest.fixture
def show(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that prints a measured number also when the test passes."""
    manager: Any = request.config.pluginmanager.getplugin("capturemanager")

    def say(line: str) -> None:
        with manager.global_and_fixture_disabled():
            print(f"\n    {line}")

    return say

# SPDX-License-Identifier: GPL-3.0-or-later
"""Break a platform while an independent client uses it; what the scenarios that do so share.

The client runs on the test host as a unit. It keeps two files in a directory there, ``sent`` and ``acknowledged``:
lines that begin with ids such as ``fx-redis-17``, named after the phase it finds in the file ``phase``.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from molecule.host import Host
from molecule.waiting import until


class Breakable(Host):
    """A test host under the load of a client. Scenarios say what these four are, and what came of the requests."""

    here: Path
    directory: str
    client: str
    prefix: str

    def prepare(self) -> None:
        """Bring the client and what it uses to the host and wait until that answers."""
        raise NotImplementedError

    def start_client(self) -> None:
        """Start the client."""
        raise NotImplementedError

    def reckon(self) -> list[Any]:
        """Compare what the client was promised with what became of it; a row for each phase."""
        raise NotImplementedError

    def settled(self) -> bool:
        """Tell whether nothing is on its way any more."""
        raise NotImplementedError

    def report(self) -> str:
        """Return what helps to understand a failure."""
        raise NotImplementedError

    # --- the client --------------------------------------------------------------------------------------------------

    def stop_client(self) -> None:
        """Stop the client once it has got its answers."""
        self.run(f"systemctl stop {self.client}.service", check=False)

    def phase(self, name: str) -> None:
        """Name the requests from here on."""
        self.run(f"echo {name} > {self.directory}/phase.new && mv {self.directory}/phase.new {self.directory}/phase")

    def lines(self, name: str) -> list[list[str]]:
        """Return the lines of a file of the client, split into words."""
        return [line.split() for line in self.run(f"cat {self.directory}/{name} 2>/dev/null", check=False).splitlines()]

    def acknowledged(self, phase: str) -> int:
        """Return how many requests of a phase were acknowledged."""
        return sum(words[0].startswith(f"{self.prefix}-{phase}-") for words in self.lines("acknowledged"))

    def wait_for(self, phase: str, more: int, seconds: float = 120) -> None:
        """Wait until so many more requests of a phase are acknowledged."""
        wanted = self.acknowledged(phase) + more
        until(lambda: self.acknowledged(phase) >= wanted, seconds, f"{wanted} acknowledged requests in phase {phase}")

    # --- faults ------------------------------------------------------------------------------------------------------

    def converge(self) -> None:
        """Converge with a changed setting, so that every process the scenario is about is restarted."""
        directory = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
        done = subprocess.run(
            ["ansible-playbook", "-i", directory / "inventory", self.here / "reconverge.yml"],
            env={**os.environ, "ANSIBLE_CONFIG": str(directory / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]


Victim = TypeVar("Victim", bound=Breakable)


def table(rows: Iterable[Any]) -> str:
    """Return rows (instances of one dataclass) as a table."""
    listed = list(rows)
    names = [field.name for field in fields(listed[0])] if listed else []
    lines = ["  ".join(f"{name:>12}" for name in names)]
    lines += ["  ".join(f"{getattr(row, name):>12}" for name in names) for row in listed]
    return "\n".join(lines)


def soak(
    platform: Callable[[str], Victim], container: str, faults: Mapping[str, Callable[[Victim], None]], text: str
) -> list[Any]:
    """Break a platform at random for the time the command line says; print and return the reckoning."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--container", default=container)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    victim = platform(options.container)
    victim.prepare()
    victim.start_client()
    end = time.monotonic() + options.minutes * 60
    try:
        while time.monotonic() < end:
            name = chance.choice(list(faults))
            print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
            victim.phase(name)
            victim.wait_for(name, chance.randint(5, 30))
            faults[name](victim)
            victim.wait_for(name, 45, seconds=240)
    finally:
        victim.stop_client()
    try:
        until(victim.settled, 420, "everything acknowledged came to its end", every=5)
    except AssertionError as error:
        print(error, victim.report(), sep="\n")
    rows = victim.reckon()
    print(table(rows))
    return rows

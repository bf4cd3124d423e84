# SPDX-License-Identifier: GPL-3.0-or-later
"""Restore again and again, to random ends, and fail at each step in turn: nothing may be lost, everything must go back.

python molecule/restore/soak.py --seed 1 --rounds 14      after: molecule converge -s restore

14 rounds fail once at each of the 13 steps, in random order, and go to the end once; more begin again in another order.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = "n8n-platform-restore"
# Every step of the playbook up to the proof, and those inside the step `database`.
STEPS = (
    *("prepare", "maintenance", "stop", "safety", "restore", "recovery", "database"),
    *("roles", "check", "credentials", "queue", "start", "canary"),
)


def inside(*words: str) -> str:
    """Run a command on the host and return what it printed."""
    return subprocess.run(["docker", "exec", NAME, *words], check=True, capture_output=True, text=True).stdout.strip()


def count() -> int:
    """Return the number of executions."""
    query = "SELECT count(*) FROM execution_entity"
    return int(inside("runuser", "-u", "postgres", "--", "psql", "-XAtq", "-d", "n8n", "-c", query))


def call() -> None:
    """Have n8n accept an execution."""
    body = '{"numbers": [1], "token": "soak"}'
    url = "http://127.0.0.1:5701/webhook/platform-verify"
    inside("curl", "-sf", "--max-time", "30", "--retry", "30", "--retry-all-errors", "--json", body, url)


def playbook(inventory: str, name: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook."""
    command = ["ansible-playbook", "-i", inventory, f"playbooks/{name}", "-e", "@molecule/restore/vars.yml"]
    return subprocess.run(
        [*command, "-e", json.dumps(variables)],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def endings(chance: random.Random) -> Iterator[str]:
    """Yield where a restore is to fail, each step and the end (empty) once before any comes again."""
    while True:
        yield from chance.sample(("", *STEPS), len(STEPS) + 1)


def one_round(chance: random.Random, inventory: str, step: str) -> str:
    """Do one restore that fails at a step; return what became of it. Raises AssertionError when something is lost."""
    call()
    before = count()
    moment = inside("date", "-u", "+%F %T.%6N+00:00")
    call()
    sets = inside("ls", "/srv/n8n-platform/backups/sets").split()
    wish = chance.choice([{"restore_time": moment}, {"restore_set": "latest"}, {"restore_set": chance.choice(sets)}])
    done = playbook(inventory, "restore.yml", confirm=NAME, _restore_fail_at=step, **wish)
    outcome = f"{wish} {'failing at ' + step if step else 'to its end'}: exit code {done.returncode}"
    if step:
        assert done.returncode != 0, outcome + done.stdout[-3000:]
        assert count() > before, outcome
        assert inside("n8n-platform-backup", "restore", "purge") == '{"copies": []}', outcome
    else:
        assert done.returncode == 0, outcome + done.stdout[-3000:]
        back = playbook(inventory, "restore_undo.yml", confirm=NAME)
        assert back.returncode == 0, outcome + back.stdout[-3000:]
        assert count() > before, outcome
        for name in json.loads(inside("n8n-platform-backup", "restore", "purge"))["copies"]:
            inside("n8n-platform-backup", "restore", "purge", name)
    call()
    return outcome


def main() -> int:
    """Do some rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=14)
    found = sorted(Path.home().glob(".ansible/tmp/molecule.*.restore/inventory/ansible_inventory.yml"))
    parser.add_argument("--inventory", default=str(found[-1]) if found else "", help="of Molecule (%(default)s)")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    for number, step in zip(range(1, arguments.rounds + 1), endings(chance), strict=False):
        began = time.monotonic()
        try:
            outcome = one_round(chance, arguments.inventory, step)
        except AssertionError as error:
            print(f"round {number} of seed {arguments.seed} FAILED: {error}")
            return 1
        print(f"{number:3}  {time.monotonic() - began:5.0f} s  {outcome}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

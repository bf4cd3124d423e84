# SPDX-License-Identifier: GPL-3.0-or-later
"""Break a platform while an independent client sends webhooks, then compare promises with outcomes."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from molecule.waiting import until

HERE = Path(__file__).parent
DIRECTORY = "/var/tmp/faults"  # noqa: S108  (on the test host, must survive its restart)
RATE = 2
DOMAIN = "n8n.test"
UNDER_WAY = ("new", "running", "waiting")


@dataclass
class Row:
    """What became of the requests of one phase."""

    phase: str
    sent: int = 0
    acknowledged: int = 0
    succeeded: int = 0
    listed: int = 0
    lost: int = 0
    stuck: int = 0
    duplicates: int = 0


class Platform:
    """A test host with the whole platform."""

    def __init__(self, container: str) -> None:
        self.container = container

    def run(self, command: str, check: bool = True, timeout: float = 120) -> str:
        """Run a shell command on the host and return what it printed."""
        done = subprocess.run(
            ["docker", "exec", self.container, "sh", "-c", command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout

    def sql(self, query: str) -> list[list[str]]:
        """Return the rows of a query on n8n's database."""
        text = self.run(f"su postgres -c \"psql -d n8n -XAt -F '|'\" <<'END'\n{query}\nEND\n")
        return [line.split("|") for line in text.splitlines()]

    # --- load --------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Bring the client and the workflow to the host and wait until the workflow answers."""
        self.run(f"rm -rf {DIRECTORY}; mkdir -p {DIRECTORY}")
        self.phase("none")
        for name, target in (("client.py", DIRECTORY), ("workflow.json", "/var/lib/n8n/cli")):
            subprocess.run(["docker", "cp", "-q", HERE / name, f"{self.container}:{target}/{name}"], check=True)
        self.run("chown n8n /var/lib/n8n/cli/workflow.json; n8n import:workflow --input=/var/lib/n8n/cli/workflow.json")
        self.run("n8n publish:workflow --id=faultsflow00001")
        until(self.answers, 120, "the test workflow answers")

    def answers(self) -> bool:
        """Tell whether Traefik and both webhook processes know the workflow (a GET is refused by name, then)."""
        entrance = f"--cacert /etc/n8n-platform/tls/ca.crt --resolve {DOMAIN}:443:127.0.0.1 https://{DOMAIN}"
        addresses = (entrance, "http://127.0.0.1:5701", "http://127.0.0.1:5702")
        return all("POST request" in self.run(f"curl -s -m 5 {one}/webhook/faults", check=False) for one in addresses)

    def start_client(self) -> None:
        """Start the client."""
        self.run(
            "systemd-run --quiet --collect --unit=faults-client "
            f"python3 {DIRECTORY}/client.py {DIRECTORY} {RATE} {DOMAIN}"
        )

    def stop_client(self) -> None:
        """Stop the client once it has got its answers."""
        self.run("systemctl stop faults-client.service", check=False)

    def phase(self, name: str) -> None:
        """Name the requests from here on."""
        self.run(f"echo {name} > {DIRECTORY}/phase.new && mv {DIRECTORY}/phase.new {DIRECTORY}/phase")

    def lines(self, name: str) -> list[str]:
        """Return the ids in a file of the client."""
        return self.run(f"cat {DIRECTORY}/{name} 2>/dev/null", check=False).split()

    def acknowledge(self, phase: str, count: int, seconds: float = 120) -> None:
        """Wait until so many requests of a phase have been acknowledged."""
        until(
            lambda: sum(uid.startswith(f"fx-{phase}-") for uid in self.lines("acknowledged")) >= count,
            seconds,
            f"{count} acknowledged requests in phase {phase}",
        )

    # --- faults ------------------------------------------------------------------------------------------------------

    def kill(self, unit: str) -> None:
        """Kill all processes of a unit; systemd has to start it again by itself."""
        self.run(f"systemctl kill --signal=SIGKILL {unit}")

    def kill_postgres(self) -> None:
        """Kill PostgreSQL's first process only, as the kernel would."""
        self.run("kill -9 $(systemctl show --property MainPID --value postgresql@17-main.service)")

    def kill_redis_with_backlog(self, phase: str) -> None:
        """Kill Redis while jobs wait because no worker runs."""
        workers = "$(systemctl list-units --plain --no-legend 'n8n-worker@*' | cut -d' ' -f1)"
        names = " ".join(self.run(f"echo {workers}").split())
        self.run(f"systemctl stop {names}")
        already = sum(uid.startswith(f"fx-{phase}-") for uid in self.lines("acknowledged"))
        self.acknowledge(phase, already + 15)
        self.kill("redis-queue.service")
        self.run(f"systemctl start {names}")

    def power_cut(self) -> None:
        """Kill the whole host and start it again."""
        subprocess.run(["docker", "kill", "--signal", "KILL", self.container], check=True, capture_output=True)
        subprocess.run(["docker", "start", self.container], check=True, capture_output=True)
        until(self.answers, 240, "the platform is back after a power cut", every=2)

    def converge(self) -> None:
        """Converge with a changed setting, so that every n8n process is restarted."""
        directory = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
        done = subprocess.run(
            ["ansible-playbook", "-i", directory / "inventory", HERE / "reconverge.yml"],
            env={**os.environ, "ANSIBLE_CONFIG": str(directory / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]

    # --- the reckoning -----------------------------------------------------------------------------------------------

    def listed(self) -> dict[str, list[int]]:
        """Return the executions the platform lists as lost, by the id in their payload."""
        found: dict[str, list[int]] = {}
        for entry in json.loads(self.run("n8n-platform executions lost --json --payload")):
            for item in entry["payload"]:
                found.setdefault(item["body"]["uid"], []).append(entry["id"])
        return found

    def reckon(self) -> list[Row]:
        """Compare what the client was promised with what became of it."""
        acknowledged = set(self.lines("acknowledged"))
        # n8n's own tables only, reruns included. The id is in the data as long as a payload or a result is.
        executions = self.sql(
            "SELECT substring(d.data from 'fx-[a-z]+-[0-9]+'), e.status FROM execution_entity e"
            " JOIN execution_data d ON d.\"executionId\" = e.id WHERE d.data ~ 'fx-[a-z]+-[0-9]+'"
        )
        succeeded = Counter(uid for uid, status in executions if status == "success")
        under_way = Counter(uid for uid, status in executions if status in UNDER_WAY)
        listed = self.listed()
        rows: dict[str, Row] = {}
        for uid in self.lines("sent"):
            row = rows.setdefault(uid.split("-")[1], Row(uid.split("-")[1]))
            row.sent += 1
            if uid not in acknowledged:
                continue
            row.acknowledged += 1
            if succeeded[uid]:
                row.succeeded += 1
            elif uid in listed:
                row.listed += 1
            elif under_way[uid]:
                row.stuck += 1
            else:
                row.lost += 1
            row.duplicates += succeeded[uid] + len(listed.get(uid, [])) > 1
        return list(rows.values())

    def settled(self) -> bool:
        """Tell whether everything acknowledged has succeeded or is listed."""
        return not any(row.stuck or row.lost for row in self.reckon())

    def report(self) -> str:
        """Return what helps to understand a failure."""
        return self.run(
            "systemctl --failed --no-legend; n8n-platform guard status; n8n-platform executions lost;"
            "journalctl --no-pager -n 60 -u n8n-guard -u n8n-watchdog",
            check=False,
        )


def table(rows: Iterable[Row]) -> str:
    """Return the reckoning as a table."""
    names = list(Row.__dataclass_fields__)
    lines = [" | ".join(f"{'fault' if name == 'phase' else name:>12}" for name in names)]
    lines += [" | ".join(f"{getattr(row, name):>12}" for name in names) for row in rows]
    return "\n".join(lines)


FAULTS: dict[str, Callable[[Platform], None]] = {
    "worker": lambda platform: platform.kill("n8n-worker@1.service"),
    "main": lambda platform: platform.kill("n8n-main.service"),
    "webhook": lambda platform: platform.kill("n8n-webhook@1.service"),
    "postgres": lambda platform: platform.kill_postgres(),
    "redis": lambda platform: platform.kill_redis_with_backlog("redis"),
}

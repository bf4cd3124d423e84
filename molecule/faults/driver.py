# SPDX-License-Identifier: GPL-3.0-or-later
"""Break a platform while an independent client sends webhooks, then compare promises with outcomes."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from molecule.breaking import Breakable
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


class Platform(Breakable):
    """A test host with the whole platform."""

    here = HERE
    directory = DIRECTORY
    client = "faults-client"
    prefix = "fx"

    # --- load --------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Bring the client and the workflow to the host and wait until the workflow answers."""
        self.run(f"rm -rf {DIRECTORY}; mkdir -p {DIRECTORY}")
        self.phase("none")
        for name, target in (("client.py", DIRECTORY), ("workflow.json", "/var/lib/n8n/cli")):
            self.copy(HERE / name, f"{target}/{name}")
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
            f"systemd-run --quiet --collect --unit={self.client} "
            f"python3 {DIRECTORY}/client.py {DIRECTORY} {RATE} {DOMAIN}"
        )

    # --- faults ------------------------------------------------------------------------------------------------------

    def kill_redis_with_backlog(self, phase: str) -> None:
        """Kill Redis while jobs wait because no worker runs."""
        workers = "$(systemctl list-units --plain --no-legend 'n8n-worker@*' | cut -d' ' -f1)"
        names = " ".join(self.run(f"echo {workers}").split())
        self.run(f"systemctl stop {names}")
        self.wait_for(phase, 15)
        self.kill("redis-queue.service")
        self.run(f"systemctl start {names}")

    def power_cut(self) -> None:
        """Kill the whole host and start it again, and then the client."""
        subprocess.run(["docker", "kill", "--signal", "KILL", self.container], check=True, capture_output=True)
        subprocess.run(["docker", "start", self.container], check=True, capture_output=True)
        until(self.answers, 240, "the platform is back after a power cut", every=2)
        self.start_client()

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
        acknowledged = {words[0] for words in self.lines("acknowledged")}
        # n8n's own tables only, reruns included. The id is in the data as long as a payload or a result is.
        executions = self.sql(
            "SELECT substring(d.data from 'fx-[a-z]+-[0-9]+'), e.status FROM execution_entity e"
            " JOIN execution_data d ON d.\"executionId\" = e.id WHERE d.data ~ 'fx-[a-z]+-[0-9]+'"
        )
        succeeded = Counter(uid for uid, status in executions if status == "success")
        under_way = Counter(uid for uid, status in executions if status in UNDER_WAY)
        listed = self.listed()
        rows: dict[str, Row] = {}
        for (uid,) in self.lines("sent"):
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


FAULTS: dict[str, Callable[[Platform], None]] = {
    "worker": lambda platform: platform.kill("n8n-worker@1.service"),
    "main": lambda platform: platform.kill("n8n-main.service"),
    "webhook": lambda platform: platform.kill("n8n-webhook@1.service"),
    "postgres": Platform.kill_postgres,
    "redis": lambda platform: platform.kill_redis_with_backlog("redis"),
}

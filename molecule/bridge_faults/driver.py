# SPDX-License-Identifier: GPL-3.0-or-later
"""Break the platform while a careful client publishes, then compare what was acknowledged with its effects."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molecule.breaking import Breakable
from molecule.bridge.api import DOMAIN, SECRETS
from molecule.waiting import until

HERE = Path(__file__).parent
DIRECTORY = "/var/tmp/bridge-faults"  # noqa: S108  (on the test host)
PROGRAMS = ("client.py", "sink.py", "forge.py")
EXAMPLES = HERE.parents[1] / "files" / "workflows"
RATE = 3
SINK = "http://127.0.86.2:8700/effect"
Json = dict[str, Any]


def once() -> Json:
    """Return the workflow that every user is given, with an effect that the sink notes as its work."""
    workflow: Json = json.loads((EXAMPLES / "bridge-once.json").read_text(encoding="utf-8"))
    (work,) = (node for node in workflow["nodes"] if node["name"] == "Your work")
    hook = "$('Webhook').first().json"
    effect = f"{{uid: {hook}.body.uid, event: {hook}.headers['webhook-id'], execution: $execution.id}}"
    work |= {"type": "n8n-nodes-base.httpRequest", "typeVersion": 4.2}
    work["parameters"] = {
        **{"method": "POST", "url": SINK, "sendBody": True, "specifyBody": "json"},
        **{"jsonBody": f"={{{{ JSON.stringify({effect}) }}}}", "options": {"timeout": 10000}},
    }
    return workflow


@dataclass
class Row:
    """What became of the events of one phase.

    ``retried``: accepted only at a later try of the client. ``cut``: the effect came again because n8n's own execution
    died between the effect and the report of it, the one gap that is left (docs/bridge.md); ``twice``: without that.
    """

    phase: str
    sent: int = 0
    acknowledged: int = 0
    retried: int = 0
    once: int = 0
    lost: int = 0
    cut: int = 0
    twice: int = 0


class Platform(Breakable):
    """A test host with n8n, Pulsar and the bridge."""

    database = "n8n_bridge"
    here = HERE
    directory = DIRECTORY
    client = "bridge-faults-client"
    prefix = "bf"

    # --- load ------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Bring client, sink and workflows to the host and wait until a workflow answers."""
        self.stop_client()
        self.run("systemctl stop bridge-faults-sink.service", check=False)
        self.run(f"rm -rf {DIRECTORY}; mkdir -p {DIRECTORY}; cd {DIRECTORY}; touch sent acknowledged effects")
        for name in PROGRAMS:
            self.copy(HERE / name, f"{DIRECTORY}/{name}")
        self.phase("none")
        self.import_into_n8n("credentials", self.credentials())
        workflows = [once(), *json.loads((HERE / "workflows.json").read_text(encoding="utf-8"))]
        self.import_into_n8n("workflow", workflows)
        for workflow in workflows:
            self.run(f"n8n publish:workflow --id={workflow['id']}")
        self.run(
            f"systemd-run --quiet --collect --unit=bridge-faults-sink python3 {DIRECTORY}/sink.py {DIRECTORY}/effects"
        )
        until(self.answers, 120, "the test workflows answer")

    def credentials(self) -> list[Json]:
        """Return what the workflows claim with, as n8n imports it."""
        found: list[Json] = json.loads((EXAMPLES / "bridge-credential.json").read_text(encoding="utf-8"))
        found[0]["data"]["clientSecret"] = self.run(f"cat {SECRETS}/bridge_client_n8n").strip()
        return found

    def import_into_n8n(self, kind: str, entries: list[Json]) -> None:
        """Import workflows or credentials by n8n's own command."""
        path = f"/var/lib/n8n/cli/bridge-{kind}.json"
        self.run(f"cat > {path} <<'END'\n{json.dumps(entries)}\nEND\nchown n8n {path}")
        self.run(f"n8n import:{kind} --input={path}; rm {path}")

    def answers(self) -> bool:
        """Tell whether both webhook processes know all workflows (a GET is refused by name, then)."""
        names = ("once", "slow", "poison")
        addresses = [f"http://127.0.0.1:{port}/webhook/bridge/{name}" for port in (5701, 5702) for name in names]
        return all("POST request" in self.run(f"curl -s -m 5 {one}", check=False) for one in addresses)

    def start_client(self) -> None:
        """Start the client."""
        self.run(
            f"systemd-run --quiet --collect --unit={self.client} "
            f"python3 {DIRECTORY}/client.py {DIRECTORY} {RATE} {DOMAIN} {SECRETS}/bridge_client_faults"
        )

    # --- faults ----------------------------------------------------------------------------------------------------

    def pause_broker(self) -> None:
        """Have the broker hang for some seconds, as on a cut network: connections stay and nobody answers."""
        self.run("systemctl kill --signal=SIGSTOP n8n-pulsar-broker.service")
        self.wait_for("hang", 15)
        self.run("systemctl kill --signal=SIGCONT n8n-pulsar-broker.service")

    # --- the reckoning ---------------------------------------------------------------------------------------------

    def reckon(self) -> list[Row]:
        """Compare what the client was promised with the effects that were noted."""
        accepted = {words[0]: int(words[2]) for words in self.lines("acknowledged")}
        executions: dict[str, list[str]] = {}
        for uid, _, execution in self.lines("effects"):
            executions.setdefault(uid, []).append(execution)
        ended_well = self.ended_well([one for several in executions.values() for one in several[:-1]])
        rows: dict[str, Row] = {}
        for (uid,) in self.lines("sent"):
            row = rows.setdefault(uid.split("-")[1], Row(uid.split("-")[1]))
            row.sent += 1
            had = executions.get(uid, [])
            earlier = set(had[:-1])
            row.cut += bool(earlier) and not earlier & ended_well and len(set(had)) == len(had)
            row.twice += bool(earlier & ended_well) or len(set(had)) < len(had)
            if uid in accepted:
                row.acknowledged += 1
                row.retried += accepted[uid] > 1
                row.once += len(had) == 1
                row.lost += not had
        return list(rows.values())

    def ended_well(self, executions: list[str]) -> set[str]:
        """Return those of n8n's executions that did not die or fail."""
        if not executions:
            return set()
        wanted = ", ".join(executions)
        query = f"SELECT id FROM execution_entity WHERE id IN ({wanted}) AND status NOT IN ('crashed', 'error')"
        return {words[0] for words in self.sql(query, "n8n")}

    def settled(self) -> bool:
        """Tell whether everything that was accepted has had its effect."""
        return not any(row.lost for row in self.reckon())

    def report(self) -> str:
        """Return what helps to understand a failure."""
        lost = (
            "SELECT d.state, d.attempt, d.last_error, count(*) FROM bridge.delivery d GROUP BY 1, 2, 3 ORDER BY 4 DESC"
        )
        return self.run(
            f"systemctl --failed --no-legend; su postgres -c \"psql -d n8n_bridge -Xc '{lost}'\";"
            "su postgres -c \"psql -d n8n_bridge -Xc 'SELECT count(*) AS outbox FROM bridge.outbox'\";"
            "journalctl --no-pager -n 60 -p warning -u 'n8n-bridge-*' -u 'n8n-pulsar-*'",
            check=False,
        )


Fault = Callable[[Platform], None]
FAULTS: dict[str, Fault] = {
    "api": lambda platform: platform.kill("n8n-bridge-api@1.service", "n8n-bridge-api@2.service"),
    "consumer": lambda platform: platform.kill("n8n-bridge-consumer@1.service", "n8n-bridge-consumer@2.service"),
    "broker": lambda platform: platform.kill("n8n-pulsar-broker.service"),
    "hang": Platform.pause_broker,
    "bookie": lambda platform: platform.kill("n8n-pulsar-bookie.service"),
    "zookeeper": lambda platform: platform.kill("n8n-pulsar-zookeeper.service"),
    "postgres": Platform.kill_postgres,
    "webhook": lambda platform: platform.kill("n8n-webhook@1.service", "n8n-webhook@2.service"),
}

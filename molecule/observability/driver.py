# SPDX-License-Identifier: GPL-3.0-or-later
"""A test host with the whole platform and its monitoring: run workflows, ask for metrics, logs, traces and alerts."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from molecule.host import Host
from molecule.waiting import until

HERE = Path(__file__).parent
DOMAIN = "n8n.test"
RECEIVED = "/srv/received"
PORTS: dict[str, int] = yaml.safe_load(
    (HERE.parents[1] / "roles/_platform/defaults/main.yml").read_text(encoding="utf-8")
)["platform_ports"]
PROMETHEUS = f"http://127.0.0.1:{PORTS['prometheus']}/api/v1"
ALERTMANAGER = f"http://127.0.0.1:{PORTS['alertmanager']}/api/v2"
LOKI = f"http://127.0.0.1:{PORTS['loki']}/loki/api/v1"
JAEGER = f"http://127.0.0.1:{PORTS['jaeger_query']}/api"
# journald takes an interval of 0 for "as usual", so lines are not thinned out by a limit that nothing reaches.
UNLIMITED = "-p LogRateLimitIntervalSec=1s -p LogRateLimitBurst=1000000000"
WORKFLOWS = ("obsGood000000001", "obsBad0000000001", "obsSlow000000001")
PLANTED = "Pl4nted" + "Zq8vK3xW7mT1"
__all__ = ["PLANTED", "Stack", "until"]


@dataclass(frozen=True)
class Answer:
    """What an address answered."""

    status: int
    body: str

    @property
    def data(self) -> Any:
        """The body as JSON; an answer that is none fails with its text."""
        assert self.status == 200, f"{self.status}: {self.body[:500]}"
        return json.loads(self.body)


class Stack(Host):
    """The platform with its monitoring."""

    def __init__(self, container: str = "") -> None:
        super().__init__(container or os.environ.get("OBSERVABILITY_CONTAINER", "n8n-platform-observability"))

    # --- asking ------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Bring what asks, and the workflows, and wait until those answer."""
        for name, target in (("ask.py", "/srv/ask.py"), ("workflows.json", "/srv/n8n/exports/obs.json")):
            self.copy(HERE / "files" / name, target)
        self.run("chmod 644 /srv/n8n/exports/obs.json; n8n import:workflow --input=/srv/n8n/exports/obs.json")
        for workflow in WORKFLOWS:
            self.run(f"n8n publish:workflow --id={workflow}")
        until(lambda: "execution" in self.call("obs-good"), 120, "the workflows answer", every=2)

    def ask(self, *questions: tuple[str, dict[str, Any]]) -> list[Answer]:
        """Ask addresses on the host."""
        done = subprocess.run(
            ["docker", "exec", "-i", self.container, "python3", "/srv/ask.py"],
            input=json.dumps(questions),
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        return [Answer(status, body) for status, body in json.loads(done.stdout)]

    def metric(self, query: str) -> list[dict[str, Any]]:
        """Return the series of an instant query, {labels..., "value": float}."""
        found = self.ask((f"{PROMETHEUS}/query", {"query": query}))[0].data["data"]["result"]
        return [{**one["metric"], "value": float(one["value"][1])} for one in found]

    def value(self, query: str) -> float:
        """Return the value of a query with one series, 0 if there is none."""
        found = self.metric(query)
        return float(found[0]["value"]) if found else 0.0

    def executions(self) -> dict[tuple[str, str], float]:
        """Return how many executions ended, by workflow and status."""
        query = "sum by (workflow_id, status) (n8n_workflow_execution_duration_seconds_count)"
        return {(series.get("workflow_id", ""), series["status"]): series["value"] for series in self.metric(query)}

    def lines(self, query: str, limit: int = 5000, since: float = 3600) -> list[str]:
        """Return the lines of a LogQL query, newest first."""
        return [line for _, line in self.entries(query, limit, since)]

    def entries(self, query: str, limit: int = 5000, since: float = 3600) -> list[tuple[dict[str, str], str]]:
        """Return labels and line of each match of a LogQL query."""
        parameters = {"query": query, "limit": limit, "start": int((time.time() - since) * 1e9)}
        found = self.ask((f"{LOKI}/query_range", parameters))[0].data["data"]["result"]
        return [(stream["stream"], value[1]) for stream in found for value in stream["values"]]

    def every_line(self, query: str, since: float = 3600) -> list[str]:
        """Return all lines of a LogQL query, however many, oldest first; some may be there twice."""
        start, found = int((time.time() - since) * 1e9), list[str]()
        while True:
            parameters = {"query": query, "limit": 5000, "start": start, "direction": "forward"}
            streams = self.ask((f"{LOKI}/query_range", parameters))[0].data["data"]["result"]
            page = sorted((int(value[0]), value[1]) for stream in streams for value in stream["values"])
            found += [line for _, line in page]
            if len(page) < 5000:
                return found
            start = page[-1][0]

    def count(self, query: str, since: int = 3600) -> int:
        """Return how many lines a LogQL selector with filters matches."""
        question = (f"{LOKI}/query", {"query": f"sum(count_over_time({query} [{since}s]))"})
        found = self.ask(question)[0].data["data"]["result"]
        return int(float(found[0]["value"][1])) if found else 0

    def traces(self, service: str, **tags: str) -> list[dict[str, Any]]:
        """Return the traces of a service with these attributes."""
        parameters = {"service": service, "tags": json.dumps(tags), "limit": 20, "lookback": "2h"}
        return list(self.ask((f"{JAEGER}/traces", parameters))[0].data["data"])

    def received(self, name: str) -> list[dict[str, Any]]:
        """Return what the receiver noted under a name."""
        text = self.run(f"cat {RECEIVED}/{name} 2>/dev/null", check=False)
        return [json.loads(line) for line in text.splitlines()]

    def alerts(self) -> dict[str, dict[str, float]]:
        """Return the alerts that reached the receiver: name to the times it was first told of firing and resolving."""
        found: dict[str, dict[str, float]] = {}
        for message in self.received("alerts"):
            for alert in json.loads(message["body"])["alerts"]:
                found.setdefault(alert["labels"]["alertname"], {}).setdefault(alert["status"], message["at"])
        return found

    # --- doing -------------------------------------------------------------------------------------------------------

    def call(self, path: str, **more: Any) -> dict[str, Any]:
        """Send a webhook through Traefik and return the answer; {} if there is none in JSON."""
        body = json.dumps({"planted": PLANTED, **more})
        text = self.run(
            f"curl -s -m 30 --cacert /etc/n8n-platform/tls/ca.crt --resolve {DOMAIN}:443:127.0.0.1 --json '{body}'"
            f" 'https://{DOMAIN}/webhook/{path}?key={PLANTED}'",
            check=False,
        )
        try:
            return dict(json.loads(text))
        except ValueError:
            return {}

    def write_lines(self, unit: str, count: int, every: float = 0.0, prefix: str = "line") -> None:
        """Have a unit of the platform log numbered lines, which journald does not thin out; returns at once."""
        code = (
            "import sys,time\n"
            f"for i in range({count}):\n"
            f"    print('{prefix} %08d of a unit that writes what a person reads' % i, flush={every > 0})\n"
            f"    time.sleep({every}) if {every} else None\n"
        )
        self.run(f'systemd-run --quiet --collect {UNLIMITED} --unit={unit} python3 -c "{code}"')

    def memory_peaks(self, *units: str) -> dict[str, tuple[float, int]]:
        """Return the share of its limit each unit's process ever held in memory, and how often it was restarted."""
        found = {}
        for unit in units:
            shown = self.run(f"systemctl show -p MainPID -p MemoryMax -p NRestarts {unit}")
            values = dict(line.split("=", 1) for line in shown.splitlines())
            peak = int(self.run(f"awk '/^VmHWM/ {{print $2}}' /proc/{values['MainPID']}/status")) * 1024
            found[unit] = (peak / float(values["MemoryMax"]), int(values["NRestarts"]))
        return found

# SPDX-License-Identifier: GPL-3.0-or-later
"""Restart n8n processes that run but do not work: their readiness stays red, or jobs wait and no worker takes them."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from n8n_platform import files
from n8n_platform.queue import Queue, QueueError
from n8n_platform.settings import Settings

STATE = "watchdog/watchdog.json"
METRICS = "watchdog/n8n_watchdog.prom"
HTTP_OK = 200


def ready(url: str) -> bool:
    """Tell whether a process answers 200 at its readiness address. It is on this host: no certificate is checked."""
    context = ssl._create_unverified_context() if url.startswith("https:") else None  # noqa: S323
    try:
        with urllib.request.urlopen(url, timeout=5, context=context) as answer:  # noqa: S310
            return bool(answer.status == HTTP_OK)
    except (OSError, urllib.error.URLError):
        return False


def accepts(host: str, port: int) -> bool:
    """Tell whether a port accepts connections; a directory stands for PostgreSQL's socket in it."""
    try:
        if host.startswith("/"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(3)
                connection.connect(f"{host}/.s.PGSQL.{port}")
        else:
            socket.create_connection((host, port), timeout=3).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Unit:
    """How systemd sees a unit: its state and for how long, in seconds."""

    state: str
    age: float


class Systemd:
    """The commands the watchdog gives."""

    def run(self, *words: str) -> str:
        """Run systemctl."""
        return subprocess.run(["/usr/bin/systemctl", *words], check=False, capture_output=True, text=True).stdout

    def show(self, unit: str) -> Unit:
        """Return the state of a unit."""
        text = self.run("show", "--property=ActiveState,StateChangeTimestampMonotonic", unit)
        values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        changed = int(values.get("StateChangeTimestampMonotonic") or 0) / 1e6
        return Unit(values.get("ActiveState", "unknown"), max(time.clock_gettime(time.CLOCK_MONOTONIC) - changed, 0))

    def restart(self, unit: str) -> None:
        """Restart a unit without waiting for it; it may finish what it is doing."""
        self.run("restart", "--no-block", unit)

    def kill(self, unit: str) -> None:
        """Kill a unit that does not stop; systemd starts it again."""
        self.run("kill", "--signal=SIGKILL", unit)


@dataclass
class Watchdog:
    """The watchdog of one host. Its memory from pass to pass is the state file."""

    settings: Settings
    queue: Callable[[], Queue]
    systemd: Systemd = field(default_factory=Systemd)
    ready: Callable[[str], bool] = ready
    accepts: Callable[[str, int], bool] = accepts
    clock: Callable[[], float] = time.time

    def run(self) -> list[str]:
        """Do one pass; return a sentence for each thing done."""
        path = self.settings.state_dir / STATE
        memory = files.read_json(path)
        red: dict[str, float] = memory.get("red", {})
        green: dict[str, float] = memory.get("green", {})
        restarted: dict[str, float] = memory.get("restarted", {})
        counts: dict[str, float] = memory.get("restarts", {})
        now, done = self.clock(), []
        database, queue = self.settings.database, self.settings.queue
        # A process cannot be ready without them, and restarting it would not help.
        backing = self.accepts(database.host, database.port) and self.accepts(queue.host, queue.port)
        still_red: dict[str, float] = {}
        touched: set[str] = set()
        for unit, url in self.settings.watchdog.units.items():
            sentence = self.check(unit, url, backing, red, green, restarted, still_red, touched)
            if sentence:
                done.append(sentence)
                counts[unit] = counts.get(unit, 0) + 1
        stalled = float(memory.get("stalled", 0))
        if backing:
            stalled, stall_done = self.check_queue(stalled, restarted, counts)
            done += stall_done
        state = {
            "at": now,
            "red": still_red,
            "green": green,
            "restarted": restarted,
            "restarts": counts,
            "stalled": stalled,
        }
        files.write_json(path, state)
        self.write_metrics(still_red, counts, now)
        return done

    def check(
        self,
        unit: str,
        url: str,
        backing: bool,
        red: dict[str, float],
        green: dict[str, float],
        restarted: dict[str, float],
        still_red: dict[str, float],
        touched: set[str],
    ) -> str:
        """Look at one unit; restart it when that is due, and say so."""
        limits, now = self.settings.watchdog, self.clock()
        if self.ready(url):
            green[unit] = now
            return ""
        state = self.systemd.show(unit)
        if state.state == "deactivating" and unit in restarted and state.age > limits.kill_seconds:
            self.systemd.kill(unit)
            return f"{unit} was told to restart and has not stopped for {state.age:.0f} s: killed."
        if state.state != "active":
            return ""
        # Time counts only while the unit is up and what it needs is there.
        since = red.get(unit, now) if backing else now
        since = max(since, now - state.age)
        still_red[unit] = since
        kind = unit.split("@", 1)[0]
        # Not ready since its start means still starting: after a crash all start at once, which takes longer.
        patience = limits.red_seconds if green.get(unit, 0) > now - state.age else limits.start_seconds
        due = now - since >= patience and now - restarted.get(unit, 0) >= limits.cooldown_seconds
        if not due or kind in touched:
            return ""
        # One of a kind at a time: the others go on serving.
        touched.add(kind)
        restarted[unit] = now
        self.systemd.restart(unit)
        return f"{unit} runs but was not ready for {now - since:.0f} s ({url}): restarted."

    def check_queue(
        self, since: float, restarted: dict[str, float], counts: dict[str, float]
    ) -> tuple[float, list[str]]:
        """Kill this host's workers when jobs wait and nobody works; return since when that is so (0: it is not)."""
        limits, now = self.settings.watchdog, self.clock()
        workers = [unit for unit in limits.units if unit.startswith("n8n-worker@")]
        if not workers:
            return 0, []
        try:
            jobs = self.queue().counts()
        except QueueError:
            return 0, []
        if not jobs.waiting or jobs.active:
            return 0, []
        since = since or now
        if now - since < limits.stall_seconds:
            return since, []
        done = []
        for unit in workers:
            state = self.systemd.show(unit)
            old_enough = state.state == "active" and state.age >= limits.stall_seconds
            if old_enough and now - restarted.get(unit, 0) >= limits.cooldown_seconds:
                # It works on nothing, so there is nothing to wait for.
                self.systemd.kill(unit)
                restarted[unit] = now
                counts[unit] = counts.get(unit, 0) + 1
                done.append(
                    f"{unit}: {jobs.waiting} jobs waited for {now - since:.0f} s and none was worked on: killed."
                )
        return (0 if done else since), done

    def write_metrics(self, red: dict[str, float], counts: dict[str, float], now: float) -> None:
        """Write the metrics."""
        units: list[Any] = [({"unit": unit}, counts.get(unit, 0)) for unit in self.settings.watchdog.units]
        ages: list[Any] = [({"unit": unit}, now - red.get(unit, now)) for unit in self.settings.watchdog.units]
        metrics = [
            files.Metric("n8n_watchdog_restarts_total", "Restarts by the watchdog.", units, "counter"),
            files.Metric("n8n_watchdog_not_ready_seconds", "For how long a running unit has not been ready.", ages),
            files.Metric("n8n_watchdog_last_pass_timestamp_seconds", "When the watchdog last looked.", [({}, now)]),
        ]
        files.replace(self.settings.state_dir / METRICS, files.exposition(metrics))

#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the units of Pulsar need beside Pulsar itself.

pulsar-tool SETTINGS ready zookeeper|bookie|broker     wait until this host's one works; in a unit: ExecStartPost=
pulsar-tool SETTINGS vacate                            give up the place of a bookie that was killed; ExecStartPre=
pulsar-tool SETTINGS initialised                       0 if the cluster's metadata is complete, 1 if not, 2 unknown
pulsar-tool SETTINGS watch                             restart a bookie that has lost its place in ZooKeeper
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pulsar_zookeeper import Node, ZooKeeper, ZooKeeperError

UNIT = "n8n-pulsar-bookie.service"
# Looks at the registration, and seconds between two of them: a bookie that flaps does so a hundred times a second.
LOOKS, PAUSE_S = 5, 0.3
# A bookie whose unit has just become active, which it does once it is registered, is left alone for so many seconds.
GRACE_S = 20


@dataclass(frozen=True)
class Settings:
    """What the role wrote down."""

    zookeeper: list[str]  # all servers, this host's first
    cluster: str
    bookie_id: str
    bookie_address: str
    broker_status: str  # address that answers 200 when the broker serves
    tls_dir: str  # empty: no TLS
    state_file: str
    metrics_file: str

    def context(self) -> ssl.SSLContext | None:
        """Return how to speak to ZooKeeper; the certificate is the unit's credential, or root reads the file."""
        if not self.tls_dir:
            return None
        own = os.environ.get("CREDENTIALS_DIRECTORY", self.tls_dir)
        context = ssl.create_default_context(cafile=f"{self.tls_dir}/ca.crt")
        context.load_cert_chain(f"{own}/host.crt", f"{own}/host.key")
        return context

    def ask(self, question: Callable[[ZooKeeper], Any], servers: int = 0) -> Any:
        """Ask the first server that answers; raises ZooKeeperError when none (of the first ``servers``) does."""
        failure = ZooKeeperError("no server is known")
        for address in self.zookeeper[: servers or None]:
            try:
                with ZooKeeper(address, self.context()) as session:
                    return question(session)
            except (ZooKeeperError, OSError) as error:
                failure = ZooKeeperError(str(error))
        raise failure

    def places(self) -> list[str]:
        """Return where a bookie registers: one that writes, one that only reads."""
        return [f"/ledgers/available/{self.bookie_id}", f"/ledgers/available/readonly/{self.bookie_id}"]


def registration(settings: Settings) -> Node | None:
    """Return the bookie's place in ZooKeeper, or None. Raises ZooKeeperError."""

    def look(session: ZooKeeper) -> Node | None:
        found = [node for node in map(session.node, settings.places()) if node is not None]
        return found[0] if found else None

    node: Node | None = settings.ask(look)
    return node


def vacate(settings: Settings) -> None:
    """Remove the registration that a killed bookie of this host has left.

    It would vanish with the session, after half a minute. A bookie that starts before that finds its place taken, ends
    its work, and its process stays. Systemd has made sure that the old process is gone; a registration from another
    host, under the same name by mistake, stays.
    """
    own = settings.bookie_address.rsplit(":", 1)[0].encode()

    def leave(session: ZooKeeper) -> None:
        for place in settings.places():
            if own in session.data(place):
                print(f"<5>Removing what a killed bookie has left in ZooKeeper: {place}")
                session.delete(place)

    settings.ask(leave)


def initialised(settings: Settings) -> bool:
    """Tell whether all that Pulsar's initialisation makes is there; it was interrupted when only a part is."""
    paths = [
        "/ledgers/INSTANCEID",
        f"/admin/clusters/{settings.cluster}",
        "/admin/policies/public/default",
        "/admin/policies/pulsar/system",
    ]
    return bool(settings.ask(lambda session: all(session.node(path) for path in paths)))


def works(settings: Settings, part: str) -> bool:
    """Tell whether a part of Pulsar on this host works."""
    try:
        if part == "zookeeper":
            settings.ask(lambda session: session.node("/"), servers=1)
        elif part == "bookie":
            host, port = settings.bookie_address.rsplit(":", 1)
            socket.create_connection((host, int(port)), timeout=3).close()
            return registration(settings) is not None
        else:
            context = None
            if settings.tls_dir:
                context = ssl.create_default_context(cafile=f"{settings.tls_dir}/ca.crt")
            urllib.request.urlopen(settings.broker_status, timeout=5, context=context).close()  # noqa: S310
    except (ZooKeeperError, OSError):
        return False
    return True


def wait(settings: Settings, part: str, seconds: float = 120) -> int:
    """Wait until a part works. Not for ever: a server of an ensemble cannot while the others are down."""
    until = time.monotonic() + (30 if part == "zookeeper" else seconds)
    while not works(settings, part):
        if time.monotonic() > until:
            print(f"<4>{part} runs and does not work yet")
            return 0
        time.sleep(0.3)
    return 0


def running_since() -> float | None:
    """Return for how many seconds the bookie's unit has been active, or None if it is not."""
    command = ["systemctl", "show", "--property=ActiveState,ActiveEnterTimestampMonotonic", UNIT]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    shown = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if shown.get("ActiveState") != "active":
        return None
    return time.clock_gettime(time.CLOCK_MONOTONIC) - int(shown["ActiveEnterTimestampMonotonic"]) / 1e6


def looks(settings: Settings) -> list[Node | None]:
    """Look at the bookie's place a few times."""
    found = []
    for number in range(LOOKS):
        if number:
            time.sleep(PAUSE_S)
        found.append(registration(settings))
    return found


def decide(found: list[Node | None], missing_before: bool) -> tuple[str, str]:
    """Return what the looks mean (well, missing, lost) and why, in words.

    A place that changed hands between two looks is lost at once; one that was never there must be missing twice, so
    that a bookie which is registering again by itself is left alone.
    """
    if len({node.created for node in found if node is not None}) > 1:
        return "lost", "its registration in ZooKeeper comes and goes"
    if any(node is not None for node in found):
        return "well", ""
    return ("lost", "it is not registered in ZooKeeper") if missing_before else ("missing", "")


def write(path: Path, text: str) -> None:
    """Replace a file in one step, readable by everyone."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o644)
    new.replace(path)


def remember(settings: Settings, state: Mapping[str, Any]) -> None:
    """Keep the state of the watch and its metrics."""
    write(Path(settings.state_file), json.dumps(state) + "\n")
    lines = []
    for name, kind, about, value in (
        ("registered", "gauge", "1 if the bookie holds its place in ZooKeeper.", int(state["outcome"] == "well")),
        ("watch_restarts_total", "counter", "Restarts of a bookie that had lost its place.", state["restarts"]),
        ("watch_timestamp_seconds", "gauge", "When the watch last looked.", int(time.time())),
    ):
        lines += [f"# HELP n8n_pulsar_bookie_{name} {about}", f"# TYPE n8n_pulsar_bookie_{name} {kind}"]
        lines += [f"n8n_pulsar_bookie_{name} {value}"]
    write(Path(settings.metrics_file), "\n".join(lines) + "\n")


def watch(settings: Settings) -> int:
    """Look once, and restart the bookie if it has lost its place."""
    try:
        state = json.loads(Path(settings.state_file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        state = {"outcome": "unknown", "restarts": 0}
    before, age = state["outcome"], running_since()
    try:
        # ZooKeeper must answer: without it no bookie can register, and a restart would only take one more away.
        found = looks(settings)
    except ZooKeeperError as error:
        print(f"<4>ZooKeeper does not answer, so nothing is known of the bookie: {error}")
        remember(settings, {**state, "outcome": "unknown"})
        return 0
    outcome, why = decide(found, before == "missing")
    if age is None or (outcome != "well" and age < GRACE_S):
        outcome, why = ("well" if outcome == "well" else "unknown"), ""
    if outcome == "lost":
        print(f"<3>Restarting the bookie: {why}")
        state["restarts"] += 1
        subprocess.run(["systemctl", "restart", "--no-block", UNIT], check=True)
    remember(settings, {**state, "outcome": outcome})
    return 0


def main(arguments: list[str]) -> int:
    """Entry point of the program."""
    settings = Settings(**json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    if arguments[1] == "ready":
        return wait(settings, arguments[2])
    if arguments[1] == "watch":
        return watch(settings)
    try:
        if arguments[1] == "vacate":
            vacate(settings)
            return 0
        return 0 if initialised(settings) else 1
    except ZooKeeperError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of the bridge: its processes, its tasks, its events and routes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from n8n_platform import __version__
from n8n_platform.bridge import settings

UNUSABLE = 69
Action = Callable[[argparse.Namespace], int]


# Each command imports what it needs itself: a process does not carry the parts of another.
def run_api(arguments: argparse.Namespace) -> int:
    """Take events over HTTP until told to stop."""
    from n8n_platform.bridge import commands  # noqa: PLC0415

    return commands.api(settings.load(arguments.settings), arguments.instance)


def run_consumer(arguments: argparse.Namespace) -> int:
    """Deliver events to workflows until told to stop."""
    from n8n_platform.bridge.consumer import process  # noqa: PLC0415

    return process.run(settings.load(arguments.settings), arguments.instance)


def run_migrate(arguments: argparse.Namespace) -> int:
    """Bring the tables up to date."""
    from n8n_platform.bridge import commands  # noqa: PLC0415

    return commands.migrate(settings.load(arguments.settings))


def run_maintain(arguments: argparse.Namespace) -> int:
    """Make the partitions of the next days and drop old ones."""
    from n8n_platform.bridge import commands  # noqa: PLC0415

    return commands.maintain(settings.load(arguments.settings))


def check(arguments: argparse.Namespace) -> int:
    """Accept or refuse the settings."""
    settings.load(arguments.settings)
    return 0


def check_accounts(arguments: argparse.Namespace) -> int:
    """Accept or refuse a file of accounts."""
    from n8n_platform.bridge import commands  # noqa: PLC0415

    commands.check_accounts(arguments.file)
    return 0


PROCESSES: dict[str, Action] = {"api": run_api, "consumer": run_consumer}
TASKS: dict[str, Action] = {"migrate": run_migrate, "maintain": run_maintain, "check": check}


def add_bridge(groups: Any) -> None:
    """Add the commands that systemd and the role use."""
    group = groups.add_parser("bridge", help="the bridge's own processes; systemd starts them")
    commands = group.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, action: Action) -> argparse.ArgumentParser:
        found: argparse.ArgumentParser = commands.add_parser(name, help=action.__doc__, description=action.__doc__)
        found.set_defaults(action=action)
        return found

    for name, action in PROCESSES.items():
        command(name, action).add_argument("--instance", type=int, required=True, metavar="N", help="number, from 1")
    for name, action in TASKS.items():
        command(name, action)
    command("check-accounts", check_accounts).add_argument("file", type=Path, metavar="FILE")


def parser() -> argparse.ArgumentParser:
    """Return the description of the command line."""
    from n8n_platform.bridge import events_cli  # noqa: PLC0415

    top = argparse.ArgumentParser(prog="n8n-platform", description=__doc__)
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument("--settings", type=Path, default=settings.DEFAULT_PATH, help="settings file (%(default)s)")
    groups = top.add_subparsers(dest="group", required=True, metavar="COMMAND")
    add_bridge(groups)
    events_cli.register(groups)
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 69 when the settings or a secret cannot be used."""
    arguments = parser().parse_args(words)
    try:
        return int(arguments.action(arguments))
    except settings.SettingsError as error:
        print(f"n8n-platform: {error}", file=sys.stderr)
        return UNUSABLE

# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of `n8n-platform-backup restore`; playbooks/restore.yml and restore_undo.yml call them."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from n8n_platform.backup import manifest
from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import FAILED, OK, BackupError, UsageError
from n8n_platform.restore import host as restore_host
from n8n_platform.restore import n8n as restore_n8n
from n8n_platform.restore import plan as restore_plan
from n8n_platform.restore import stock as restore_stock
from n8n_platform.restore import tools as restore_tools
from n8n_platform.restore.host import SAFETY, SAFETY_DATABASE, Host
from n8n_platform.restore.steps import START_SECONDS, Record, Restore


def say(value: Any) -> None:
    """Print an answer for the playbook."""
    print(json.dumps(value, sort_keys=True))


def host_of(config: Config) -> Host:
    """Return this host."""
    return Host(restore_host.load(), config.physical.stanza if config.physical else "n8n")


def do_list(config: Config, arguments: argparse.Namespace) -> int:
    """Print what can be restored."""
    stock = restore_stock.read_stock(config, host_of(config))
    text = restore_stock.table(stock, config, datetime.now(UTC))
    if arguments.json:
        say({"text": text, "backups": len(stock.repositories.backups), "sets": len(stock.sets)})
    else:
        print(text)
    return OK


def make_plan(config: Config, host: Host, arguments: argparse.Namespace) -> restore_plan.Plan:
    """Return the plan for what the command line asks."""
    stock = restore_stock.read_stock(config, host)
    planner = restore_plan.Planner(config, host, stock, datetime.now(UTC))
    return planner.make(arguments.set, arguments.time, arguments.timeline)


def do_plan(config: Config, arguments: argparse.Namespace) -> int:
    """Print what a restore would do."""
    plan = make_plan(config, host_of(config), arguments)
    text = restore_plan.sentences(plan, config.host)
    if arguments.json:
        say({**plan.as_json(), "text": text})
        return OK
    print(text)
    return FAILED if plan.refused else OK


def do_prepare(config: Config, arguments: argparse.Namespace) -> int:
    """Plan once more and begin the record; changes nothing else."""
    plan = make_plan(config, host_of(config), arguments)
    if plan.refused:
        raise BackupError(" ".join(plan.refused))
    say({"id": Record.new(config, plan).values["id"]})
    return OK


def stepped(action: Callable[[Restore], Any]) -> Callable[[Config, argparse.Namespace], int]:
    """Return the command for a step of a restore that has begun."""

    def command(config: Config, arguments: argparse.Namespace) -> int:
        record = Record.read(config, arguments.id)
        answer = action(Restore(config, host_of(config), record, arguments.fail_at))
        say({"record": record.values, "answer": answer})
        return OK

    return command


def do_credentials(config: Config, arguments: argparse.Namespace) -> int:
    """Decrypt every credential of the live database; for the host of n8n's main process."""
    layout = restore_host.load()
    if layout.n8n is None:
        raise UsageError("no n8n is installed on this host; run this on the host of the group n8n_main")
    host = Host(layout, "")
    count = restore_n8n.decrypt_credentials(host.run, layout.n8n, config.secrets_dir, arguments.expected, {})
    say({"credentials": count})
    return OK


def do_empty_queue(config: Config, arguments: argparse.Namespace) -> int:
    """Remove the platform's keys from the job queue: its jobs belong to executions that may not exist any more."""
    prefix = restore_host.load().redis_prefix
    removed = sum(
        restore_tools.empty_queue(restore_tools.connect_redis(config, one), prefix)
        for one in config.redis
        if one.name == "queue"
    )
    say({"removed": removed, "prefix": prefix})
    return OK


def do_unpublish(config: Config, arguments: argparse.Namespace) -> int:
    """Switch all workflows off, as `n8n unpublish:workflow --all` does, and cancel what waits to go on."""
    host = host_of(config)
    say(restore_tools.unpublish(host.server, host.postgres.database))
    return OK


def do_undo(config: Config, arguments: argparse.Namespace) -> int:
    """Swap the safety copy and the present data; without --confirm only say so."""
    host = host_of(config)
    record = Record.read(config, arguments.id)
    safety = dict(record.values.get("safety", {}))
    name = safety.get("directory") if "directory" in safety else safety.get("database", "")
    if name not in host.safety_copies():
        copies = ", ".join(host.safety_copies()) or "none"
        raise BackupError(f"The safety copy of restore {record.values['id']} is gone; what there is: {copies}.")
    copies = " ".join(host.safety_copies())
    now = restore_tools.free_stamp(lambda stamp: stamp in copies or stamp.lower() in copies)
    kept = f"{host.postgres.data_dir}{SAFETY}{now}" if "directory" in safety else ""
    kept = kept or f"{host.postgres.database}{SAFETY_DATABASE}{now.lower()}"
    if not arguments.confirm:
        say({"id": record.values["id"], "safety": name, "keeps": kept, "began": record.values["began"]})
        return OK
    if "directory" in safety:
        host.stop_server()
        host.postgres.data_dir.rename(kept)
        Path(str(name)).rename(host.postgres.data_dir)
        host.start_server(START_SECONDS)
    else:
        restore_tools.swap_database(host.server, host.postgres.database, str(name), keep=kept)
    record.note(status="undone", undone=manifest.stamp(datetime.now(UTC)), kept=kept)
    say({"id": record.values["id"], "safety": name, "keeps": kept})
    return OK


def do_backup(config: Config, arguments: argparse.Namespace) -> int:
    """Take a full backup of every repository."""
    host = host_of(config)
    for repo in config.physical.repos if config.physical else ():
        host.pgbackrest(f"--repo={repo}", "--type=full", "backup")
    say({"repositories": list(config.physical.repos) if config.physical else []})
    return OK


def do_purge(config: Config, arguments: argparse.Namespace) -> int:
    """Remove a safety copy by its full name, or list them."""
    host = host_of(config)
    copies = host.safety_copies()
    if not arguments.name:
        say({"copies": copies})
        return OK
    if arguments.name not in copies:
        raise UsageError(f"{arguments.name} is no safety copy; what there is: {', '.join(copies) or 'none'}")
    if arguments.name.startswith("/"):
        shutil.rmtree(arguments.name)
    else:
        host.server.sql(f"ALTER DATABASE {json.dumps(arguments.name)} WITH ALLOW_CONNECTIONS true")
        host.server.sql(f"DROP DATABASE {json.dumps(arguments.name)} WITH (FORCE)")
    say({"removed": arguments.name})
    return OK


def register(subparsers: Any) -> None:
    """Add the commands."""
    top = subparsers.add_parser(
        "restore", help="the steps of playbooks/restore.yml; `restore list` and `restore plan` change nothing"
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="STEP")

    def verb(name: str, action: Callable[[Config, argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
        parser.set_defaults(action=action)
        return parser

    verb("list", do_list, "List what can be restored.").add_argument("--json", action="store_true")
    for name, action, text in (
        ("plan", do_plan, "Print what a restore would do."),
        ("prepare", do_prepare, "Begin a restore: plan again, refuse or make its record."),
    ):
        parser = verb(name, action, text)
        parser.add_argument("--set", default="", help="latest, a backup's label or a set's id")
        parser.add_argument("--time", default="", help="a moment, with its offset from UTC")
        parser.add_argument("--timeline", type=int, default=0, help="another timeline than the present one")
        parser.add_argument("--json", action="store_true")
    steps: tuple[tuple[str, Callable[[Restore], Any], str], ...] = (
        ("database", Restore.database, "Put the data aside and bring the chosen data back."),
        ("check", Restore.check, "Check what came back."),
        ("proved", Restore.proved, "Note that n8n runs on it."),
        ("finish", Restore.finish, "Archive again and take a full backup."),
        ("rollback", Restore.rollback, "Put everything back as it was."),
    )
    for name, step, text in steps:
        parser = verb(name, stepped(step), text)
        parser.add_argument("id")
        parser.add_argument("--fail-at", default="", help=argparse.SUPPRESS)
    credentials = verb("credentials", do_credentials, "Decrypt every credential with this host's key, keep nothing.")
    credentials.add_argument("--expected", type=int, required=True, help="how many there are")
    verb("empty-queue", do_empty_queue, "Remove the platform's keys from the job queue.")
    verb("unpublish", do_unpublish, "Switch all workflows off and cancel what waits.")
    verb("backup", do_backup, "Take a full backup of every repository.")
    undo = verb("undo", do_undo, "Swap the safety copy and the present data.")
    undo.add_argument("id", nargs="?", default="latest")
    undo.add_argument("--confirm", action="store_true")
    verb("purge", do_purge, "Remove a safety copy.").add_argument("name", nargs="?", default="")

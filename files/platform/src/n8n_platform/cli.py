# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of the platform's services."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from n8n_platform import __version__, files, flatted, guard, queue, rerun, schema, settings, store, watchdog

FAILED = 1
UNUSABLE = 69
BRIDGE_GROUPS = {
    "bridge": "the bridge's own processes; systemd starts them",
    "events": "events of the bridge: list, show, replay, cancel, dead letters",
    "routes": "check a file of routes",
}


def say(text: str = "") -> None:
    """Print a line."""
    print(text)


def human_size(size: int) -> str:
    """Return bytes for people."""
    for unit in ("B", "kB", "MB"):
        if size < 10_000:  # noqa: PLR2004
            return f"{size} {unit}"
        size //= 1000
    return f"{size} GB"


def entry(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the list as JSON shows it."""
    times = {name: row[name].isoformat() if row[name] else None for name in ("created_at", "started_at", "found_at")}
    return {
        "id": row["execution_id"],
        "workflow_id": row["workflow_id"],
        "workflow": row["workflow_name"],
        "mode": row["mode"],
        "reason": row["reason"],
        "detail": row["detail"],
        **times,
        "state": row["state"],
        "attempts": row["attempts"],
        "rerun_id": row["rerun_id"],
        "payload_bytes": row["size"],
        "command": f"n8n-platform executions rerun {row['execution_id']}",
    }


def executions_lost(config: settings.Settings, arguments: argparse.Namespace) -> int:
    """Print the list of unfinished business."""
    database = store.connect(config)
    entries = [entry(row) for row in database.listed()]
    if arguments.payload:
        for item in entries:
            item["payload"] = flatted.payload(database.data(item["id"]) or "[]")
    if arguments.json:
        say(json.dumps(entries, indent=1))
        return 0
    if not entries:
        say("No execution is lost or stuck.")
        return 0
    say(f"{'ID':>10}  {'STATE':9}  {'ACCEPTED (UTC)':19}  {'PAYLOAD':>8}  {'REASON':19}  WORKFLOW")
    for item in entries:
        accepted = datetime.fromisoformat(item["created_at"]).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
        size = human_size(item["payload_bytes"]) if item["payload_bytes"] else "gone"
        say(
            f"{item['id']:>10}  {item['state']:9}  {accepted:19}  {size:>8}  {item['reason']:19}  "
            f"{item['workflow'] or item['workflow_id']}"
        )
    say()
    say("See one:        n8n-platform executions show ID")
    say("Run one again:  n8n-platform executions rerun ID      all of them: --all")
    say("Close one:      n8n-platform executions dismiss ID    (its work is done or not wanted any more)")
    return 0


def executions_show(config: settings.Settings, arguments: argparse.Namespace) -> int:
    """Print the payload of an execution."""
    data = store.connect(config).data(arguments.id)
    if data is None:
        say(f"No payload of execution {arguments.id} is kept.")
        return FAILED
    if arguments.raw:
        say(data)
        return 0
    items = flatted.payload(data)
    if not items:
        say(f"Execution {arguments.id} has no payload to start from. {flatted.error_message(data)}".strip())
        return FAILED
    say(json.dumps(items, indent=1, ensure_ascii=False))
    return 0


def executions_rerun(config: settings.Settings, arguments: argparse.Namespace) -> int:
    """Run executions again."""
    database = store.connect(config)
    ids = arguments.ids
    if arguments.all:
        ids = [row["execution_id"] for row in database.listed() if row["state"] == "open"]
    if not ids:
        say("Nothing to run again.")
        return 0
    runner = rerun.connect(config, database)
    failed = 0
    for execution_id in ids:
        result = runner.rerun(execution_id)
        if result.rerun_id is None:
            failed += 1
            say(f"{execution_id}: not run again: {result.error}")
        else:
            say(f"{execution_id}: runs again as execution {result.rerun_id}")
    say(f"{len(ids) - failed} begun, {failed} not. n8n-platform executions lost shows what is left.")
    return FAILED if failed else 0


def executions_dismiss(config: settings.Settings, arguments: argparse.Namespace) -> int:
    """Close entries of the list."""
    database = store.connect(config)
    unknown = [execution_id for execution_id in arguments.ids if not database.dismiss(execution_id)]
    for execution_id in unknown:
        say(f"{execution_id}: is not in the list")
    return FAILED if unknown else 0


def guard_run(config: settings.Settings, arguments: argparse.Namespace) -> int:
    """Do one pass of the guard; print only what changed or is wrong, with the journal's priorities."""
    outcome = guard.Guard(config, store.connect(config), queue.connect(config)).run()
    if outcome.changed:
        say(f"<5>created or removed: {', '.join(outcome.changed)}")
    if outcome.crashed:
        say(f"<4>executions without a job, marked as crashed: {', '.join(map(str, outcome.crashed))}")
    if outcome.listed:
        say(f"<4>lost executions, listed with their payload: {', '.join(map(str, outcome.listed))}")
    for what, count in outcome.followed.items():
        say(f"<5>listed executions {what}: {count}")
    for problem in outcome.problems:
        say(f"<4>{problem}")
    return 0


def guard_status(config: settings.Settings, arguments: argparse.Namespace) -> int:
    """Print the report of the last pass."""
    state = files.read_json(config.state_dir / guard.STATE)
    if not state:
        say("The guard has not run yet: systemctl start n8n-guard.service")
        return FAILED
    say(json.dumps(state, indent=1))
    return FAILED if state.get("problems") or state.get("lost") else 0


def watchdog_run(config: settings.Settings, arguments: argparse.Namespace) -> int:
    """Do one pass of the watchdog."""
    for sentence in watchdog.Watchdog(config, lambda: queue.connect(config)).run():
        say(f"<4>{sentence}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the description of the command line."""
    top = argparse.ArgumentParser(prog="n8n-platform", description=__doc__)
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument("--settings", type=Path, default=settings.DEFAULT_PATH, help="settings file (%(default)s)")
    groups = top.add_subparsers(dest="group", required=True, metavar="COMMAND")

    def command(
        group: Any, name: str, action: Callable[[settings.Settings, argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        found: argparse.ArgumentParser = group.add_parser(name, help=text, description=text)
        found.set_defaults(action=action)
        return found

    executions = groups.add_parser("executions", help="executions that did not come to an end").add_subparsers(
        dest="command", required=True
    )
    lost = command(executions, "lost", executions_lost, "List executions that were accepted and did not finish.")
    lost.add_argument("--json", action="store_true", help="as JSON")
    lost.add_argument("--payload", action="store_true", help="with what each started with (only with --json)")
    show = command(executions, "show", executions_show, "Print the payload of an execution.")
    show.add_argument("id", type=int, metavar="ID")
    show.add_argument("--raw", action="store_true", help="all data as n8n stores it")
    again = command(executions, "rerun", executions_rerun, "Run listed executions again, with their original payload.")
    which = again.add_mutually_exclusive_group(required=True)
    which.add_argument("ids", type=int, nargs="*", default=[], metavar="ID")
    which.add_argument("--all", action="store_true", help="all that are open")
    dismiss = command(executions, "dismiss", executions_dismiss, "Close entries of the list without running them.")
    dismiss.add_argument("ids", type=int, nargs="+", metavar="ID")

    guards = groups.add_parser("guard", help="the guard of executions").add_subparsers(dest="command", required=True)
    command(guards, "run", guard_run, "Do one pass (n8n-guard.timer does this all the time).")
    command(guards, "status", guard_status, "Print the report of the last pass.")
    dogs = groups.add_parser("watchdog", help="the watchdog of processes").add_subparsers(dest="command", required=True)
    command(dogs, "run", watchdog_run, "Do one pass (n8n-watchdog.timer does this all the time).")
    # These need the bridge's libraries: __main__ hands them to n8n_platform.bridge.cli.
    for name, text in BRIDGE_GROUPS.items():
        groups.add_parser(name, help=text)
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 not (all) done, 69 a service or the settings are missing."""
    arguments = parser().parse_args(words)
    try:
        config = settings.load(arguments.settings)
        return int(arguments.action(config, arguments))
    except (settings.SettingsError, schema.StoreError, queue.QueueError, rerun.ApiError, OSError) as error:
        print(f"n8n-platform: {error}", file=sys.stderr)
        return UNUSABLE

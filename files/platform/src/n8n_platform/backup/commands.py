# SPDX-License-Identifier: GPL-3.0-or-later
"""What each command of the command line does; each returns the exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from n8n_platform.backup import check, fetch, lock, manifest, prune, run, s3, sets, state, status, unpack, verification
from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import FAILED, OK, PARTLY, BackupError, PlaceError, UsageError
from n8n_platform.backup.report import Report, human_age, human_size, print_json


def make(config: Config, arguments: argparse.Namespace) -> int:
    """Make a backup."""
    parts = run.choose(config, arguments.parts)
    say = Report(quiet=arguments.json)
    begun = datetime.now(UTC)
    with lock.held(config.lock_file, "n8n-platform-backup run"):
        prune.watch_clock(config, say)
        runner = run.Run(config, say, s3.connect(config))
        try:
            code = runner.run(parts)
        except BackupError as error:
            run.refused(config, error)
            raise
    if arguments.json:
        print_json(
            {
                **vars(runner.outcome),
                "code": code,
                "seconds": round((datetime.now(UTC) - begun).total_seconds(), 1),
                "warnings": say.warnings,
                "problems": say.problems,
            }
        )
    elif code:
        say.say(f"Ended with {len(say.problems)} problem(s), exit code {code}. See: n8n-platform-backup status")
    return code


def known(config: Config, where: str, say: Report) -> dict[str, dict[str, sets.Found]]:
    """Return all sets: ``id -> place -> set``. A place that does not answer is a problem."""
    key = sets.signing_key(config)
    if key is None:
        say.warn(f"signatures are not checked: this host has no {manifest.SIGNING_KEY} yet")
    found: dict[str, dict[str, sets.Found]] = {}
    for shelf in sets.shelves(config, where):
        try:
            for entry in sets.everything(shelf, key):
                found.setdefault(entry.id, {})[shelf.name] = entry
        except PlaceError as error:
            say.problem(str(error))
    return found


def summary(places: Mapping[str, sets.Found]) -> dict[str, Any]:
    """Return a set as lists show it."""
    good = [entry for entry in places.values() if not entry.problem]
    best = (good or list(places.values()))[0]
    damaged = {place: entry.verified.detail for place, entry in places.items() if entry.verified.result == "failed"}
    checks = [entry.verified for place, entry in places.items() if place not in damaged and entry.verified.result]
    verified = max(checks, key=lambda entry: entry.at, default=best.verified)
    database = best.document.get("database") or {}
    return {
        "id": best.id,
        "at": manifest.stamp(best.at),
        "age_seconds": int(sets.age_seconds(best)),
        "host": best.host,
        "environment": best.document.get("environment"),
        "places": sorted(places),
        "size_bytes": best.size,
        "complete": best.complete,
        "parts": best.document.get("parts", []),
        "failed_parts": best.document.get("failed_parts", []),
        "versions": best.document.get("versions", {}),
        "database_size_bytes": database.get("size_bytes"),
        "last_migration": database.get("last_migration"),
        "encryption_key_fingerprint": best.document.get("encryption_key_fingerprint", ""),
        "physical": best.document.get("physical", {}),
        "verified": vars(verified),
        "damaged": damaged,
        "problem": "; ".join(f"{place}: {entry.problem}" for place, entry in places.items() if entry.problem),
    }


def list_sets(config: Config, arguments: argparse.Namespace) -> int:
    """Print all sets, newest first."""
    say = Report(quiet=arguments.json)
    found = known(config, arguments.source, say)
    entries = [summary(found[set_id]) for set_id in sorted(found, reverse=True)]
    if arguments.json:
        print_json(entries)
        return PARTLY if say.problems else OK
    if not entries:
        say.say("There is no set. Make one: n8n-platform-backup run")
    else:
        width = max(len(entry["id"]) for entry in entries)
        say.say(f"{'SET':{width}}  {'AGE':>8}  {'SIZE':>9}  {'WHERE':8}  {'N8N':8}  {'PARTS':8}  VERIFIED")
    for entry in entries:
        where = "+".join(entry["places"])
        parts = "all" if entry["complete"] else "some"
        if entry["problem"]:
            say.say(f"{entry['id']:{width}}  {human_age(entry['age_seconds']):>8}  DO NOT USE: {entry['problem']}")
            continue
        version = entry["versions"].get("n8n") or "-"
        say.say(
            f"{entry['id']:{width}}  {human_age(entry['age_seconds']):>8}  {human_size(entry['size_bytes']):>9}  "
            f"{where:8}  {version:8}  {parts:8}  {checked(entry['verified'])}"
        )
        if entry["verified"]["result"] != verification.RESULT_FAILED:
            for place, detail in entry["damaged"].items():
                say.say(f"{'':{width}}  its copy in {place} is damaged: {detail}")
    return PARTLY if say.problems else OK


def checked(entry: Mapping[str, str]) -> str:
    """Return what is known about a set in a few words."""
    if not entry["result"]:
        return "not yet"
    ago = (datetime.now(UTC) - datetime.fromisoformat(entry["at"])).total_seconds()
    text = f"{human_age(ago)} ago by {entry['by']}"
    return text if entry["result"] == verification.RESULT_OK else f"FAILED {text}: {entry['detail']}"


def show(config: Config, arguments: argparse.Namespace) -> int:
    """Print the manifest of a set and its checks."""
    set_id, where = sets.resolve(config, arguments.id, sets.shelves(config))
    key = sets.signing_key(config)
    found = sets.look(where[0], set_id, key)
    entries = verification.parse(where[0].read(set_id, verification.NAME), set_id, key)
    print_json({**found.document, "places": [shelf.name for shelf in where], "verification": entries})
    if found.problem or key is None:
        print(
            f"n8n-platform-backup: {found.problem or 'the signature is not checked, the key is not here'}",
            file=sys.stderr,
        )
    return FAILED if found.problem else OK


def verify(config: Config, arguments: argparse.Namespace) -> int:
    """Check a set."""
    say = Report(quiet=arguments.json)
    with lock.held(config.lock_file, "n8n-platform-backup verify"):
        set_id, where = sets.resolve(config, arguments.id, sets.shelves(config))
        entry = check.verify(config, set_id, where, say, arguments.deep)
    if arguments.json:
        print_json({"id": set_id, **entry, "problems": say.problems, "warnings": say.warnings})
    return OK if entry["result"] == verification.RESULT_OK else FAILED


def prune_sets(config: Config, arguments: argparse.Namespace) -> int:
    """Delete what is too old; with --dry-run only say what would go, and why the others stay."""
    say = Report(quiet=arguments.json)
    with lock.held(config.lock_file, "n8n-platform-backup prune"):
        if arguments.trust_clock:
            state.update(config, {"clock": state.clock_reading(config)})
        plan: list[dict[str, str | bool]] = []
        for shelf in sets.shelves(config):
            try:
                decisions = prune.decide(config, sets.everything(shelf, sets.signing_key(config)), shelf.name)
                if not arguments.dry_run:
                    prune.apply(config, shelf, say)
            except PlaceError as error:
                say.problem(str(error))
                continue
            plan += [
                {"place": shelf.name, "id": entry.found.id, "keep": entry.keep, "reason": entry.reason}
                for entry in decisions
            ]
    if arguments.json:
        print_json(plan)
    elif arguments.dry_run:
        for line in plan:
            say.say(f"{'stays' if line['keep'] else 'GOES ':5}  {line['place']:5}  {line['id']}: it {line['reason']}")
    if not arguments.json:
        going = sum(1 for line in plan if not line["keep"])
        verb = "would be deleted" if arguments.dry_run else "deleted"
        say.say(f"{going} of {len(plan)} {verb}.")
    return PARTLY if say.problems else OK


def fetch_set(config: Config, arguments: argparse.Namespace) -> int:
    """Copy a set out of the object store."""
    where = sets.shelves(config, "s3")
    set_id, _ = sets.resolve(config, arguments.id, where, usable=True)
    store = s3.connect(config)
    assert store is not None  # noqa: S101  (shelves() refuses otherwise)
    path = fetch.fetch(store, set_id, arguments.directory, sets.signing_key(config), Report(quiet=arguments.json))
    if arguments.json:
        print_json({"id": set_id, "path": str(path)})
    return OK


def confirmed(config: Config, text: str) -> bool:
    """Ask a person at a terminal to type the host's name; programs have asked already."""
    if not sys.stdin.isatty():
        return True
    print(text)
    return input(f"Type {config.host} to go on: ").strip() == config.host


def restore_files(config: Config, arguments: argparse.Namespace) -> int:
    """Unpack files of a set."""
    say = Report(quiet=False)
    set_id, where = sets.resolve(config, arguments.id, sets.shelves(config), usable=True)
    key = sets.signing_key(config)
    if key is None:
        say.warn(f"the signature of {set_id} is not checked: this host has no {manifest.SIGNING_KEY} yet")
    target: Path = arguments.target
    what = f"{', '.join(arguments.parts)} of {set_id} will be unpacked below {target}; files there are overwritten."
    if target == Path("/") and not confirmed(config, what):
        say.say("Nothing was changed.")
        return FAILED
    if not target.is_dir():
        raise UsageError(f"there is no directory {target}")
    for shelf in where:
        try:
            files = unpack.chosen(config, sets.look(shelf, set_id, key), shelf, arguments.parts, say)
            break
        except unpack.DamagedError as error:
            if shelf is where[-1]:
                raise
            say.warn(f"{error} Taking the other copy.")
    unpack.extract(shelf, set_id, files, target, arguments.identity, say, arguments.numeric_owner)
    return OK


def show_status(config: Config, arguments: argparse.Namespace) -> int:
    """Print whether all is well."""
    found = status.collect(config)
    if arguments.json:
        print_json(found)
        return OK if found["ok"] else FAILED
    for line in status.lines(found):
        print(line)
    return OK if found["ok"] else FAILED

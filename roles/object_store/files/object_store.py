#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run and keep the object store that backups go to.

    object-store SETTINGS.json serve ...           start versitygw (the unit's command)
    object-store SETTINGS.json setup [--dry-run]   bucket, versions, lock and rights as wanted; prints what changed
    object-store SETTINGS.json check [--rights]    ask the store as the one who writes backups; prints findings
    object-store SETTINGS.json keep                lock new versions, remove old ones (daily, by a timer)
    object-store SETTINGS.json guard               stop uploads before the disk is full (each minute, by a timer)

Secrets are files in $CREDENTIALS_DIRECTORY, or in the platform's directory of secrets when a person calls.
Exit codes: 0 well, 1 something is wrong and was said, 2 wrong usage or settings.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from object_store_base import MIB, Settings, administrator, code_of, current_lock, remembered, wanted_lock, write
from object_store_check import WRITER_ON_BUCKET, WRITER_ON_OBJECTS, check
from object_store_keep import keep

# Uploads are allowed again only when this much more than the minimum is free, or the store would flap.
RELIEF = 1.1


def policy(bucket: str, writer: str, uploads: bool) -> dict[str, Any]:
    """Return who may do what with the bucket: the writer adds and reads, and removes nothing for good.

    Without ``uploads`` it may not add either; the account of the store itself is not bound by this.
    """
    objects = f"arn:aws:s3:::{bucket}/*"
    who = {"AWS": [writer]}

    def statement(effect: str, actions: Sequence[str], resource: str) -> dict[str, Any]:
        """Return one statement about the writer."""
        return {"Effect": effect, "Principal": who, "Action": list(actions), "Resource": [resource]}

    statements = [
        statement("Allow", WRITER_ON_BUCKET, f"arn:aws:s3:::{bucket}"),
        statement("Allow", WRITER_ON_OBJECTS, objects),
    ]
    if not uploads:
        statements.append(statement("Deny", ["s3:PutObject"], objects))
    return {"Version": "2012-10-17", "Statement": statements}


def accounts(writer: str, secret: str) -> dict[str, Any]:
    """Return versitygw's table of accounts; the root account is not in it."""
    account = {"access": writer, "secret": secret, "role": "user", "userID": 0, "groupID": 0, "projectID": 0}
    return {"accessAccounts": {writer: account}}


def serve(settings: Settings, root: str, name: str, command: list[str]) -> int:
    """Give versitygw its accounts and become it; ``name`` is the writer. Secrets are never on a command line."""
    directory = Path(os.environ["RUNTIME_DIRECTORY"]) / "accounts"
    directory.mkdir(mode=0o700, exist_ok=True)
    table = json.dumps(accounts(name, settings.secret("object_store_backup_secret")))
    (directory / "users.json").write_text(table, encoding="utf-8")
    environment = {
        **os.environ,
        "VGW_IAM_DIR": str(directory),
        "ROOT_ACCESS_KEY_ID": root,
        "ROOT_SECRET_ACCESS_KEY": settings.secret("object_store_root_secret"),
        "VGW_CERT": f"{os.environ['CREDENTIALS_DIRECTORY']}/host.crt",
        "VGW_KEY": f"{os.environ['CREDENTIALS_DIRECTORY']}/host.key",
    }
    os.execve(command[0], command, environment)  # noqa: S606
    return 1


def setup(settings: Settings, dry_run: bool) -> list[str]:
    """Bring the bucket to the wanted state; return what was changed, or would be."""
    s3, bucket, changed = administrator(settings), settings.bucket, []
    try:
        s3.head_bucket(Bucket=bucket)
    except s3.exceptions.ClientError as error:
        if code_of(error) not in ("404", "NoSuchBucket"):
            raise
        changed.append(f"created the bucket {bucket}")
        if dry_run:
            return changed
        s3.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=bool(settings.lock_mode))
    if s3.get_bucket_versioning(Bucket=bucket).get("Status") != "Enabled":
        changed.append("switched versions on")
        if not dry_run:
            s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    lock = current_lock(s3, bucket)
    if lock != wanted_lock(settings) and (settings.lock_mode or lock):
        changed.append(f"set the lock to {settings.lock_mode} for {settings.lock_days} days")
        if not dry_run:
            s3.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration=wanted_lock(settings))
    if settings.root:
        changed += set_policy(settings, s3, uploads=not is_low(settings), dry_run=dry_run)
    return changed


def set_policy(settings: Settings, s3: Any, *, uploads: bool, dry_run: bool = False) -> list[str]:
    """Give the writer its rights; return what was changed."""
    wanted = policy(settings.bucket, settings.writer, uploads)
    try:
        found = json.loads(s3.get_bucket_policy(Bucket=settings.bucket)["Policy"])
    except s3.exceptions.ClientError as error:
        if code_of(error) != "NoSuchBucketPolicy":
            raise
        found = None
    if found == wanted:
        return []
    if not dry_run:
        s3.put_bucket_policy(Bucket=settings.bucket, Policy=json.dumps(wanted))
    return [f"gave {settings.writer} its rights"]


def free_mb(settings: Settings) -> int:
    """Return the free space where the objects lie, MiB."""
    space = os.statvfs(settings.data_dir)
    return space.f_bavail * space.f_frsize // MIB


def is_low(settings: Settings) -> bool:
    """Tell whether uploads must stop; once they did, they go on only with some room to spare."""
    was = bool(remembered(Path(settings.state_dir) / "guard.json").get("low"))
    return free_mb(settings) < settings.minimum_free_mb * (RELIEF if was else 1)


def guard(settings: Settings) -> dict[str, Any]:
    """Stop uploads when space gets short and allow them again when it is back; return what is so now."""
    memory = Path(settings.state_dir) / "guard.json"
    was, low = bool(remembered(memory).get("low")), is_low(settings)
    if was != low:
        set_policy(settings, administrator(settings), uploads=not low)
    if was != low or not memory.exists():
        write(memory, json.dumps({"low": low}) + "\n")
    kept = remembered(Path(settings.state_dir) / "kept.json")
    figures = {
        "object_store_free_bytes": free_mb(settings) * MIB,
        "object_store_uploads_stopped": int(low),
        "object_store_versions": kept.get("versions", 0),
        "object_store_last_kept_timestamp_seconds": kept.get("started", 0),
        "object_store_versions_still_locked": kept.get("still_locked", 0),
    }
    lines = [f"# TYPE {name} gauge\n{name} {value:.0f}\n" for name, value in figures.items()]
    write(Path(settings.metrics_file), "".join(lines))
    return {"low": low, "changed": was != low, "free_mb": free_mb(settings)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="object-store", description="Run and keep the object store.")
    parser.add_argument("settings", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("keep", "guard"):
        commands.add_parser(name)
    server = commands.add_parser("serve")
    server.add_argument("--root", required=True)
    server.add_argument("--writer", required=True)
    server.add_argument("server", nargs="+")
    commands.add_parser("setup").add_argument("--dry-run", action="store_true")
    commands.add_parser("check").add_argument("--rights", action="store_true")
    given = parser.parse_args(arguments)
    try:
        settings = Settings.load(given.settings)
    except (OSError, ValueError, TypeError, KeyError) as error:
        print(f"object-store: {given.settings}: {error}", file=sys.stderr)
        return 2
    try:
        return run(settings, given)
    except Exception as error:
        print(f"object-store {given.command}: {code_of(error)}: {error}", file=sys.stderr)
        return 1


def run(settings: Settings, given: argparse.Namespace) -> int:
    """Carry out one command and print its answer as JSON."""
    if given.command == "serve":
        return serve(settings, given.root, given.writer, given.server)
    if given.command == "setup":
        print(json.dumps({"changed": setup(settings, given.dry_run)}))
        return 0
    if given.command == "check":
        found = check(settings, given.rights)
        print(json.dumps({"findings": found}, indent=2))
        return int(any(one["severity"] == "error" for one in found))
    if given.command == "keep":
        figures = keep(settings, time.time())
        print(json.dumps(figures))
        return int(bool(figures["errors"]))
    state = guard(settings)
    if state["low"]:
        print(
            f"Only {state['free_mb']} MiB are free, uploads are stopped: make room or enlarge the disk.",
            file=sys.stderr,
        )
    # A unit that failed is what the doctor shows.
    return int(state["low"])


if __name__ == "__main__":
    sys.exit(main())

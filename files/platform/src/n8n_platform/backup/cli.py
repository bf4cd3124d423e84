# SPDX-License-Identifier: GPL-3.0-or-later
"""n8n-platform-backup: backup sets of this host."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from n8n_platform import __version__
from n8n_platform.backup import commands, config
from n8n_platform.backup.errors import FAILED, UNUSABLE, BackupError
from n8n_platform.restore import commands as restore
from n8n_platform.restore import drill

Registrar = Callable[[Any], None]
# Each adds commands to the parser: register(subparsers), with set_defaults(action=function(config, arguments) -> code).
REGISTRARS: tuple[Registrar, ...] = (restore.register, drill.register)

CODES = """exit codes: 0 done; 1 failed; 2 wrong use; 3 another run is under way; 4 not enough room;
5 partly done (what was done can be relied on); 69 the settings, a secret or a program is missing"""


class Stopped(BaseException):
    """A signal asks us to end; what was begun is removed on the way out."""


def words(text: str) -> list[str]:
    """Return a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def parser() -> argparse.ArgumentParser:
    """Return the description of the command line."""
    top = argparse.ArgumentParser(prog="n8n-platform-backup", description=__doc__, epilog=CODES)
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument("--settings", type=Path, default=config.DEFAULT_PATH, help="settings file (%(default)s)")
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, action: Callable[[config.Config, argparse.Namespace], int], text: str) -> Any:
        found = subparsers.add_parser(name, help=text, description=text)
        found.set_defaults(action=action)
        return found

    def json_option(found: Any) -> None:
        found.add_argument("--json", action="store_true", help="as JSON")

    def set_argument(found: Any) -> None:
        found.add_argument("id", metavar="ID", help="id of a set, or: latest")

    make = command("run", commands.make, "Make a backup: physical, a set, a check, then delete what is too old.")
    make.add_argument("--parts", type=words, metavar="A,B", help="only some parts, such as database,redis,physical")
    json_option(make)
    listing = command("list", commands.list_sets, "List the sets, newest first.")
    listing.add_argument("--from", dest="source", choices=("local", "s3", "all"), default="all", help="%(default)s")
    json_option(listing)
    set_argument(command("show", commands.show, "Print all that is known about a set, as JSON."))
    verify = command("verify", commands.verify, "Check that a set is whole and unchanged, at every place.")
    set_argument(verify)
    verify.add_argument("--deep", action="store_true", help="read the archives, too, and fetch the object store's copy")
    json_option(verify)
    prune = command("prune", commands.prune_sets, "Delete sets that are too old.")
    prune.add_argument("--dry-run", action="store_true", help="only say what would go, and why each other set stays")
    prune.add_argument("--trust-clock", action="store_true", help="the clock is right, although it jumped")
    json_option(prune)
    fetch = command("fetch", commands.fetch_set, "Copy a set from the object store to DIRECTORY/ID; may be repeated.")
    set_argument(fetch)
    fetch.add_argument("directory", type=Path, metavar="DIRECTORY")
    json_option(fetch)
    files = command("restore-files", commands.restore_files, "Unpack files of a set; the database has its playbook.")
    set_argument(files)
    files.add_argument(
        "--parts", type=words, required=True, metavar="A,B", help="n8n,configuration,certificates,secrets"
    )
    files.add_argument("--identity", type=Path, metavar="FILE", help="age identity that opens secrets and certificates")
    files.add_argument(
        "--target", type=Path, default=Path("/"), metavar="DIRECTORY", help="unpack below it (%(default)s)"
    )
    files.add_argument("--numeric-owner", action="store_true", help="owners by number, not by name")
    json_option(command("status", commands.show_status, "Tell whether this host is backed up (asks this host only)."))
    for register in REGISTRARS:
        register(subparsers)
    return top


def stop(number: int, frame: FrameType | None) -> None:
    """End in good order."""
    raise Stopped(signal.Signals(number).name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    chosen = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, stop)
    try:
        return int(chosen.action(config.load(chosen.settings), chosen))
    except BackupError as error:
        print(f"n8n-platform-backup: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"n8n-platform-backup: {error}", file=sys.stderr)
        return UNUSABLE
    except (Stopped, KeyboardInterrupt) as error:
        print(f"n8n-platform-backup: stopped ({error or 'Ctrl-C'}); what was begun is removed", file=sys.stderr)
        return FAILED

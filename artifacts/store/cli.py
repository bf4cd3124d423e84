# SPDX-License-Identifier: GPL-3.0-or-later
"""Command line of the artifact store."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from artifacts.store import n8n_check, n8n_env
from artifacts.store.artifact import default_directory, machine_arch
from artifacts.store.catalogue import ARCHITECTURES, load_catalogue
from artifacts.store.errors import StoreError
from artifacts.store.pin import pin
from artifacts.store.progress import Reporter, human_size
from artifacts.store.store import Options, Store

CATALOGUE = Path(__file__).resolve().parents[1]
EXIT_CODES = """exit codes:
  0 done    2 wrong usage or catalogue    3 missing and --offline    4 wrong hash
  5 no pinned hash    6 source unreachable    7 build failed or program missing    1 anything else"""


def parser() -> argparse.ArgumentParser:
    """Return the command line, separate so that tests and documentation can read it."""
    top = argparse.ArgumentParser(
        prog="python -m artifacts.store",
        description="Fetches, verifies and packs the programs the platform installs (docs/artifacts.md).",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--store", type=Path, help="directory (default: $N8N_PLATFORM_ARTIFACTS or the user's cache)")
    top.add_argument("--catalogue", type=Path, default=CATALOGUE, help=argparse.SUPPRESS)
    top.add_argument("--quiet", action="store_true", help="no progress, only results and errors")
    commands = top.add_subparsers(dest="command", required=True)

    ensure = commands.add_parser("ensure", help="get what is missing (nothing named: every default version)")
    ensure.add_argument("tools", nargs="*", metavar="TOOL[@VERSION]")
    ensure.add_argument("--arch", choices=ARCHITECTURES, action="append", help="architecture (default: this machine's)")
    ensure.add_argument("--offline", action="store_true", help="never fetch: say which files are missing")
    ensure.add_argument("--require-pins", action=argparse.BooleanOptionalAction, default=True)
    ensure.add_argument("--source", help="use only this source of the catalogue")
    ensure.add_argument("--json", action="store_true", help="print a JSON list for programs")
    ensure.set_defaults(run=_ensure)

    listing = commands.add_parser("list", help="what the catalogue knows and what the store holds")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=_list)

    commands.add_parser("verify", help="hash everything in the store again").set_defaults(run=_verify)

    path = commands.add_parser("path", help="print the store directory, or where one artifact lies")
    path.add_argument("tool", nargs="?", metavar="TOOL[@VERSION]")
    path.add_argument("--arch", choices=ARCHITECTURES)
    path.set_defaults(run=_path)

    pinning = commands.add_parser("pin", help="add a version with its hashes and locks to the catalogue")
    pinning.add_argument("tool", metavar="TOOL")
    pinning.add_argument("version", metavar="VERSION")
    pinning.add_argument("--default", action="store_true", help="also make it the default version")
    pinning.set_defaults(run=_pin)

    env = commands.add_parser("n8n-env", help="write the list of variables that a version of n8n reads")
    env.add_argument("version", nargs="?", metavar="VERSION")
    env.set_defaults(run=_n8n_env)

    check = commands.add_parser("n8n-check", help="unpack a version of n8n and load every node of it")
    check.add_argument("version", nargs="?", metavar="VERSION")
    check.set_defaults(run=_n8n_check)

    prune = commands.add_parser("prune", help="remove versions that the catalogue no longer names")
    prune.add_argument("--caches", action="store_true", help="also remove download caches")
    prune.set_defaults(run=_prune)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is the program's."""
    options = parser().parse_args(arguments)
    reporter = Reporter(quiet=options.quiet)
    try:
        directory = options.store.expanduser().absolute() if options.store else default_directory()
        store = Store(directory, load_catalogue(options.catalogue), reporter)
        code: int = options.run(store, options)
    except StoreError as error:
        reporter.clear()
        print(f"artifacts: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        reporter.clear()
        print("artifacts: interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    return code


def _ensure(store: Store, options: argparse.Namespace) -> int:
    names = options.tools or list(store.catalogue)
    how = Options(offline=options.offline, require_pins=options.require_pins, source=options.source)
    results = []
    for name in names:
        tool, _, version = name.partition("@")
        for arch in options.arch or [machine_arch()]:
            started = time.monotonic()
            artifact, fetched = store.ensure(tool, version or None, arch, how)
            state = f"ready after {time.monotonic() - started:.0f} s" if fetched else "in the store"
            store.reporter.say(f"{artifact}: {human_size(artifact.manifest['size'])}, {state}")
            results.append(artifact.summary())
    if options.json:
        print(json.dumps(results, indent=2))
    return 0


def _list(store: Store, options: argparse.Namespace) -> int:
    held = {(a.tool, a.version, a.arch): a for a in store.artifacts()}
    rows = []
    for tool in store.catalogue.values():
        for version in tool.versions:
            for arch in tool.architectures(version):
                artifact = held.pop((tool.name, version, arch), None)
                rows.append((tool.name, version, arch, version == tool.default, artifact, True))
    rows += [(a.tool, a.version, a.arch, False, a, False) for a in held.values()]
    if options.json:
        keys = ("tool", "version", "arch", "default", "in_store", "in_catalogue")
        described = [dict(zip(keys, (*row[:4], row[4] is not None, row[5]), strict=True)) for row in rows]
        print(json.dumps(described, indent=2))
        return 0
    print(f"store: {store.directory}")
    for name, version, arch, default, artifact, known in rows:
        size = human_size(artifact.manifest["size"]) if artifact else "-"
        notes = [note for note, true in (("default", default), ("not in the catalogue", not known)) if true]
        print(f"  {name:<14} {version:<12} {arch:<6} {size:>10}  {', '.join(notes)}".rstrip())
    return 0


def _verify(store: Store, options: argparse.Namespace) -> int:
    code = 0
    for artifact, error in store.verify():
        if error is None:
            print(f"{artifact}: good")
        else:
            print(f"artifacts: {error}", file=sys.stderr)
            code = error.exit_code
    return code


def _path(store: Store, options: argparse.Namespace) -> int:
    if options.tool is None:
        print(store.directory)
        return 0
    name, _, version = options.tool.partition("@")
    tool = store.tool(name)
    print(store.path(name, tool.version(version or None), options.arch or machine_arch()))
    return 0


def _pin(store: Store, options: argparse.Namespace) -> int:
    for arch, per_arch in pin(store, options.tool, options.version, make_default=options.default).items():
        for source, value in per_arch.items():
            print(f"{options.tool} {options.version} {arch} {source}: {value}")
    if options.tool == "n8n":
        version = options.version
        print("next, to build it, list its variables and see that every node of it loads:")
        print(f"  python -m artifacts.store n8n-env {version} && python -m artifacts.store n8n-check {version}")
    return 0


def _n8n_env(store: Store, options: argparse.Namespace) -> int:
    artifact, _ = store.ensure("n8n", options.version, machine_arch(), Options())
    target = store.tool("n8n").lock_directory(artifact.version) / n8n_env.FILE_NAME
    print(f"{n8n_env.write(artifact.path, target)} names written to {target}")
    return 0


def _n8n_check(store: Store, options: argparse.Namespace) -> int:
    artifact, _ = store.ensure("n8n", options.version, machine_arch(), Options())
    with store.scratch("n8n-check") as scratch:
        loaded = n8n_check.check(artifact, store.node(), scratch, store.reporter)
    print(f"{artifact}: {loaded} nodes, credential types and packages load")
    return 0


def _prune(store: Store, options: argparse.Namespace) -> int:
    removed, size = store.prune(caches=options.caches)
    for path in removed:
        print(f"removed {path}")
    print(f"{human_size(size)} freed")
    return 0

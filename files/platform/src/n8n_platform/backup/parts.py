# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a set: which programs make which file."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from n8n_platform.backup import database, redis_dump
from n8n_platform.backup.config import Config, N8n, Paths, Redis
from n8n_platform.backup.errors import BackupError
from n8n_platform.backup.identity import acting_as
from n8n_platform.backup.pipeline import Command, Pipeline, output
from n8n_platform.backup.places import SetWriter
from n8n_platform.backup.report import Report

ZSTD = Command(["zstd", "-3", "--quiet", "--stdout"])
# n8n keeps its encryption key in clear in its user folders. It is in the encrypted bundle, it may be nowhere else.
KEY_FILE = ".n8n/config"
EXPORT_PREFIX = ".backup-"
EXPORT_SECONDS = 900
# What n8n says when there is nothing to export.
NOTHING = ("No workflows found", "No credentials found")


@dataclass
class Making:
    """A set in the making: where it goes, and what its manifest will say."""

    config: Config
    writer: SetWriter
    report: Report
    facts: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    # Sizes of the files of the last set: ``name -> bytes``.
    expected: Mapping[str, int] = field(default_factory=dict)

    def pipe(
        self, name: str, part: str, commands: Sequence[Command], stdin: IO[bytes] | None = None, expected: int = 0
    ) -> None:
        """Write what programs print as a file of the set."""
        with Pipeline(commands, stdin) as pipeline:

            def finish() -> None:
                for warning in pipeline.finish():
                    self.report.warn(f"{name}: {warning}")

            self.writer.add(name, part, pipeline.chunks(), max(expected, self.expected.get(name, 0) * 2), finish)


def make_database(making: Making) -> None:
    """Dump n8n's database; count and hash its tables in the same snapshot meanwhile."""
    config, settings = making.config, making.config.database
    assert settings is not None  # noqa: S101  (the part is on)
    with database.session(config, settings) as snapshot, ThreadPoolExecutor(1) as beside:
        size = snapshot.size()
        facts = beside.submit(snapshot.facts, settings)
        making.pipe(
            database.dump_file(settings),
            "database",
            database.dump_commands(config, settings, snapshot.id),
            expected=size,
        )
        try:
            making.facts = facts.result()
            making.versions["postgresql"] = making.facts.pop("version")
        except BackupError as error:
            # A dump that nobody counted is worth more than none.
            making.report.problem(f"the tables could not be counted, a restore of this set cannot compare: {error}")
        for warning in snapshot.warnings:
            making.report.warn(warning)
    for other in settings.others:
        name = database.dump_file(settings, other)
        making.pipe(name, "database", database.dump_commands(config, settings, "", other))


def make_redis(making: Making) -> None:
    """Save every Redis instance. Kept to look at: a restore never puts old jobs back beside a restored database."""
    for settings in making.config.redis:
        making.versions["redis"] = redis_dump.connect(making.config, settings).save()
        make_rdb(making, settings)


def make_rdb(making: Making, settings: Redis) -> None:
    """Add a saved RDB file to the set."""
    try:
        stream = settings.rdb.open("rb")
    except OSError as error:
        raise BackupError(
            f"cannot read {settings.rdb}, which Redis has just written: {error.strerror}. Is it the file that "
            "`CONFIG GET dir` and `CONFIG GET dbfilename` name?"
        ) from error
    with stream:
        making.pipe(f"redis-{settings.name}.rdb.zst", "redis", [ZSTD], stdin=stream)


def tar(paths: Sequence[Path], exclude: Sequence[str] = (), without: Sequence[Path] = (), user: str = "") -> Command:
    """Return the program that archives files as they are, named from the root, owners by name and number.

    ``exclude`` are patterns for any part of a path, ``without`` are whole paths. Files that change or vanish while they
    are read are worth a warning; one that cannot be read is an error.
    """
    return Command(
        [
            "tar",
            "--create",
            "--file=-",
            "--directory=/",
            "--warning=no-file-ignored",
            *(f"--exclude={pattern}" for pattern in exclude),
            "--anchored",
            "--no-wildcards",
            *(f"--exclude={relative(path)}" for path in without),
            "--",
            *(relative(path) for path in paths),
        ],
        user=user,
        tolerated=frozenset({1}),
    )


def relative(path: Path) -> str:
    """Return a path as it is called from the root."""
    return os.path.normpath(path).lstrip("/")


def present(making: Making, paths: Sequence[Path]) -> list[Path]:
    """Return the paths that exist; the others are worth a warning."""
    for path in paths:
        if not os.path.lexists(path):
            making.report.warn(f"{path} does not exist, it is not in the set")
    return [path for path in paths if os.path.lexists(path)]


def make_n8n(making: Making) -> None:
    """Archive n8n's folders, list its community nodes, export workflows and credentials in n8n's own format."""
    settings = making.config.n8n
    assert settings is not None  # noqa: S101  (the part is on)
    making.versions["n8n"] = settings.release.resolve().name if settings.release.exists() else None
    paths = present(making, [path for path in (settings.data_dir, settings.scripts_dir, settings.files_dir) if path])
    making.pipe("n8n-data.tar.zst", "n8n", [tar(paths, [*settings.exclude, KEY_FILE]), ZSTD])
    nodes = json.dumps(community_nodes(making, settings), indent=1, sort_keys=True) + "\n"
    making.writer.add("community-nodes.json", "n8n", [nodes.encode()])
    if settings.cli is not None:
        export(making, settings, settings.cli)


def community_nodes(making: Making, settings: N8n) -> dict[str, Any]:
    """Return the community nodes: what the database says, and what lies in the user folders of this host."""
    folders = {}
    for path in sorted(settings.data_dir.glob("*/.n8n/nodes/package.json")):
        try:
            folders[str(path.parent)] = json.loads(path.read_text(encoding="utf-8")).get("dependencies", {})
        except (OSError, ValueError, AttributeError) as error:
            making.report.warn(f"{path} cannot be read: {error}")
    installed = None
    if making.config.database is not None:
        with database.session(making.config, making.config.database) as snapshot:
            installed = snapshot.community_nodes()
    return {"installed": installed, "folders": folders}


@contextmanager
def export_dir(settings: N8n) -> Iterator[Path]:
    """Give n8n a directory of its own, and remove it (and those of killed runs) with what it wrote."""
    with acting_as(settings.user):
        for left in settings.export_dir.glob(f"{EXPORT_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)
        path = Path(tempfile.mkdtemp(prefix=EXPORT_PREFIX, dir=settings.export_dir))
    try:
        yield path
    finally:
        with acting_as(settings.user):
            shutil.rmtree(path, ignore_errors=True)


def export(making: Making, settings: N8n, cli: Path) -> None:
    """Export workflows and credentials (these stay encrypted) by n8n's own command."""
    try:
        with export_dir(settings) as folder:
            for kind, noun in (("workflow", "workflows"), ("credentials", "credentials")):
                target = folder / noun
                with acting_as(settings.user):
                    target.mkdir(mode=0o700)
                run_export(cli, kind, target)
                making.pipe(f"{noun}.tar.zst", "n8n", [tar_folder(folder, noun), ZSTD])
    except OSError as error:
        raise BackupError(
            f"cannot use {settings.export_dir} for n8n's exports: {error.strerror}. It must belong to {settings.user}."
        ) from error


def run_export(cli: Path, kind: str, target: Path) -> None:
    """Have n8n write its workflows or credentials into a directory, one file each."""
    try:
        output(Command([cli, f"export:{kind}", "--backup", f"--output={target}/"]), timeout=EXPORT_SECONDS)
    except BackupError as error:
        if not any(text in str(error) for text in NOTHING):
            raise BackupError(f"n8n could not export ({kind}): {error}. Try: n8n export:{kind} --help") from error


def tar_folder(folder: Path, name: str) -> Command:
    """Return the program that archives one directory by its plain name."""
    return Command(["tar", "--create", "--file=-", f"--directory={folder}", "--", name])


def secret_paths(config: Config) -> list[Path]:
    """Return what only the encrypted bundle may hold."""
    return [config.secrets_dir, *(config.secrets.paths if config.secrets else ())]


def make_plain(making: Making, part: str, settings: Paths) -> None:
    """Archive files as they are, without what is secret."""
    paths = present(making, settings.paths)
    making.pipe(f"{part}.tar.zst", part, [tar(paths, [*settings.exclude, KEY_FILE], secret_paths(making.config)), ZSTD])


def make_configuration(making: Making) -> None:
    """Archive settings and units."""
    assert making.config.configuration is not None  # noqa: S101  (the part is on)
    make_plain(making, "configuration", making.config.configuration)


def make_certificates(making: Making) -> None:
    """Archive certificates and ACME accounts. They hold private keys: encrypted where there are recipients."""
    settings = making.config.certificates
    assert settings is not None  # noqa: S101  (the part is on)
    commands = [tar(present(making, settings.paths), settings.exclude), ZSTD]
    if making.config.secrets is None:
        making.pipe("certificates.tar.zst", "certificates", commands)
    else:
        making.pipe("certificates.tar.zst.age", "certificates", [*commands, age(making.config.secrets.age_recipients)])


def age(recipients: Sequence[str]) -> Command:
    """Return the program that encrypts for recipients: public keys, or files that list them."""
    words: list[str] = []
    for recipient in recipients:
        words += ["-R" if recipient.startswith("/") else "-r", recipient]
    return Command(["age", "--encrypt", *words])


def make_secrets(making: Making) -> None:
    """Archive the secrets, readable only with an identity that is not on this host."""
    settings = making.config.secrets
    assert settings is not None  # noqa: S101  (the part is on)
    paths = present(making, settings.paths)
    making.pipe("secrets.tar.zst.age", "secrets", [tar(paths), ZSTD, age(settings.age_recipients)])


MAKERS = {
    "database": make_database,
    "redis": make_redis,
    "n8n": make_n8n,
    "configuration": make_configuration,
    "certificates": make_certificates,
    "secrets": make_secrets,
}

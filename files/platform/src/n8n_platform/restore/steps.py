# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a restore on the host with the database; playbooks/restore.yml calls them in order.

Every step can be told apart afterwards by the record in ``restores/<id>.json``, so a rollback or an undo needs to
remember nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from n8n_platform import files
from n8n_platform.backup import fetch, manifest, s3, sets
from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import BackupError, UsageError
from n8n_platform.backup.pipeline import Command
from n8n_platform.backup.report import Report
from n8n_platform.restore import host as restore_host
from n8n_platform.restore import plan as restore_plan
from n8n_platform.restore import tools as restore_tools
from n8n_platform.restore.host import SAFETY, SAFETY_DATABASE, Host, until
from n8n_platform.restore.stock import LOGICAL, PHYSICAL, RESTORES

ARCHIVE_SECONDS = 60
START_SECONDS = 24 * 3600
# What the configuration says about archiving, whatever is set for the time of a restore.
CONFIGURED = (
    "SELECT coalesce((SELECT setting FROM pg_file_settings WHERE name = 'archive_command'"
    " AND sourcefile NOT LIKE '%auto.conf' ORDER BY seqno DESC LIMIT 1), '')"
)
# What pgBackRest and we set for the recovery alone.
RECOVERY = (
    "restore_command",
    "recovery_target",
    "recovery_target_time",
    "recovery_target_lsn",
    "recovery_target_action",
    "recovery_target_timeline",
)


class Record:
    """What is known of one restore; written before each step that changes something."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    @classmethod
    def new(cls, config: Config, plan: restore_plan.Plan) -> Record:
        """Begin a record."""
        now = datetime.now(UTC)
        folder = config.state_dir / RESTORES
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        name = restore_tools.free_stamp(lambda stamp: (folder / f"{stamp}.json").exists())
        record = cls(folder / f"{name}.json", {"id": name, "began": manifest.stamp(now), "status": "running"})
        record.note(plan=plan.as_json(), steps={})
        return record

    @classmethod
    def read(cls, config: Config, name: str) -> Record:
        """Read a record; ``latest`` is the newest one."""
        folder = config.state_dir / RESTORES
        names = sorted(path.stem for path in folder.glob("*.json"))
        chosen = names[-1] if name == "latest" and names else name
        if chosen not in names:
            raise UsageError(f"there is no record of a restore {name} in {folder}")
        return cls(folder / f"{chosen}.json", files.read_json(folder / f"{chosen}.json"))

    def note(self, **values: Any) -> None:
        """Add values."""
        self.values |= values
        files.write_json(self.path, self.values)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Remember how long a step took."""
        began = datetime.now(UTC)
        yield
        self.values["steps"][name] = round((datetime.now(UTC) - began).total_seconds(), 1)
        self.note()


class Restore:
    """The steps. ``fail_at`` names one that fails on purpose (for tests of the way back)."""

    def __init__(self, config: Config, host: Host, record: Record, fail_at: str = "") -> None:
        self.config = config
        self.host = host
        self.record = record
        self.fail_at = fail_at

    @property
    def plan(self) -> dict[str, Any]:
        """Return the plan that is carried out."""
        return dict(self.record.values["plan"])

    def _may_fail(self, name: str) -> None:
        if self.fail_at == name:
            raise BackupError(f"Step {name} failed on purpose.")

    # --- forward -------------------------------------------------------------------------------------------------

    def database(self) -> None:
        """Bring the data back: the whole server from pgBackRest, or n8n's database from a set."""
        with self.record.step("flush"):
            self._flush()
        if self.plan["kind"] == PHYSICAL:
            self._physical()
        else:
            self._logical()

    def _flush(self) -> None:
        """Have what the living server knows archived. The commit gives recovery something beyond a recent target."""
        server = self.host.server
        live = server.answers()
        system = self.host.system()
        self.record.note(
            was_live=live, had_data=bool(system), system=system, stopped_at=manifest.stamp(datetime.now(UTC))
        )
        if not live or self.plan["kind"] != PHYSICAL or server.sql("SHOW archive_mode") == "off":
            return
        server.sql("SELECT pg_current_xact_id()")
        last = server.sql("SELECT pg_walfile_name(pg_switch_wal())")
        query = f"SELECT coalesce(last_archived_wal, '') >= '{last}' FROM pg_stat_archiver"  # noqa: S608
        if not until(lambda: server.sql(query) == "t", ARCHIVE_SECONDS):
            self.record.note(warning=f"segment {last} was not archived within {ARCHIVE_SECONDS} s")

    def _set_aside(self) -> None:
        """Stop the server and rename its data, the safety copy."""
        postgres = self.host.postgres
        safety = f"{postgres.data_dir}{SAFETY}{self.record.values['id']}"
        # Known before it exists: whoever finds a renamed directory finds the way back here.
        self.record.note(safety={"directory": safety})
        self.host.stop_server()
        if postgres.data_dir.exists():
            postgres.data_dir.rename(safety)
        self._may_fail("safety")

    def _physical(self) -> None:
        plan, postgres = self.plan, self.host.postgres
        with self.record.step("safety copy"):
            self._set_aside()
        with self.record.step("restore"):
            restore_tools.owned_directory(postgres.data_dir, "postgres")
            self.host.pgbackrest(
                *restore_tools.physical_options(plan), f"--process-max={min(4, os.cpu_count() or 1)}", "restore"
            )
            with (postgres.data_dir / "postgresql.auto.conf").open("a", encoding="utf-8") as stream:
                stream.write(restore_tools.held_settings(int(plan["timeline"])))
            self._may_fail("restore")
        with self.record.step("recovery"):
            self.host.start_server(START_SECONDS)
            recovered = {**self.host.server.recovered(), "system": self.host.system()}
            self.record.note(recovered=recovered)
            self._prove_target(recovered)
            self._may_fail("recovery")

    def _prove_target(self, recovered: dict[str, Any]) -> None:
        """Check that recovery ended where it had to. PostgreSQL itself ends with an error short of the target."""
        plan = self.plan
        if int(recovered["timeline"]) <= int(plan["timeline"]):
            raise BackupError(
                f"The server came up on timeline {recovered['timeline']}, not on a new one after {plan['timeline']}."
            )
        with contextlib.suppress(ValueError):
            target = datetime.fromisoformat(plan["target"])
            if recovered["last_commit"] and datetime.fromisoformat(recovered["last_commit"]) > target:
                raise BackupError(f"Recovery went to {recovered['last_commit']}, beyond {plan['target']}.")

    def _logical(self) -> None:
        plan, postgres, server = self.plan, self.host.postgres, self.host.server
        with self.record.step("fetch"):
            folder = self._set_folder(plan)
        if not server.answers():
            with self.record.step("new cluster"):
                self._new_cluster()
        with self.record.step("safety copy"):
            safety = f"{postgres.database}{SAFETY_DATABASE}{self.record.values['id'].lower()}"
            self.record.note(safety={**self.record.values.get("safety", {}), "database": safety})
            if server.sql(f"SELECT 1 FROM pg_database WHERE datname = '{postgres.database}'"):  # noqa: S608
                restore_tools.rename_database(server, postgres.database, safety, connections=False)
            self._may_fail("safety")
        with self.record.step("restore"):
            name = json.dumps(postgres.database)
            owner = json.dumps(postgres.user)
            # For us alone until all is there: rows that a forgotten n8n writes between the tables and their constraints
            # would make the load fail.
            server.sql(f"CREATE DATABASE {name} OWNER {owner} TEMPLATE template0 ENCODING 'UTF8' CONNECTION LIMIT 0")
            restore_tools.load(folder, postgres, postgres.socket_dir, postgres.port)
            self._may_fail("restore")
        with self.record.step("statistics"):
            connection = ("-h", postgres.socket_dir, "-p", str(postgres.port), "-d", postgres.database)
            analyze = (postgres.bin_dir / "vacuumdb", "--analyze-only", "--quiet", "--jobs=2", *connection)
            self.host.run(Command(analyze, user="postgres"))
            self._may_fail("recovery")
        server.sql(f"ALTER DATABASE {name} CONNECTION LIMIT -1")

    def _set_folder(self, plan: dict[str, Any]) -> Path:
        """Return a directory with the files of the set, fetched from the object store when they are not here."""
        if "local" not in plan["places"]:
            store = s3.connect(self.config)
            if store is None:
                raise UsageError("no object store is set for this host")
            key = sets.signing_key(self.config)
            fetch.fetch(store, str(plan["set"]), self.config.sets_dir, key, Report(quiet=True))
        return self.config.sets_dir / str(plan["set"])

    def _new_cluster(self) -> None:
        """Make an empty cluster with the same configuration where there was none, or a broken one."""
        postgres = self.host.postgres
        self._set_aside()
        restore_tools.owned_directory(postgres.data_dir, "postgres")
        words = ("--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=peer")
        self.host.run(Command((postgres.bin_dir / "initdb", "-D", postgres.data_dir, *words), user="postgres"))
        with (postgres.data_dir / "postgresql.auto.conf").open("a", encoding="utf-8") as stream:
            stream.write("archive_command = '/bin/false'\n")
        self.record.note(new_cluster=True)
        self.host.start_server(START_SECONDS)
        self.host.server.sql(f"CREATE ROLE {json.dumps(postgres.user)} LOGIN")

    # --- checks --------------------------------------------------------------------------------------------------

    def check(self) -> dict[str, Any]:
        """Look at what came back; return its numbers. Raises :class:`BackupError` when something is wrong."""
        postgres, server = self.host.postgres, self.host.server
        with self.record.step("check"):
            last = server.last_migration(postgres.database)
            known = self.host.migrations()
            if known and last and int(last["timestamp"]) not in known:
                raise BackupError(
                    f"The restored data was migrated by a newer n8n than the one installed ({last['name']}):"
                    " install that version (n8n_version), then restore."
                )
            restore_tools.amcheck(
                self.host.run, postgres.bin_dir, postgres.socket_dir, postgres.port, postgres.database
            )
            if self.plan["kind"] == LOGICAL:
                self._compare_counts()
            numbers = server.counts(postgres.database, ["execution_entity", "workflow_entity", "credentials_entity"])
            self.record.note(restored=numbers, migration=last.get("name", ""))
        return numbers

    def _compare_counts(self) -> None:
        found = sets.look(sets.LocalShelf(self.config.sets_dir), self.plan["set"], sets.signing_key(self.config))
        expected = {name: int(count) for name, count in dict(found.document["database"]["tables"]).items()}
        actual = self.host.server.counts(self.host.postgres.database, list(expected))
        wrong = [
            f"{name}: {actual[name]} instead of {count}" for name, count in expected.items() if actual[name] != count
        ]
        if wrong:
            raise BackupError(f"Rows are missing or too many: {'; '.join(wrong)}.")

    # --- end, way back -------------------------------------------------------------------------------------------

    def proved(self) -> None:
        """Note that n8n runs and its canary came through: RTO and RPO are known now."""
        values, now = self.record.values, datetime.now(UTC)
        began = datetime.fromisoformat(values["began"])
        rpo = restore_tools.measured_rpo(values)
        self.record.note(status="proved", rto_seconds=round((now - began).total_seconds(), 1), rpo_seconds=rpo)

    def finish(self) -> None:
        """Let the server archive again and take a full backup on the new timeline."""
        server = self.host.server
        physical = self.config.physical
        archives = physical is not None and server.sql("SHOW archive_mode") != "off"
        if archives:
            # A new host has no local repository yet; where there is one this only checks it.
            self.host.pgbackrest("stanza-upgrade" if self.record.values.get("new_cluster") else "stanza-create")
        if archives and "pgbackrest" not in server.sql(CONFIGURED):
            # The role backup has not been here yet; what is let go before would be missing for ever.
            command = f"pgbackrest --stanza={self.host.stanza} archive-push %p"
            server.sql(f"ALTER SYSTEM SET archive_command = '{command}'")
        else:
            server.sql("ALTER SYSTEM RESET archive_command")
        for name in ("hot_standby", *RECOVERY):
            server.sql(f"ALTER SYSTEM RESET {name}")
        server.sql("SELECT pg_reload_conf()")
        self.record.note(status="done", finished=manifest.stamp(datetime.now(UTC)))
        if physical is None or not archives:
            return
        problems = []
        with self.record.step("full backup"):
            for repo in physical.repos:
                try:
                    self.host.pgbackrest(f"--repo={repo}", "--type=full", "backup")
                except BackupError as error:
                    problems.append(f"repository {repo}: {error}")
        self.record.note(backup_problems=problems)
        if problems:
            raise BackupError(
                "The restore is done and n8n runs, but the backup that must follow it failed"
                f" ({'; '.join(problems)}): find the cause, then systemctl start n8n-backup.service."
            )

    def rollback(self) -> str:
        """Put everything back as it was before; return a sentence on what there is now."""
        values, postgres, server = self.record.values, self.host.postgres, self.host.server
        safety = dict(values.get("safety", {}))
        if values.get("status") in ("rolled back", "done"):
            return f"Nothing to do: this restore is {values['status']}."
        if "database" in safety and "directory" not in safety:
            restore_tools.swap_database(server, postgres.database, safety["database"])
        elif "directory" in safety:
            directory = Path(safety["directory"])
            if directory.exists() or not values.get("had_data"):
                self.host.stop_server()
                failed = Path(f"{postgres.data_dir}{restore_host.FAILED}{values['id']}")
                if postgres.data_dir.exists():
                    postgres.data_dir.rename(failed)
                if directory.exists():
                    directory.rename(postgres.data_dir)
                shutil.rmtree(failed, ignore_errors=True)
        self.record.note(status="rolled back", finished=manifest.stamp(datetime.now(UTC)))
        if not values.get("had_data", True):
            return "There was no usable database before, so there is nothing to go back to: n8n stays stopped."
        if values.get("was_live", True) and not server.answers():
            self.host.start_server(START_SECONDS)
        return "Everything is as it was before."

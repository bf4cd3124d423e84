# SPDX-License-Identifier: GPL-3.0-or-later
"""The restore drill: a backup is brought back beside the running platform, checked, and made to run a workflow.

Everything heavy runs as transient units of systemd with a memory limit. A drill that was killed leaves them and its
directory behind; the next one, and the unit's own last step, removes both.
"""

from __future__ import annotations

import contextlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from n8n_platform.backup import fetch, manifest, s3, sets
from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import BackupError, SpaceError, UsageError
from n8n_platform.backup.pipeline import Command
from n8n_platform.backup.report import Report, human_size
from n8n_platform.restore import n8n as restore_n8n
from n8n_platform.restore import plan as restore_plan
from n8n_platform.restore import stock as restore_stock
from n8n_platform.restore import tools as restore_tools
from n8n_platform.restore.drill_server import N8N_UNIT, POSTGRES_UNIT, TASK_UNIT, Scratch
from n8n_platform.restore.host import Host, until
from n8n_platform.restore.points import choose_backup, lineage
from n8n_platform.restore.stock import LOGICAL, PHYSICAL

WORKFLOW = "platformVerify01"
READY_SECONDS = 240
CANARY_SECONDS = 90
NUMBERS, SUM = [19, 23], 42
HTTP_OK = 200


@dataclass
class Outcome:
    """What a drill found. ``evidence`` says what was checked, ``problems`` what did not hold."""

    kind: str = ""
    backup: str = ""
    set: str = ""
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    rto_seconds: float | None = None
    rpo_seconds: float | None = None
    data_as_of: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the record."""
        return {
            "at": manifest.stamp(self.began),
            "result": "failed" if self.problems else "ok",
            "kind": self.kind,
            "backup": self.backup,
            "set": self.set,
            "rto_seconds": self.rto_seconds,
            "rpo_seconds": self.rpo_seconds,
            "data_as_of": self.data_as_of,
            "evidence": self.evidence,
            "steps": self.steps,
            "problems": self.problems,
        }


class Drill:
    """One drill."""

    def __init__(self, config: Config, host: Host, report: Report) -> None:
        self.config = config
        self.host = host
        self.report = report
        self.settings = host.layout.drill
        self.outcome = Outcome()
        self.scratch = Scratch(host)
        self.server = self.scratch.server

    # --- frame ---------------------------------------------------------------------------------------------------

    def run(self, chosen_set: str) -> Outcome:
        """Do all of it; the outcome holds what went wrong."""
        try:
            with self._step("choose"):
                self._choose(chosen_set)
            self._prepare()
            if self.outcome.kind == PHYSICAL:
                self._physical()
            else:
                self._logical()
            self._check()
            if self.host.layout.n8n is None:
                self.outcome.evidence["n8n"] = "not installed on this host, the drill ends with the database"
            else:
                self._n8n()
            self.outcome.rto_seconds = round((datetime.now(UTC) - self.outcome.began).total_seconds(), 1)
        except BackupError as error:
            self.outcome.problems.append(str(error))
        finally:
            self.scratch.clean()
        return self.outcome

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        began = datetime.now(UTC)
        yield
        seconds = round((datetime.now(UTC) - began).total_seconds(), 1)
        self.outcome.steps[name] = seconds
        self.report.say(f"{seconds:7.1f} s  {name}")

    def _prepare(self) -> None:
        """Clean up after others, make sure of the room, create the directories."""
        self.scratch.clean()
        directory = self.settings.directory
        needed, free = (
            int(self.outcome.evidence["bytes"] * 1.2) + restore_stock.RESERVE_BYTES,
            restore_stock.room(directory),
        )
        if needed > free:
            raise SpaceError(f"{directory} has {human_size(free)} free, the drill needs {human_size(needed)}.")
        self.scratch.create()

    def _choose(self, chosen_set: str) -> None:
        """Decide what is restored: the newest backup of pgBackRest, else the newest set, or the one that was named."""
        stock = restore_stock.read_stock(self.config, self.host)
        outcome = self.outcome
        live = self.host.server
        self.transactions = live.transactions() if live.answers() else sys.maxsize
        if not chosen_set and stock.repositories.backups:
            planner = restore_plan.Planner(self.config, self.host, stock, outcome.began)
            timeline = planner.live_timeline()
            self.backup = choose_backup(
                stock.repositories.backups, lineage(timeline, self.host.history(timeline)), None
            )
            if self.backup is None:
                raise BackupError("No backup of pgBackRest belongs to the timeline of the running database.")
            self.timeline = timeline
            outcome.kind, outcome.backup = PHYSICAL, self.backup.label
            outcome.evidence["bytes"] = self.backup.size
            labelled = [
                one for one in stock.sets if self.backup.label in json.dumps(one.found.document.get("physical"))
            ]
            outcome.set = labelled[-1].found.id if labelled else ""
            good = [one for one in stock.sets if one.found.document.get("database") and not one.found.problem]
            self.document = dict((labelled or good)[-1].found.document) if labelled or good else {}
            return
        good = [place for place in stock.sets if place.found.document.get("database") and not place.found.problem]
        fit = [place for place in good if chosen_set in ("", sets.LATEST, place.found.id)]
        if not fit:
            bad = [place.found.problem for place in stock.sets if place.found.id == chosen_set and place.found.problem]
            raise UsageError(bad[0] if bad else f"There is no set {chosen_set or 'of this database'} to restore.")
        self.place = fit[-1]
        self.document = dict(self.place.found.document)
        outcome.kind, outcome.set = LOGICAL, self.place.found.id
        outcome.evidence["bytes"] = int(self.document["database"].get("size_bytes") or 0) + self.place.found.size

    # --- the database --------------------------------------------------------------------------------------------

    def _physical(self) -> None:
        directory, postgres, backup = self.settings.directory, self.host.postgres, self.backup
        assert backup is not None  # noqa: S101  (chosen before)
        own: tuple[str, ...] = (f"--pg1-path={self.scratch.data}", f"--lock-path={directory}/lock")
        own += ("--log-level-file=off", "--no-archive-async")
        with self._step(f"restore {backup.label}"):
            chosen = (
                f"--set={backup.label}",
                f"--repo={backup.repo}",
                "--type=default",
                f"--target-timeline=0x{self.timeline:X}",
                "--archive-mode=off",
                "--process-max=2",
            )
            begin = ("pgbackrest", f"--stanza={self.host.stanza}", "--log-level-console=warn", "--log-level-file=off")
            self.scratch.task(
                *begin, f"--pg1-path={self.scratch.data}", f"--lock-path={directory}/lock", *chosen, "restore"
            )
            get = " ".join(("pgbackrest", f"--stanza={self.host.stanza}", *own, "archive-get", "%f", '"%p"'))
            with (self.scratch.data / "postgresql.auto.conf").open("a", encoding="utf-8") as stream:
                stream.write(f"restore_command = '{get}'\nrecovery_target_timeline = '0x{self.timeline:X}'\n")
        with self._step("recovery"):
            self.scratch.start(quarantine=False, seconds=self.settings.timeout_seconds)
            recovered = self.server.recovered()
            self.outcome.evidence["recovered"] = recovered
            # Without a commit since the backup there was nothing to replay, and nothing to lose.
            last = datetime.fromisoformat(recovered["last_commit"] or manifest.stamp(backup.stopped))
            self.outcome.data_as_of = last.isoformat()
            behind = max(0.0, round((self.outcome.began - last).total_seconds(), 1))
            # A server at rest has nothing newer than an old last commit: then nothing would be lost.
            self.outcome.rpo_seconds = 0.0 if self.server.transactions() >= self.transactions else behind
        with self._step("page checksums"):
            self.host.systemctl("stop", POSTGRES_UNIT)
            self.scratch.task(postgres.bin_dir / "pg_checksums", "--check", "-D", self.scratch.data)
            self.outcome.evidence["pg_checksums"] = "ok"
            self.scratch.start(quarantine=True, seconds=READY_SECONDS)

    def _logical(self) -> None:
        postgres, directory = self.host.postgres, self.settings.directory
        folder = self.config.sets_dir / self.outcome.set
        if "local" not in self.place.places:
            with self._step("fetch"):
                store = s3.connect(self.config)
                if store is None:
                    raise UsageError("no object store is set for this host")
                key = sets.signing_key(self.config)
                folder = fetch.fetch(store, self.outcome.set, directory / "sets", key, self.report)
        with self._step(f"restore {self.outcome.set}"):
            words = (
                "--data-checksums",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--auth=peer",
                "--no-sync",
                "-D",
                self.scratch.data,
            )
            self.scratch.task(postgres.bin_dir / "initdb", *words)
            self.scratch.start(quarantine=True, seconds=READY_SECONDS)
            name, owner = json.dumps(postgres.database), json.dumps(postgres.user)
            self.server.sql(f"CREATE ROLE {owner} LOGIN")
            self.server.sql(f"CREATE DATABASE {name} OWNER {owner} TEMPLATE template0 ENCODING 'UTF8'")
            restore_tools.load(folder, postgres, self.scratch.socket, self.settings.postgres_port, account="")
        taken = datetime.fromisoformat(str(self.document["started_at"]))
        self.outcome.data_as_of = manifest.stamp(taken)
        self.outcome.rpo_seconds = round((self.outcome.began - taken).total_seconds(), 1)

    def _check(self) -> None:
        postgres, outcome = self.host.postgres, self.outcome
        where = (self.host.run, postgres.bin_dir, self.scratch.socket, self.settings.postgres_port, postgres.database)
        with self._step("tables and indexes"):
            restore_tools.amcheck(*where, "--heapallindexed", "--parent-check", account="")
            outcome.evidence["pg_amcheck"] = "ok"
        with self._step("rows"):
            expected = {
                name: int(count) for name, count in dict(self.document.get("database", {}).get("tables", {})).items()
            }
            actual = self.server.counts(postgres.database, list(expected) or ["execution_entity", "workflow_entity"])
            if outcome.kind == LOGICAL:
                wrong = [
                    f"{name}: {actual[name]} instead of {count}"
                    for name, count in expected.items()
                    if actual[name] != count
                ]
            else:
                # The backup goes on to the newest archived moment, so rows were added and pruned since the manifest.
                wrong = [f"{name} is missing" for name in expected if actual[name] < 0]
            if wrong:
                raise BackupError(f"The restored rows are not those of the manifest: {'; '.join(wrong)}.")
            outcome.evidence["tables"] = len(actual)
            outcome.evidence["rows"] = sum(count for count in actual.values() if count > 0)

    # --- n8n -----------------------------------------------------------------------------------------------------

    def variables(self) -> dict[str, str]:
        """Return what n8n must believe: the scratch database, one process, no queue, no way out."""
        port = self.settings.n8n_port
        return {
            "DB_POSTGRESDB_HOST": str(self.scratch.socket),
            "DB_POSTGRESDB_PORT": str(self.settings.postgres_port),
            "DB_POSTGRESDB_SSL_ENABLED": "false",
            "DB_POSTGRESDB_SSL_CA_FILE": "",
            "DB_POSTGRESDB_POOL_SIZE": "4",
            "EXECUTIONS_MODE": "regular",
            "OFFLOAD_MANUAL_EXECUTIONS_TO_WORKERS": "false",
            "N8N_DISABLE_PRODUCTION_MAIN_PROCESS": "false",
            "EXECUTIONS_DATA_PRUNE": "false",
            "N8N_RUNNERS_MODE": "internal",
            "N8N_RUNNERS_BROKER_PORT": str(port + 1),
            "N8N_PORT": str(port),
            "N8N_LISTEN_ADDRESS": "127.0.0.1",
            "N8N_PROTOCOL": "http",
            "N8N_EVENTBUS_LOGWRITER_LOGFULLPATH": "/tmp/events.log",  # noqa: S108  (the unit's own memory)
            "N8N_COMMUNITY_PACKAGES_ENABLED": "false",
            "N8N_METRICS": "false",
            "QUEUE_HEALTH_CHECK_ACTIVE": "false",
            "N8N_LOG_FORMAT": "text",
            "NO_COLOR": "1",
        }

    def _n8n(self) -> None:
        n8n, database = self.host.layout.n8n, self.host.postgres.database
        assert n8n is not None  # noqa: S101  (the caller looked)
        variables, limit = self.variables(), self.settings.n8n_memory_mb
        secrets = self.config.secrets_dir
        with self._step("credentials"):
            expected = int(self.server.sql("SELECT count(*) FROM credentials_entity", database))
            count = restore_n8n.decrypt_credentials(self.host.run, n8n, secrets, expected, variables)
            self.outcome.evidence["credentials_decrypted"] = count
        with self._step("canary workflow"):
            self.outcome.evidence["unpublished"] = restore_tools.unpublish(self.server, database, but=WORKFLOW)
            published = (
                f"SELECT count(*) FROM workflow_entity WHERE id = '{WORKFLOW}' AND \"activeVersionId\" IS NOT NULL"  # noqa: S608
            )
            if self.server.sql(published, database) == "0":
                for words in (f"import:workflow --input={self.settings.canary}", f"publish:workflow --id={WORKFLOW}"):
                    command = restore_n8n.command(
                        n8n, TASK_UNIT, words, secrets, variables, limit, restore_n8n.QUARANTINE
                    )
                    self.host.run(command, timeout=READY_SECONDS)
            command = restore_n8n.command(
                n8n, N8N_UNIT, "start", secrets, variables, limit, restore_n8n.QUARANTINE, wait=False
            )
            self.host.run(command, timeout=60)
            self.outcome.evidence["canary_execution"] = self._canary(database)

    def _canary(self, database: str) -> int:
        """Send the canary its webhook and return the execution's id when it has been stored as a success."""
        address = f"http://127.0.0.1:{self.settings.n8n_port}"
        answer: dict[str, Any] = {}

        def ready() -> bool:
            return not self.scratch.active(N8N_UNIT) or ask(f"{address}/healthz/readiness") is not None

        def answered() -> bool:
            body = {"numbers": NUMBERS, "token": "drill"}
            answer.update(ask(f"{address}/webhook/platform-verify", body) or {})
            return answer.get("sum") == SUM

        if not until(ready, READY_SECONDS) or not self.scratch.active(N8N_UNIT):
            words = ("journalctl", "--no-pager", "-o", "cat", "-n", "3", "-u", N8N_UNIT)
            raise BackupError(f"n8n does not start on the restored database: {self.host.run(Command(words)).strip()}")
        if not until(answered, CANARY_SECONDS):
            raise BackupError("The canary workflow did not answer.")
        execution = int(answer["execution"])
        query = f"SELECT status FROM execution_entity WHERE id = {execution}"  # noqa: S608
        if not until(lambda: self.server.sql(query, database) == "success", CANARY_SECONDS):
            raise BackupError(f"The canary's execution {execution} is not stored as a success.")
        return execution


def ask(address: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Return a JSON answer of this host, None while there is none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})  # noqa: S310  (loopback)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            found = json.loads(answer.read() or b"{}")
            return found if answer.status == HTTP_OK and isinstance(found, dict) else None
    except (urllib.error.URLError, OSError, ValueError):
        return None

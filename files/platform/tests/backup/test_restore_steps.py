"""The steps of a restore on a host whose directories are real and whose programs are stand-ins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from n8n_platform import files
from n8n_platform.backup.config import Config, Redis
from n8n_platform.backup.errors import BackupError, UsageError
from n8n_platform.backup.pipeline import Command
from n8n_platform.restore import commands as restore
from n8n_platform.restore import host as restore_host
from n8n_platform.restore import n8n as restore_n8n
from n8n_platform.restore import steps as restore_steps
from n8n_platform.restore import tools as restore_tools

from files.platform.tests.backup.restore_fakes import FakeHost
from files.platform.tests.backup.test_restore_plan import SET, config, fake, write_set

__all__ = ["config", "fake"]

RECOVERED = '{"timeline": 2, "lsn": "0/9000000", "last_commit": "2026-11-21T11:59:59+00:00"}'
MOMENT = "2026-11-21 12:00:00+00:00"


@pytest.fixture
def run(
    config: Config, fake: FakeHost, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: Any
) -> Any:
    """Return a function that runs a command of `restore` and returns (code, last JSON or text, errors)."""
    fake.sql |= {
        "SHOW archive_mode": "on",
        "pg_walfile_name(pg_switch_wal": "00000001000000000000000C",
        "last_archived_wal": "t",
        "substr(pg_walfile_name": RECOVERED,
        "to_regclass('public.migrations')": "migrations",
        "ORDER BY timestamp DESC": '{"name": "First", "timestamp": 1700000000000}',
        "json_array_elements_text": '{"workflow_entity": 1, "credentials_entity": 1, "execution_entity": 5}',
        "pg_file_settings": "pgbackrest --stanza=n8n archive-push %p",
        "pg_terminate_backend": "0",
        "SELECT count(*) FROM changed": "3",
        "count(*) FROM pg_stat": "0",
    }
    layout = fake.layout()
    monkeypatch.setattr(restore_host, "load", lambda path=None: layout)
    monkeypatch.setattr(restore, "Host", lambda layout, stanza: restore_host.Host(layout, stanza, fake))
    monkeypatch.setattr(restore_steps, "ARCHIVE_SECONDS", 0)
    loaded: list[Any] = []
    monkeypatch.setattr(restore_tools, "pour", lambda path, commands: loaded.append((commands, path.read_bytes())))
    fake.loaded = loaded  # type: ignore[attr-defined]

    def command(*words: str, using: Config = config) -> tuple[int, Any, str]:
        code, out, err = call("restore", *words, using=using)
        try:
            return code, json.loads(out.splitlines()[-1]), err
        except (ValueError, IndexError):
            return code, out, err

    return command


def begun(run: Any, *wish: str, using: Config | None = None) -> str:
    code, answer, err = run("prepare", *wish, **({"using": using} if using else {}))
    assert code == 0, err
    return str(answer["id"])


def test_list_and_plan_speak_to_people_and_programs(run: Any) -> None:
    assert SET in run("list")[1]
    assert run("list", "--json")[1]["sets"] == 1
    assert run("plan", "--set", "latest")[0] == 0
    assert run("plan", "--set", "nonsense")[0] == 1
    assert run("plan", "--set", "nonsense", "--json")[1]["refused"]
    code, _, err = run("prepare", "--set", "nonsense")
    assert code == 1
    assert "neither" in err


def test_a_whole_physical_restore(run: Any, fake: FakeHost, config: Config) -> None:
    name = begun(run, "--time", MOMENT)
    assert run("database", name)[0] == 0
    (copy,) = fake.root.glob("main.before-restore-*")
    assert (copy / "PG_VERSION").exists()
    settings = (fake.root / "main/postgresql.auto.conf").read_text(encoding="utf-8")
    assert "archive_command = '/bin/false'" in settings
    assert "recovery_target_timeline = '0x1'" in settings
    restored = next(call for call in fake.calls if call.endswith("restore"))
    assert f"--target-timeline=0x1 --type=time --target={MOMENT} --target-action=promote" in restored
    assert run("check", name)[1]["answer"]["execution_entity"] == 5
    assert run("proved", name)[1]["record"]["rpo_seconds"] == 0.0
    assert run("finish", name)[0] == 0
    assert any("--type=full backup" in call for call in fake.calls)
    assert run("rollback", name)[1]["answer"] == "Nothing to do: this restore is done."
    record = files.read_json(config.state_dir / "restores" / f"{name}.json")
    assert record["status"] == "done"
    assert set(record["steps"]) >= {"flush", "safety copy", "restore", "recovery", "check", "full backup"}


@pytest.mark.parametrize("step", ["safety", "restore", "recovery"])
def test_every_failure_goes_back(run: Any, fake: FakeHost, step: str) -> None:
    name = begun(run, "--set", "latest")
    code, _, err = run("database", name, "--fail-at", step)
    assert (code, f"Step {step} failed on purpose" in err) == (1, True)
    fake.live = False
    assert run("rollback", name)[1]["answer"] == "Everything is as it was before."
    assert [path.name for path in fake.root.glob("main*")] == ["main"]
    assert (fake.root / "main/PG_VERSION").exists()


def test_without_data_before_there_is_nothing_to_go_back_to(run: Any, fake: FakeHost) -> None:
    fake.empty()
    fake.live = False
    name = begun(run, "--set", "latest")
    assert run("database", name, "--fail-at", "restore")[0] == 1
    assert "nothing to go back to" in run("rollback", name)[1]["answer"]


def test_recovery_that_ends_elsewhere_fails(run: Any, fake: FakeHost) -> None:
    name = begun(run, "--time", MOMENT)
    fake.sql["substr(pg_walfile_name"] = RECOVERED.replace('"timeline": 2', '"timeline": 1')
    assert "not on a new one" in run("database", name)[2]
    fake.sql["substr(pg_walfile_name"] = RECOVERED.replace("11:59", "12:59")
    fake.fill()
    assert "beyond" in run("database", begun(run, "--time", MOMENT))[2]


def test_a_server_that_does_not_start_says_why(run: Any, fake: FakeHost) -> None:
    name = begun(run, "--time", MOMENT)
    fake.states["postgresql.service"] = "NRestarts=1\nActiveState=activating\n"
    fake.said = "FATAL:  recovery ended before configured recovery target was reached\n"
    assert "ends before the wanted time" in run("database", name)[2]
    fake.said = "P00   ERROR: [082]: cannot reach it\n"
    with pytest.raises(BackupError, match="cannot reach it"):
        restore_host.Host(fake.layout(), "n8n", fake).start_server(1)


def test_a_whole_logical_restore_and_its_undo(run: Any, fake: FakeHost, config: Config) -> None:
    (config.sets_dir / SET / "database.dump.zst").write_bytes(b"PGDMP")
    name = begun(run, "--set", SET)
    fake.sql["datname = 'n8n'"] = "1"
    assert run("database", name)[0] == 0
    assert any('RENAME TO "n8n_before_restore_' in call for call in fake.calls)
    assert fake.loaded[0][1] == b"PGDMP"  # type: ignore[attr-defined]
    assert run("check", name)[0] == 0
    safety = files.read_json(config.state_dir / "restores" / f"{name}.json")["safety"]["database"]
    fake.sql["starts_with"] = safety
    assert run("undo")[1]["safety"] == safety
    fake.sql = {f"datname = '{safety}'": "1", **fake.sql}
    assert run("undo", "--confirm")[0] == 0
    assert any(f'ALTER DATABASE "{safety}" RENAME TO "n8n"' in call for call in fake.calls)
    assert run("purge", safety)[1] == {"removed": safety}


def test_a_failed_logical_restore_goes_back(run: Any, fake: FakeHost, config: Config) -> None:
    with (config.sets_dir / SET / "database.sql.gz").open("wb") as stream:
        stream.write(b"SELECT 1;")
    name = begun(run, "--set", SET)
    assert run("database", name, "--fail-at", "recovery")[0] == 1
    assert fake.loaded[0][1] == b"SELECT 1;"  # type: ignore[attr-defined]
    assert run("rollback", name)[1]["answer"] == "Everything is as it was before."
    assert any("ALLOW_CONNECTIONS true" in call for call in fake.calls)


def test_a_set_needs_a_cluster_and_gets_one(run: Any, fake: FakeHost, config: Config) -> None:
    (config.sets_dir / SET / "database.dump.zst").write_bytes(b"PGDMP")
    fake.live = False
    name = begun(run, "--set", SET)
    assert run("database", name)[0] == 0
    assert any("initdb" in call for call in fake.calls)
    fake.sql["pg_file_settings"] = "true"
    assert run("finish", name)[0] == 0
    assert any("stanza-upgrade" in call for call in fake.calls)
    assert any("ALTER SYSTEM SET archive_command = 'pgbackrest" in call for call in fake.calls)


def test_wrong_rows_fail_the_check(run: Any, fake: FakeHost, config: Config) -> None:
    (config.sets_dir / SET / "database.dump.zst").write_bytes(b"PGDMP")
    write_set(config, tables={"workflow_entity": 2})
    name = begun(run, "--set", SET)
    assert run("database", name)[0] == 0
    assert "workflow_entity: 1 instead of 2" in run("check", name)[2]


def test_data_of_a_newer_n8n_fails_the_check(run: Any, fake: FakeHost) -> None:
    name = begun(run, "--set", "latest")
    fake.sql["ORDER BY timestamp DESC"] = '{"name": "Future", "timestamp": 2999999999999}'
    assert "migrated by a newer n8n" in run("check", name)[2]


def test_a_failing_backup_at_the_end_is_said(run: Any, fake: FakeHost) -> None:
    name = begun(run, "--set", "latest")
    fake.fail = ("--type=full",)
    assert "The restore is done and n8n runs" in run("finish", name)[2]


def test_going_back_to_a_directory_swaps(run: Any, fake: FakeHost) -> None:
    name = begun(run, "--set", "latest")
    assert run("database", name)[0] == 0
    (fake.root / "main/new").touch()
    assert run("undo", name, "--confirm")[0] == 0
    assert (fake.root / "main/PG_VERSION").exists()
    (kept,) = fake.root.glob("main.before-restore-*")
    assert (kept / "new").exists()
    assert run("purge")[1] == {"copies": [str(kept)]}
    assert run("purge", "/etc")[0] == 2
    assert run("purge", str(kept))[0] == 0
    assert "is gone" in run("undo", name)[2]
    assert run("undo", "20200101T000000Z")[0] == 2


def test_small_commands(run: Any, fake: FakeHost, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("unpublish")[1] == {"workflows": 3, "executions": 3}
    assert run("backup")[1] == {"repositories": [1]}
    fake.said = "Successfully exported 2 credentials."
    assert run("credentials", "--expected", "2")[1] == {"credentials": 2}
    assert run("credentials", "--expected", "0")[1] == {"credentials": 0}
    assert "Only 2 of 3" in run("credentials", "--expected", "3")[2]
    fake.said = "Error exporting credentials. Credentials could not be decrypted"
    assert "cannot be decrypted" in run("credentials", "--expected", "1")[2]

    class Client:
        def scan_iter(self, match: str, count: int) -> list[str]:
            return ["a", "b"] if match == "n8n-test:*" else []

        def unlink(self, key: str) -> int:
            return 1

    monkeypatch.setattr(restore_tools, "connect_redis", lambda config, settings: Client())
    using = replace(config, redis=(Redis(Path("/rdb")),))
    assert run("empty-queue", using=using)[1] == {"removed": 2, "prefix": "n8n-test"}
    bare = restore_host.Layout(None, None, "n8n")
    monkeypatch.setattr(restore_host, "load", lambda path=None: bare)
    assert run("credentials", "--expected", "1")[0] == 2


def test_programs_of_n8n_get_secrets_by_file_and_no_way_out(fake: FakeHost) -> None:
    n8n = fake.layout().n8n
    assert n8n is not None
    words = [
        str(word)
        for word in restore_n8n.command(n8n, "u", "start", Path("/s"), {"A": "b c"}, 800, ("X=y",), False).words
    ]
    assert "--property=LoadCredential=n8n_encryption_key:/s/n8n_encryption_key" in words
    assert "export A='b c'" in words[-1]
    assert "--max-old-space-size=400" in words[-1]
    assert "--wait" not in words


def test_pouring_a_file_into_a_program(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x")
    restore_tools.pour(tmp_path / "in", [Command(["cat"])])
    with pytest.raises(BackupError, match="sh failed"):
        restore_tools.pour(tmp_path / "in", [Command(["cat"]), Command(["sh", "-c", "echo no >&2; exit 3"])])


def test_rpo_is_zero_where_all_that_was_asked_for_is_there() -> None:
    values: dict[str, Any] = {"plan": {"target": "newest"}, "stopped_at": "2026-11-21T12:00:09+00:00"}
    assert restore_tools.measured_rpo(values) is None
    values["recovered"] = {"last_commit": "2026-11-21T12:00:00+00:00"}
    assert restore_tools.measured_rpo(values) == 9.0
    values["system"] = "7000000000000000001"
    values["recovered"]["system"] = "7000000000000000002"
    assert restore_tools.measured_rpo(values) is None


def test_waiting_has_an_end() -> None:
    assert not restore_host.until(lambda: False, 0)


def test_records_must_exist(config: Config) -> None:
    with pytest.raises(UsageError):
        restore_steps.Record.read(config, "latest")

"""Settings, state, what people read, and how the services of a host are asked."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from n8n_platform.backup import config as settings
from n8n_platform.backup import database, physical, redis_dump, report, state
from n8n_platform.backup.config import Config, Database, Gfs, Redis
from n8n_platform.backup.errors import BackupError, PlaceError, UnusableError

from files.platform.tests.backup.backup_fakes import DATABASE_RULES, FakeRedis
from files.platform.tests.fakes import FakeConnection

# --- settings --------------------------------------------------------------------------------------------------------

MINIMAL = {"environment": "e", "host": "h", "sets_dir": "/sets", "secrets_dir": "/secrets"}
COMPLETE = {
    **MINIMAL,
    "database": {"bin_dir": "/bin", "count_tables": "all", "hash_tables": ["a"]},
    "redis": [{"name": "queue", "rdb": "/dump.rdb"}],
    "n8n": {"data_dir": "/data", "export_dir": "/exports", "files_dir": None, "cli": None, "exclude": ["x"]},
    "configuration": {"paths": ["/etc"]},
    "certificates": None,
    "secrets": {"paths": ["/secrets"], "age_recipients": ["age1x"]},
    "physical": {"repos": [1, 2]},
    "s3": {"url": "https://s3", "bucket": "b", "access_key": "k"},
    "retention": {"gfs": {"daily": 7}},
    "drill": {"port": 5433},
    "maximum_age_hours": None,
}


def written(tmp_path: Path, values: Any) -> Path:
    """Write a settings file."""
    path = tmp_path / "settings.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


def test_settings_are_read(tmp_path: Path) -> None:
    found = settings.load(written(tmp_path, COMPLETE))
    assert found.parts == ("database", "redis", "n8n", "configuration", "secrets")
    assert found.database is not None
    assert (found.database.bin_dir, found.database.count_tables) == (Path("/bin"), ("all",))
    assert found.redis[0].rdb == Path("/dump.rdb")
    assert found.n8n is not None
    assert (found.n8n.cli, found.n8n.files_dir, found.n8n.exclude) == (None, None, ("x",))
    assert found.secrets is not None
    assert found.secrets.paths == (Path("/secrets"),)
    assert found.physical is not None
    assert found.physical.repos == (1, 2)
    assert found.retention.gfs == Gfs(daily=7)
    assert found.drill == {"port": 5433}
    assert found.maximum_age_hours == 26
    assert settings.load(written(tmp_path, MINIMAL)).parts == ()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ("", "Expecting value"),
        ("[]", "not usable"),
        ({}, "missing"),
        ({**MINIMAL, "nonsense": 1}, "has no setting nonsense"),
        ({**MINIMAL, "database": {"nonsense": 1}}, "database has no setting nonsense"),
        ({**MINIMAL, "database": {"compression": "lz4"}}, "not one of zstd, gzip"),
        ({**MINIMAL, "retention": {"gfs": {"hourly": 1}}}, r"retention\.gfs has no setting hourly"),
        ({**MINIMAL, "secrets": {"paths": [], "age_recipients": []}}, "without a recipient"),
        ({**MINIMAL, "redis": [{"name": "queue"}]}, "missing"),
    ],
)
def test_unusable_settings_say_what_is_wrong(tmp_path: Path, values: Any, words: str) -> None:
    with pytest.raises(UnusableError, match=words) as raised:
        settings.load(written(tmp_path, values))
    assert "Run the role backup again" in str(raised.value)
    with pytest.raises(UnusableError, match="The role backup writes it"):
        settings.load(tmp_path / "none.json")


def test_secrets_come_from_credentials_first(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "backup_manifest_key").write_text("from-systemd\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert config.secret("backup_manifest_key") == "from-systemd"
    assert config.secret("n8n_encryption_key") == "n8n_encryption_key-value"
    with pytest.raises(UnusableError, match="cannot read the secret none"):
        config.secret("none")


# --- database --------------------------------------------------------------------------------------------------------


class ServerError(Exception):
    """What psycopg raises."""


def use_psycopg(monkeypatch: pytest.MonkeyPatch, connection: Any) -> dict[str, Any]:
    """Put a stand-in where psycopg is; return what it is given."""
    given: dict[str, Any] = {}

    def connect(**options: Any) -> Any:
        given.update(options)
        if isinstance(connection, Exception):
            raise connection
        return connection

    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "psycopg", SimpleNamespace(connect=connect, Error=ServerError))
    monkeypatch.setitem(sys.modules, "psycopg.rows", SimpleNamespace(dict_row=dict))
    return given


def test_a_session_is_one_snapshot(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    connection: Any = FakeConnection(DATABASE_RULES)
    closed: list[bool] = []
    connection.close = lambda: closed.append(True)
    given = use_psycopg(monkeypatch, connection)
    with database.session(config, Database()) as snapshot:
        assert snapshot.id == "0001-1"
    assert closed == [True]
    said = [statement for statement, _ in connection.statements]
    assert said[1] == "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    assert "statement_timeout=0" in given["options"]
    assert "password" not in given


def test_a_server_that_is_down(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    use_psycopg(monkeypatch, ServerError("connection refused\n"))
    words = r"does not let us in \(.*connection refused\. Is it running"
    with pytest.raises(BackupError, match=words), database.session(config, Database()):
        pass
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UnusableError, match="python3-psycopg"), database.session(config, Database()):
        pass


def test_errors_in_the_middle() -> None:
    def fail(values: Mapping[str, Any]) -> list[dict[str, Any]]:
        raise ServerError("canceling statement due to lock timeout")

    snapshot = database.Snapshot(FakeConnection({"pg_database_size": fail}), (ServerError,))
    with pytest.raises(BackupError, match="lock timeout"):
        snapshot.size()


def test_a_database_before_its_first_migration() -> None:
    snapshot = database.Snapshot(FakeConnection({"to_regclass": [{"v": False}]}))
    assert snapshot.last_migration() is None
    assert snapshot.community_nodes() == []
    assert database.Snapshot(FakeConnection({"to_regclass": [{"v": True}]})).last_migration() is None


def test_the_dump_runs_as_the_database_user(config: Config) -> None:
    command, packer = database.dump_commands(replace(config, user="postgres"), Database(), "1-1")
    assert command.user == "postgres"
    assert packer.words[:2] == ["zstd", "-3"]
    assert "--username=postgres" in command.words
    assert database.dump_file(Database()) == "database.dump.zst"


def test_another_database_is_dumped_by_a_snapshot_of_its_own(config: Config) -> None:
    command, _packer = database.dump_commands(config, Database(others=("n8n_bridge",)), "", "n8n_bridge")
    assert command.words[-1] == "n8n_bridge"
    assert not [word for word in command.words if str(word).startswith("--snapshot")]
    assert database.dump_file(Database(), "n8n_bridge") == "database-n8n_bridge.dump.zst"


# --- redis -----------------------------------------------------------------------------------------------------------


def persistence(saves: int | None, status: str = "ok", busy: int = 0, at: int = 5) -> dict[str, Any]:
    """Return what Redis says about its saves."""
    found = {"rdb_bgsave_in_progress": busy, "rdb_last_bgsave_status": status, "rdb_last_save_time": at}
    return found if saves is None else {**found, "rdb_saves": saves}


def dumper(states: list[dict[str, Any]]) -> tuple[redis_dump.Dumper, FakeRedis]:
    """Return a dumper whose clock moves when it sleeps."""
    client, now = FakeRedis(states), [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    return redis_dump.Dumper(
        client, Redis(rdb=Path("/dump.rdb"), timeout_seconds=2), clock=lambda: now[0], sleep=sleep
    ), client


@pytest.mark.parametrize(
    "states",
    [
        # One that was under way is waited for, then ours, which starts late.
        [
            persistence(1, busy=1),
            persistence(1),
            persistence(1),
            persistence(1),
            persistence(2, busy=1),
            persistence(2),
        ],
        # Redis 6 has no counter.
        [persistence(None), persistence(None), persistence(None), persistence(None, at=6)],
        # An earlier one had failed.
        [persistence(1, "err"), persistence(1, "err"), persistence(1, "err"), persistence(2)],
    ],
)
def test_saving(states: list[dict[str, Any]]) -> None:
    found, client = dumper(states)
    assert found.save() == "8.0.2"
    assert client.commands == [("BGSAVE", "SCHEDULE")]


@pytest.mark.parametrize("counter", [True, False])
def test_a_save_that_fails(counter: bool) -> None:
    numbers = (1, 1, 2) if counter else (None, None, None)
    states = [persistence(number, status) for number, status in zip(numbers, ("ok", "ok", "err"), strict=True)]
    with pytest.raises(BackupError, match=r"could not write /dump\.rdb: is its disk full"):
        dumper(states)[0].save()


def test_a_save_that_does_not_end() -> None:
    with pytest.raises(BackupError, match="within 2 s"):
        dumper([persistence(1), persistence(1), persistence(1, busy=1)])[0].save()


def test_a_redis_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    found, client = dumper([persistence(1)])

    def fail(section: str) -> dict[str, Any]:
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(client, "info", fail)
    with pytest.raises(BackupError, match=r"did not save: refused\. Look at: systemctl status redis-queue"):
        found.save()


@pytest.mark.parametrize("ca_file", ["", "/ca.crt"])
def test_connecting_to_redis(config: Config, monkeypatch: pytest.MonkeyPatch, ca_file: str) -> None:
    monkeypatch.undo()
    given: dict[str, Any] = {}
    monkeypatch.setitem(
        sys.modules, "redis", SimpleNamespace(Redis=lambda **options: given.update(options), RedisError=ServerError)
    )
    redis_dump.connect(config, Redis(rdb=Path("/dump.rdb"), ca_file=ca_file))
    assert given["password"] == "redis_admin_password-value"
    assert given.get("ssl", False) == bool(ca_file)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(UnusableError, match="python3-redis"):
        redis_dump.connect(config, Redis(rdb=Path("/dump.rdb")))


# --- state -----------------------------------------------------------------------------------------------------------


def test_metrics_only_tell_what_happened(config: Config) -> None:
    state.update(config, {})
    assert config.metrics_file.read_text().strip() == ""
    state.update(config, state.ended(state.PHYSICAL, datetime.now(UTC), failed=True, succeeded=False))
    state.drilled(config, True, 100, 60)
    text = config.metrics_file.read_text()
    assert 'n8n_backup_last_run_failed{kind="physical"} 1' in text
    assert "n8n_backup_last_success" not in text
    assert "n8n_backup_drill_rto_seconds 100" in text
    assert "n8n_backup_drill_success_timestamp_seconds" in text


def test_state_that_cannot_be_written(config: Config) -> None:
    config.state_dir.write_text("in the way")
    with pytest.raises(PlaceError, match="cannot write to"):
        state.update(config, {})


READING = {"wall": 1_000_000.0, "since_boot": 5000.0, "boot": "a"}


@pytest.mark.parametrize(
    ("wall", "since_boot", "boot", "words"),
    [
        (1_000_060.0, 5060.0, "a", ""),
        (999_500.0, 5060.0, "a", ""),
        (990_000.0, 5060.0, "a", "it went back by 2.8 h"),
        (1_090_000.0, 5060.0, "a", "leapt ahead by 25.0 h"),
        # A day of sleep or of work is no leap.
        (1_090_000.0, 95_000.0, "a", ""),
        # Nothing is known across a restart.
        (1_090_000.0, 10.0, "b", ""),
    ],
)
def test_clocks(wall: float, since_boot: float, boot: str, words: str) -> None:
    found = state.clock_problem(READING, {"wall": wall, "since_boot": since_boot, "boot": boot})
    assert found.endswith(words) or words in found
    assert bool(found) == bool(words)


def test_reading_the_clock(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    found = state.clock_reading(config)
    assert found["boot"] == ""
    assert state.clock_problem({}, found) == state.clock_problem(found, state.clock_reading(config)) == ""
    # Without knowing of a restart a leap cannot be told from a night off.
    assert state.clock_problem({**found, "wall": found["wall"] - 10**6}, found) == ""
    monkeypatch.setattr(state, "VOLATILE", config.lock_file.parent)
    found = state.clock_reading(config)
    assert len(found["boot"]) == 16
    assert state.clock_reading(config)["boot"] == found["boot"]
    monkeypatch.setattr(state, "VOLATILE", config.lock_file.parent.parent)
    assert state.clock_reading(replace(config, lock_file=config.lock_file.parent / "none" / "lock"))["boot"] == ""


# --- what people read ------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**15))
def test_sizes_are_short(size: int) -> None:
    assert len(report.human_size(size)) <= 13


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 min"), (59, "0 min"), (119 * 60, "119 min"), (7200, "2 h"), (86400 * 3, "3 days"), (-90, "-1 min")],
)
def test_ages(seconds: float, text: str) -> None:
    assert report.human_age(seconds) == text


class Terminal(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_on_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    screen, pipe = Terminal(), io.StringIO()
    for out in (screen, pipe):
        say = report.Report(out=out, clock=lambda: now[0])
        for size in (0, 10**6, 10**9):
            say.progress("database.dump.zst", size)
            say.progress("database.dump.zst", size)
            now[0] += 2
        say.say("done")
    assert pipe.getvalue() == "done\n"
    drawn = screen.getvalue().split("\r")
    assert drawn[1] == "database.dump.zst                 0 B"
    assert drawn[3].rstrip() == "database.dump.zst              1.0 GB  250.0 MB/s"
    assert drawn[-1] == "done\n"


def test_lines_of_the_journal_carry_their_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    out = io.StringIO()
    say = report.Report(out=out)
    say.say("done")
    say.warn("odd\nindeed")
    say.problem("wrong")
    say.problem("wrong")
    assert out.getvalue() == "<5>done\n<4>odd\n<4>indeed\n<3>wrong\n"
    assert say.problems == ["wrong"]
    quiet = io.StringIO()
    report.Report(quiet=True, out=quiet).say("done")
    assert quiet.getvalue() == ""


# --- physical --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 30 * 24), st.integers(1, 14))
def test_a_full_backup_is_due_in_time(hours: int, every: int) -> None:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    last = {"type": "full", "timestamp": {"stop": (now - timedelta(hours=hours)).timestamp()}}
    kind = physical.kind_due(physical.Repository(1, (last,)), now, every)
    assert kind == ("full" if hours >= every * 24 - 12 else "diff")
    assert physical.kind_due(physical.Repository(1), now, every) == "full"


def test_sizes_of_physical_backups() -> None:
    assert physical.size({"info": {"size": 5, "repository": {"size": 3}}}) == 3
    assert physical.size({"info": {"size": 5, "repository": {"delta": 3}}}) == 5
    assert physical.size({}) == 0

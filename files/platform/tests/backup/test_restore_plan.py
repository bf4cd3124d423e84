"""What can be restored, what a restore would do, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from n8n_platform import files
from n8n_platform.backup import manifest, places, verification
from n8n_platform.backup.config import Config, Physical
from n8n_platform.backup.errors import BackupError, UnusableError
from n8n_platform.restore import host as restore_host
from n8n_platform.restore import plan as restore_plan
from n8n_platform.restore import stock as restore_stock
from n8n_platform.restore.host import Host
from n8n_platform.restore.points import (
    Wish,
    choose_backup,
    lineage,
    missing_wal,
    parse_time,
    parse_wish,
    read_archive,
    read_info,
    segment,
    segment_name,
)

from files.platform.tests.backup.restore_fakes import INFO, FakeHost

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
KEY = "an-encryption-key-for-tests"
SET = "20261121T020000Z-db1"


@pytest.fixture
def fake(tmp_path: Path) -> FakeHost:
    """Return a host with a live database."""
    host = FakeHost(
        tmp_path / "host", sql={"execution_entity WHERE": '{"executions": 7, "workflows": 1, "credentials": 0}'}
    )
    host.root.mkdir()
    host.layout()
    host.fill()
    return host


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Return settings with one repository and one set."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "n8n_encryption_key").write_text(KEY, encoding="utf-8")
    (secrets / "backup_manifest_key").write_text("manifest-key", encoding="utf-8")
    found = Config(
        "test",
        "db1",
        tmp_path / "sets",
        secrets,
        state_dir=tmp_path / "state",
        metrics_file=tmp_path / "n8n_backup.prom",
        physical=Physical(repos=(1,)),
    )
    write_set(found)
    return found


def write_set(config: Config, set_id: str = SET, key: str = "manifest-key", **database: Any) -> None:
    """Make a set that is only a manifest."""
    document = {
        "format": 1,
        "id": set_id,
        "started_at": "2026-11-21T02:00:00+00:00",
        "complete": True,
        "versions": {"n8n": "2.41.1", "postgresql": "17.11 (Debian)"},
        "encryption_key_fingerprint": manifest.fingerprint(KEY),
        "database": {
            "size_bytes": 1000,
            "tables": {"workflow_entity": 1},
            "last_migration": {"name": "First", "timestamp": 1700000000000},
            **database,
        },
        "files": [],
        "physical": {"1": "20261120-020000F"},
    }
    folder = config.sets_dir / set_id
    folder.mkdir(parents=True, exist_ok=True)
    places.write_private(folder / manifest.NAME, manifest.encode(manifest.sign(document, key)))


def plan(
    config: Config, fake: FakeHost, restore_set: str = "", restore_time: str = "", timeline: int = 0
) -> restore_plan.Plan:
    host = Host(fake.layout(), "n8n", fake)
    stock = restore_stock.read_stock(config, host)
    return restore_plan.Planner(config, host, stock, NOW).make(restore_set, restore_time, timeline)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-22 14:05:00+00:00", datetime(2026, 11, 22, 14, 5, tzinfo=UTC)),
        ("2026-11-22T14:05Z", datetime(2026, 11, 22, 14, 5, tzinfo=UTC)),
        (" 2026-11-22 14:05:00.25 +0100 ", datetime(2026, 11, 22, 13, 5, 0, 250000, tzinfo=UTC)),
        ("2026-11-22 14:05:00+01", datetime(2026, 11, 22, 13, 5, tzinfo=UTC)),
    ],
)
def test_times_with_an_offset_are_understood(text: str, expected: datetime) -> None:
    assert parse_time(text) == expected


@pytest.mark.parametrize(
    "text", ["2026-11-22 14:05:00", "2026-11-22 14:05 CET", "22.11.2026 14:05+00:00", "2026-13-01 00:00Z", ""]
)
def test_times_that_mean_several_moments_are_refused(text: str) -> None:
    with pytest.raises(BackupError):
        parse_time(text)


def test_wishes() -> None:
    assert parse_wish("", "", NOW) is None
    assert parse_wish("latest", "", NOW) == Wish("latest")
    for bad in (("latest", "2026-11-22 10:00Z"), ("", "2026-11-22 13:00Z"), ("last", "")):
        with pytest.raises(BackupError):
            parse_wish(*bad, NOW)


def test_segments_count_on_over_log_files() -> None:
    assert segment_name(1, segment("0000000100000000000000FF")[1] + 1) == "000000010000000100000000"
    with pytest.raises(ValueError, match="not the name"):
        segment("archive.info")


def test_ancestors_of_a_timeline_end_where_the_next_begins() -> None:
    backups = read_info(json.dumps(INFO), "n8n").backups
    line = lineage(2, "1\t0/6000000\tno recovery target specified\n")
    assert line.holds(backups[0])
    assert not line.holds(backups[1])
    assert choose_backup(backups, line, None) == backups[0]
    assert choose_backup(backups, lineage(3), None) is None


def test_unknown_stanzas_and_ill_repositories_are_said() -> None:
    assert read_info("[]", "n8n").problems
    ill = [{**INFO[0], "repo": [{"key": 1, "status": {"code": 99, "message": "cannot read"}}]}]
    assert read_info(json.dumps(ill), "n8n").problems == ("repository 1: cannot read",)


def test_a_gap_counts_only_before_the_moment(fake: FakeHost) -> None:
    backup = read_info(json.dumps(INFO), "n8n").backups[0]
    line = lineage(1)
    del fake.wal[next(name for name in fake.wal if name.split("-")[1].endswith("9"))]
    archive = read_archive([fake._listing(), '{"x.history": {"type": "file"}}'], line)
    assert missing_wal(archive, backup, None) == "000000010000000000000009"
    assert missing_wal(archive, backup, archive[8].at.replace(year=2025)) == ""
    assert missing_wal({}, backup, None) == "000000010000000000000004"


def test_the_newest_state(config: Config, fake: FakeHost) -> None:
    found = plan(config, fake, "latest")
    assert found.refused == []
    assert found.backup == "20261120-020000F_20261121-020000D"
    assert "one the data needs" in found.key
    text = restore_plan.sentences(found, "db1")
    assert "then archived WAL" in text
    assert "there was no drill yet" in text


def test_a_moment_counts_what_would_be_lost(config: Config, fake: FakeHost) -> None:
    folder = config.state_dir / "drills"
    folder.mkdir(parents=True)
    drill = {"result": "ok", "kind": "physical", "rto_seconds": 95.0, "at": "2026-11-22T04:30:00+00:00", "backup": "x"}
    files.write_json(folder / "20261122T043000Z.json", drill)
    found = plan(config, fake, restore_time="2026-11-21 12:00:00+00:00")
    assert found.refused == []
    assert found.losses == {"executions": 7, "workflows": 1, "credentials": 0}
    text = restore_plan.sentences(found, "db1")
    assert "7 executions, 1 workflows" in text
    assert "about 2 min" in text


def test_a_backup_by_its_label(config: Config, fake: FakeHost) -> None:
    found = plan(config, fake, "20261120-020000F")
    assert (found.refused, found.target) == ([], "end of backup")
    assert "There is no backup" in plan(config, fake, "20200101-000000F").refused[0]


def test_damaged_backups_other_versions_and_missing_log_are_refused(config: Config, fake: FakeHost) -> None:
    broken = json.loads(json.dumps(INFO))
    broken[0]["backup"][0]["error"] = True
    broken[0]["db"][0]["version"] = "16"
    fake.info = json.dumps(broken)
    fake.wal = {}
    said = " ".join(plan(config, fake, "20261120-020000F").refused)
    assert "damaged pages" in said
    assert "PostgreSQL 16" in said
    assert "in no repository" in said


def test_a_set(config: Config, fake: FakeHost) -> None:
    found = plan(config, fake, SET)
    assert (found.refused, found.kind, found.places) == ([], "logical", ("local",))
    assert "this host's encryption key is the one" in found.key


def test_without_physical_backups_latest_is_the_newest_set(config: Config, fake: FakeHost) -> None:
    assert plan(replace(config, physical=None), fake, "latest").set == SET
    assert (
        "There is no backup of pgBackRest" in plan(replace(config, physical=None), fake, "20261120-020000F").refused[0]
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"last_migration": {"name": "Future", "timestamp": 2999999999999}}, "newer n8n"),
        ({"size_bytes": 10**16}, "Too little space"),
    ],
)
def test_sets_that_do_not_fit_are_refused(
    config: Config, fake: FakeHost, change: dict[str, Any], sentence: str
) -> None:
    write_set(config, **change)
    assert sentence in " ".join(plan(config, fake, SET).refused)


def test_a_forged_set_is_refused(config: Config, fake: FakeHost) -> None:
    write_set(config, key="another")
    assert "changed after it was signed" in plan(config, fake, SET).refused[0]


def test_a_set_that_failed_its_check_is_refused(config: Config, fake: FakeHost) -> None:
    entry = verification.entry(verification.CHECKSUMS, ["database.dump.zst is damaged"])
    data = verification.document(SET, [entry], "manifest-key")
    places.write_private(config.sets_dir / SET / verification.NAME, data)
    assert "failed its check" in plan(config, fake, SET).refused[0]


def test_another_key_is_refused_and_a_missing_one_is_said(config: Config, fake: FakeHost) -> None:
    path = config.secrets_dir / "n8n_encryption_key"
    path.write_text("another-key-altogether", encoding="utf-8")
    assert "not the one the data was encrypted with" in " ".join(plan(config, fake, SET).refused)
    path.unlink()
    assert "not on this host" in plan(config, fake, SET).key


def test_safety_copies_block_when_there_are_two(config: Config, fake: FakeHost) -> None:
    for stamp in ("1", "2"):
        (fake.root / f"main.before-restore-{stamp}").mkdir()
    assert "2 safety copies" in plan(config, fake, "latest").refused[0]


def test_a_dead_database_cannot_be_counted(config: Config, fake: FakeHost) -> None:
    fake.live = False
    fake.empty()
    found = plan(config, fake, restore_time="2026-11-21 12:00:00+00:00")
    assert found.refused == []
    assert "cannot be counted" in found.notes[0]


def test_moments_before_all_backups_and_other_nonsense(config: Config, fake: FakeHost) -> None:
    assert "No backup is older" in plan(config, fake, restore_time="2020-01-01 00:00Z").refused[0]
    assert "Nothing was asked for" in plan(config, fake).refused[0]
    assert "neither" in plan(config, fake, "yesterday").refused[0]


def test_the_table_names_everything(config: Config, fake: FakeHost) -> None:
    host = Host(fake.layout(), "n8n", fake)
    text = restore_stock.table(restore_stock.read_stock(config, host), config, NOW)
    assert SET in text
    assert "20261120-020000F_20261121-020000D" in text
    fake.fail = ("info",)
    nothing = restore_stock.read_stock(replace(config, sets_dir=config.sets_dir / "none"), host)
    assert "There is no backup" in restore_stock.table(nothing, config, NOW)
    assert nothing.problems


def test_a_backup_under_way_is_waited_for(fake: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def busy(command: Any, **_: Any) -> str:
        calls.append(str(command))
        if len(calls) == 1:
            raise BackupError("pgbackrest failed (exit code 50): unable to acquire lock on file")
        raise BackupError("pgbackrest failed (exit code 82): unable to reach it")

    monkeypatch.setattr(restore_host, "POLL_SECONDS", 0)
    with pytest.raises(BackupError, match="82"):
        Host(fake.layout(), "n8n", busy).pgbackrest("backup")
    assert len(calls) == 2


def test_settings_are_read_or_explained(tmp_path: Path) -> None:
    path = tmp_path / "restore.json"
    with pytest.raises(UnusableError, match="The role restore writes it"):
        restore_host.load(path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(UnusableError, match="not usable"):
        restore_host.load(path)
    path.write_text('{"redis_prefix": "n8n", "drill": {"directory": "/d"}}', encoding="utf-8")
    found = restore_host.load(path)
    assert (found.postgres, found.drill.directory) == (None, Path("/d"))
    with pytest.raises(UnusableError, match="no database"):
        _ = Host(found, "n8n").postgres
    assert Host(found, "n8n").migrations() == set()


def test_an_unreadable_repository_is_no_reason_to_lose_a_day(config: Config, fake: FakeHost) -> None:
    fake.fail = ("info",)
    assert "No repository of pgBackRest can be read" in plan(config, fake, "latest").refused[0]
    assert plan(config, fake, SET).refused == []

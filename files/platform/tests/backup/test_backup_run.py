"""Whole runs: what is in a set, and what becomes of it when something fails."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from n8n_platform.backup import (
    check,
    database,
    manifest,
    parts,
    places,
    prune,
    run,
    s3,
    sets,
    space,
    state,
    verification,
)
from n8n_platform.backup.config import Config, Physical
from n8n_platform.backup.errors import (
    FAILED,
    OK,
    PARTLY,
    BackupError,
    PlaceError,
    SpaceError,
    UnusableError,
    UsageError,
)
from n8n_platform.backup.report import Report

from files.platform.tests.backup.backup_fakes import FakeS3, away, program

FILES = [
    "database.dump.zst",
    "redis-queue.rdb.zst",
    "n8n-data.tar.zst",
    "community-nodes.json",
    "workflows.tar.zst",
    "credentials.tar.zst",
    "configuration.tar.zst",
    "certificates.tar.zst.age",
    "secrets.tar.zst.age",
]


def do(config: Config, parts: list[str] | None = None) -> tuple[int, run.Run]:
    """Make a backup."""
    runner = run.Run(config, Report(), s3.connect(config))
    return runner.run(run.choose(config, parts)), runner


def read_manifest(config: Config, set_id: str) -> dict[str, Any]:
    """Return a local manifest whose signature fits."""
    data = (config.sets_dir / set_id / manifest.NAME).read_bytes()
    return manifest.decode(data, config.secret(manifest.SIGNING_KEY), "it")


def members(path: Path) -> list[str]:
    """Return the names in an archive."""
    return subprocess.run(
        ["tar", "--zstd", "-tf", path], check=True, capture_output=True, text=True
    ).stdout.splitlines()


def test_a_set_holds_everything_at_both_places(config: Config, bucket: FakeS3, tmp_path: Path) -> None:
    code, runner = do(config)
    assert (code, runner.report.problems, runner.report.warnings) == (OK, [], [])
    set_id = runner.outcome.set_id
    folder = config.sets_dir / set_id
    document = read_manifest(config, set_id)
    assert [entry["name"] for entry in document["files"]] == FILES
    for entry in document["files"]:
        data = (folder / entry["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        assert bucket.objects[f"here/sets/{set_id}/{entry['name']}"] == data
        assert entry["s3"] == f"s3://bucket/here/sets/{set_id}/{entry['name']}"
        assert (folder / entry["name"]).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == config.sets_dir.stat().st_mode & 0o777 == 0o700
    assert bucket.objects[f"here/sets/{set_id}/manifest.json"] == (folder / "manifest.json").read_bytes()
    assert document["complete"]
    assert document["parts"] == ["database", "redis", "n8n", "configuration", "certificates", "secrets"]
    assert document["versions"] == {
        "n8n": "release-1.2.3",
        "collection": "0.1.0",
        "postgresql": "17.11",
        "redis": "8.0.2",
    }
    assert document["database"]["tables"] == {"migrations": 7, "credentials_entity": 7, "workflow_entity": 7}
    assert document["database"]["content"] == dict.fromkeys(("workflow_entity", "credentials_entity"), "ab" * 32)
    assert document["database"]["last_migration"] == {"name": "Latest1", "timestamp": 17}
    assert document["encryption_key_fingerprint"] == manifest.fingerprint("n8n_encryption_key-value")
    dump = subprocess.run(["zstd", "-dc", folder / "database.dump.zst"], capture_output=True, check=True).stdout
    assert b"--snapshot=0001-1\n" in dump
    assert b"--compress=none\n" in dump
    found = sets.look(sets.LocalShelf(config.sets_dir), set_id, "backup_manifest_key-value")
    assert (found.verified.result, found.verified.by) == ("ok", "checksums")


def test_no_secret_is_in_the_clear(config: Config, tmp_path: Path) -> None:
    _, runner = do(config)
    folder = config.sets_dir / runner.outcome.set_id
    inside = str(tmp_path).lstrip("/")
    assert members(folder / "configuration.tar.zst") == [f"{inside}/etc/", f"{inside}/etc/n8n.env"]
    data = members(folder / "n8n-data.tar.zst")
    assert f"{inside}/n8n/main/note" in data
    assert not [name for name in data if name.endswith((".n8n/config", ".cache/", "big"))]
    for path in folder.iterdir():
        if not path.name.endswith(".age"):
            plain = path.read_bytes()
            if path.name.endswith(".zst"):
                plain = subprocess.run(["zstd", "-dqc", path], check=True, capture_output=True).stdout
            assert b"-value" not in plain, path.name
    assert (folder / "secrets.tar.zst.age").read_bytes().startswith(b"age-encryption.org/v1\n")


def test_exports_and_nodes(config: Config) -> None:
    _, runner = do(config, ["n8n"])
    folder = config.sets_dir / runner.outcome.set_id
    assert members(folder / "workflows.tar.zst") == ["workflows/", "workflows/w1.json"]
    assert members(folder / "credentials.tar.zst") == ["credentials/"]
    nodes = json.loads((folder / "community-nodes.json").read_text())
    assert nodes["installed"] == [{"package": "n8n-nodes-x", "version": "1.0.0"}]
    assert list(nodes["folders"].values()) == [{"n8n-nodes-x": "1.0.0"}]
    assert config.n8n is not None
    assert list(config.n8n.export_dir.iterdir()) == []
    assert not read_manifest(config, runner.outcome.set_id)["complete"]


def test_an_n8n_host_without_database_and_exports(config: Config) -> None:
    assert config.n8n is not None
    (config.n8n.data_dir / "main/.n8n/nodes/package.json").write_text("[]")
    code, runner = do(replace(config, database=None, n8n=replace(config.n8n, cli=None)), ["n8n"])
    folder = config.sets_dir / runner.outcome.set_id
    assert code == OK
    assert "cannot be read" in runner.report.warnings[0]
    assert json.loads((folder / "community-nodes.json").read_text())["installed"] is None
    assert not (folder / "workflows.tar.zst").exists()


def test_gzip_is_plain_sql(config: Config) -> None:
    assert config.database is not None
    changed = replace(config, database=replace(config.database, compression="gzip", level=6))
    _, runner = do(changed, ["database"])
    dump = gzip.decompress((config.sets_dir / runner.outcome.set_id / "database.sql.gz").read_bytes())
    assert b"--format=plain\n--compress=none\n" in dump


@pytest.mark.parametrize("leftovers", [True, False])
def test_killed_runs_leave_nothing(config: Config, bucket: FakeS3, leftovers: bool) -> None:
    assert config.n8n is not None
    names = [".partial-20200101T000000Z-host-1", ".deleting-20200101T000000Z-host-1"]
    config.sets_dir.mkdir()
    if leftovers:
        for name in names:
            (config.sets_dir / name).mkdir()
        (config.n8n.export_dir / ".backup-old").mkdir()
        bucket.objects["here/sets/20200101T000000Z-host-1/database.dump.zst"] = b"x"
        bucket.objects["here/sets/20200101T000000Z-other/database.dump.zst"] = b"x"
        bucket.uploads["u1"] = ("here/sets/20200102T000000Z-host-1/database.dump.zst", {})
        bucket.uploads["u2"] = ("here/sets/20200102T000000Z-other/database.dump.zst", {})
    code, runner = do(config)
    assert code == OK
    assert len(runner.report.warnings) == (3 if leftovers else 0)
    assert [path.name for path in config.sets_dir.iterdir()] == [runner.outcome.set_id]
    assert list(config.n8n.export_dir.iterdir()) == []
    assert [key for key in bucket.objects if "host-1/database.dump.zst" in key and "2020" in key] == []
    if leftovers:
        assert "here/sets/20200101T000000Z-other/database.dump.zst" in bucket.objects
        assert list(bucket.uploads) == ["u2"]


def test_a_store_that_is_away_costs_nothing_but_the_exit_code(config: Config, bucket: FakeS3) -> None:
    bucket.fail = away
    code, runner = do(config)
    assert code == PARTLY
    assert runner.report.problems == [
        "the object store http://store.internal:7070 does not answer: Could not connect to the endpoint. "
        "Is it running, does this host reach it, is its certificate known here?"
    ]
    document = read_manifest(config, runner.outcome.set_id)
    assert {entry["s3"] for entry in document["files"]} == {None}
    assert document["complete"]
    assert runner.outcome.places == ["local"]
    remembered = state.read(config)
    assert remembered["set"]["failed"]
    assert remembered["set"]["last_success"]
    # The next run sends what is missing.
    bucket.fail = lambda method, values: None
    code, runner = do(config, ["configuration"])
    assert code == OK
    assert runner.outcome.uploaded == [document["id"]]
    again = read_manifest(config, document["id"])
    assert all(entry["s3"] for entry in again["files"])
    assert json.loads(bucket.objects[f"here/sets/{document['id']}/manifest.json"]) == again
    assert f"here/sets/{document['id']}/verification.json" in bucket.objects


def test_a_store_that_was_away_for_a_moment(config: Config, bucket: FakeS3) -> None:
    failed: list[str] = []

    def once(method: str, values: Mapping[str, Any]) -> None:
        if "redis" in values.get("Key", "") and not failed:
            failed.append(method)
            away(method, values)

    bucket.fail = once
    code, runner = do(config)
    assert code == PARTLY
    assert runner.outcome.places == ["local", "s3"]
    assert runner.outcome.uploaded == [runner.outcome.set_id]
    # What had arrived before is not sent again.
    assert [call for call in bucket.calls if call.endswith("put_object") or "database.dump.zst" in call] == [
        f"put_object here/sets/{runner.outcome.set_id}/database.dump.zst"
    ]


def test_a_disk_that_fails_leaves_the_set_in_the_store(
    config: Config, bucket: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, data: bytes) -> None:
        raise PlaceError("cannot write it: No space left on device")

    monkeypatch.setattr(places.LocalPlace, "open", lambda self, name, expected: Full(self.partial / name))
    monkeypatch.setattr(Full, "write", full)
    code, runner = do(config)
    assert code == PARTLY
    assert runner.outcome.places == ["s3"]
    assert list(config.sets_dir.iterdir()) == []
    assert f"here/sets/{runner.outcome.set_id}/manifest.json" in bucket.objects
    assert sets.resolve(config, "latest", sets.shelves(config))[0] == runner.outcome.set_id


class Full:
    """A file on a full disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, data: bytes) -> None: ...

    def finish(self) -> None: ...

    def abandon(self) -> None: ...


def test_no_place_is_left(config: Config, bucket: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.fail = away

    def no_room(self: Any, sets_dir: Path, set_id: str) -> None:
        raise PlaceError("cannot write: Read-only file system")

    monkeypatch.setattr(places.LocalPlace, "__init__", no_room)
    code, runner = do(config)
    assert code == FAILED
    assert "Read-only" in runner.report.problems[0]
    assert "written nowhere" in runner.report.problems[-1]
    with pytest.raises(PlaceError, match="Read-only"):
        do(replace(config, s3=None))


def test_a_part_that_fails_is_left_out_and_told(config: Config, tmp_path: Path, bucket: FakeS3) -> None:
    program(tmp_path / "bin", "n8n", "echo 'Error: There was an error initializing DB' >&2; exit 1")
    (tmp_path / "dump.rdb").unlink()
    code, runner = do(config)
    assert code == PARTLY
    assert runner.outcome.failed_parts == ["redis", "n8n"]
    document = read_manifest(config, runner.outcome.set_id)
    assert (document["complete"], document["failed_parts"]) == (False, ["redis", "n8n"])
    assert {entry["part"] for entry in document["files"]} == {"database", "configuration", "certificates", "secrets"}
    # Half a part is nowhere.
    assert not (config.sets_dir / document["id"] / "n8n-data.tar.zst").exists()
    assert f"here/sets/{document['id']}/n8n-data.tar.zst" not in bucket.objects
    text = "\n".join(runner.report.problems)
    assert "error initializing DB" in text
    assert "Redis has just written" in text
    assert "last_success" not in state.read(config)["set"]


def test_a_dump_that_breaks_off_is_a_failure(config: Config, tmp_path: Path) -> None:
    program(tmp_path / "bin", "pg_dump", "echo half; echo 'pg_dump: error: server closed the connection' >&2; exit 1")
    code, runner = do(config)
    assert code == FAILED
    assert "server closed the connection" in runner.report.problems[0]
    assert "database" not in read_manifest(config, runner.outcome.set_id)["parts"]
    code, runner = do(config, ["database"])
    assert code == FAILED
    assert "no part could be made" in runner.report.problems[-1]
    assert state.read(config)["set"]["failed"]


def test_a_dump_that_could_not_be_counted_is_kept(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, settings: Any) -> dict[str, Any]:
        raise BackupError("PostgreSQL: out of memory")

    monkeypatch.setattr(database.Snapshot, "facts", fail)
    code, runner = do(config)
    assert code == PARTLY
    assert "could not be counted" in runner.report.problems[0]
    document = read_manifest(config, runner.outcome.set_id)
    assert document["database"] is None
    assert document["files"][0]["name"] == "database.dump.zst"


def test_a_missing_table_is_told(config: Config) -> None:
    assert config.database is not None
    changed = replace(config, database=replace(config.database, count_tables=("nothing", "migrations")))
    _, runner = do(changed, ["database"])
    assert runner.report.warnings[0] == "the database has no table nothing, it is not counted or hashed"


def test_files_that_vanish_meanwhile_are_a_warning(config: Config, tmp_path: Path) -> None:
    vanish = "echo 'tar: x: File removed before we read it' >&2"
    program(tmp_path / "bin", "tar", f'PATH=/usr/bin:/bin tar "$@"; {vanish}; exit 1')
    code, runner = do(config, ["configuration"])
    assert code == OK
    assert runner.report.warnings == ["configuration.tar.zst: tar: tar: x: File removed before we read it"]


def test_n8n_needs_a_directory_for_its_exports(config: Config) -> None:
    assert config.n8n is not None
    config.n8n.export_dir.rmdir()
    code, runner = do(config, ["n8n"])
    assert code == FAILED
    assert "for n8n's exports: No such file or directory. It must belong to" in runner.report.problems[0]


def test_paths_that_do_not_exist_are_told(config: Config, tmp_path: Path) -> None:
    assert config.configuration is not None
    paths = (*config.configuration.paths, tmp_path / "gone")
    _, runner = do(replace(config, configuration=replace(config.configuration, paths=paths)), ["configuration"])
    assert runner.report.warnings == [f"{tmp_path / 'gone'} does not exist, it is not in the set"]


def test_certificates_without_recipients_stay_readable(config: Config) -> None:
    _, runner = do(replace(config, secrets=None), ["certificates"])
    assert members(config.sets_dir / runner.outcome.set_id / "certificates.tar.zst")


def test_a_bug_leaves_no_partial_set(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(making: Any) -> None:
        raise KeyError("bug")

    monkeypatch.setitem(parts.MAKERS, "configuration", fail)
    with pytest.raises(KeyError):
        do(config)
    assert list(config.sets_dir.iterdir()) == []


def test_a_host_without_keys(config: Config) -> None:
    (config.secrets_dir / manifest.ENCRYPTION_KEY).unlink()
    _, runner = do(config, ["configuration"])
    document = read_manifest(config, runner.outcome.set_id)
    assert (document["encryption_key_fingerprint"], document["key_present"]) == ("", False)
    (config.secrets_dir / manifest.SIGNING_KEY).unlink()
    with pytest.raises(UnusableError, match="backup_manifest_key"):
        do(config)


def test_a_set_that_is_damaged_at_once_is_told(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "sums", lambda *values: "database.dump.zst is damaged")
    code, runner = do(config)
    assert code == PARTLY
    assert "did not pass its check: local: database.dump.zst is damaged" in runner.report.problems[-1]
    assert "last_success" not in state.read(config)["set"]


def test_verification_can_be_off(config: Config) -> None:
    code, runner = do(replace(config, verify_after_run=False))
    assert code == OK
    assert not (config.sets_dir / runner.outcome.set_id / verification.NAME).exists()


def test_pruning_goes_on_where_it_can(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*values: Any) -> list[str]:
        raise PlaceError("cannot delete")

    monkeypatch.setattr(prune, "apply", fail)
    code, runner = do(config)
    assert (code, runner.report.problems) == (PARTLY, ["cannot delete"])


# --- space -----------------------------------------------------------------------------------------------------------


def test_no_room_is_noticed_before_anything_is_written(config: Config) -> None:
    with pytest.raises(SpaceError, match=r"has .* free\. The set may need 6\.0 kB, and .* must stay free"):
        do(replace(config, minimum_free_mb=10**9))
    assert list(config.sets_dir.iterdir()) == []
    run.refused(config, SpaceError("no room"))
    assert state.read(config)["problems"] == ["no room"]


def test_the_estimate_follows_the_last_set(config: Config) -> None:
    last = {
        "files": [{"name": "a", "part": "database", "size": 100}, {"name": "b", "part": "n8n", "size": 10}],
        "database": {"size_bytes": 1000},
    }
    assert space.estimate(last, 2000) == 210
    assert space.estimate(last, 500) == 110
    assert space.estimate(last, None) == 110
    assert space.estimate({**last, "database": None}, 2000) == 2010
    assert space.estimate({}, 2000) == 2000
    do(config)
    _, runner = do(config)
    assert runner._last_set()["id"] in sets.LocalShelf(config.sets_dir).ids()
    with pytest.raises(PlaceError, match="cannot ask for the room"):
        space.check(replace(config, sets_dir=Path("/no/such/place")), {}, 1)


def test_a_database_that_is_down_does_not_hinder_the_rest(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(config: Config, settings: Any) -> Any:
        raise BackupError("PostgreSQL does not let us in")

    monkeypatch.setattr(database, "session", down)
    code, runner = do(config)
    assert code == FAILED
    assert runner.outcome.failed_parts == ["database", "n8n"]
    assert runner.outcome.set_id

    def unusable(config: Config, settings: Any) -> Any:
        raise UnusableError("the Python library is missing")

    monkeypatch.setattr(database, "session", unusable)
    with pytest.raises(UnusableError):
        do(config)


# --- parts and the physical backup -----------------------------------------------------------------------------------


def test_choosing_parts(config: Config) -> None:
    physical = replace(config, physical=Physical())
    assert run.choose(physical, None)[0] == "physical"
    assert run.choose(physical, ["n8n", "physical"]) == ("physical", "n8n")
    with pytest.raises(UsageError, match="physical is switched off on this host"):
        run.choose(config, ["physical"])
    with pytest.raises(UsageError, match="nonsense is no part"):
        run.choose(config, ["nonsense"])
    with pytest.raises(UnusableError, match="nothing to save"):
        run.choose(Config("test", "h", config.sets_dir, config.secrets_dir), None)


PGBACKREST = """
for word in "$@"; do
  case $word in --repo=*) repo=${word#--repo=} ;; --type=*) kind=${word#--type=} ;; esac
done
[ "$repo" = 2 ] && { echo 'ERROR: [049]: unable to connect' >&2; exit 49; }
case "$*" in
*info*) cat FOLDER/info.json ;;
*backup*) echo "$kind" >> FOLDER/made; cp FOLDER/after.json FOLDER/info.json ;;
esac
"""


def information(*backups: tuple[str, str, int], code: int = 0) -> str:
    """Return what `pgbackrest info` prints."""
    listed = [
        {
            "label": label,
            "type": kind,
            "timestamp": {"start": at, "stop": at},
            "database": {"id": 1, "repo-key": 1},
            "error": False,
            "info": {"repository": {"size": 77}},
        }
        for label, kind, at in backups
    ]
    status = {"code": code, "message": "message"}
    return json.dumps([{"name": "n8n", "status": status, "repo": [{"key": 1, "status": status}], "backup": listed}])


def test_physical_backups(config: Config, tmp_path: Path) -> None:
    program(tmp_path / "bin", "pgbackrest", PGBACKREST.replace("FOLDER", str(tmp_path)))
    (tmp_path / "info.json").write_text(information(code=2))
    (tmp_path / "after.json").write_text(information(("20261122F", "full", 10**10)))
    both = replace(config, physical=Physical(repos=(1, 2)), redis=())
    code, runner = do(both)
    assert code == PARTLY
    assert runner.outcome.labels == {"1": "20261122F"}
    assert "repository 2" in runner.report.problems[0]
    assert "unable to connect" in runner.report.problems[0]
    assert read_manifest(config, runner.outcome.set_id)["physical"] == {"1": "20261122F"}
    remembered = state.read(config)["physical"]
    assert (remembered["failed"], remembered["size_bytes"]) == (True, 77)
    do(replace(both, physical=Physical(repos=(1,))), ["physical"])
    assert (tmp_path / "made").read_text().split() == ["full", "diff"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (information(code=3), "message. Does the stanza exist"),
        ("[{}]", "answered something unknown"),
        ("[]", "does not list it"),
    ],
)
def test_strange_answers_of_pgbackrest(config: Config, tmp_path: Path, answer: str, words: str) -> None:
    program(tmp_path / "bin", "pgbackrest", PGBACKREST.replace("FOLDER", str(tmp_path)))
    (tmp_path / "info.json").write_text(answer)
    (tmp_path / "after.json").write_text("[]")
    code, runner = do(replace(config, physical=Physical(), s3=None), ["physical"])
    assert code == PARTLY
    assert words in runner.report.problems[0]
    assert not runner.outcome.set_id

"""The command line, as a person and as programs use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from n8n_platform.backup import check, cli, lock, manifest, parts, sets, state, status, unpack, verification
from n8n_platform.backup import config as backup_config
from n8n_platform.backup.config import Config, Physical
from n8n_platform.backup.errors import BackupError, PlaceError

from files.platform.tests.backup.backup_fakes import HOST, FakeS3, away, program


@pytest.fixture
def call(config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs a command and returns exit code, output and errors."""

    def run(*words: str, using: Config = config) -> tuple[int, str, str]:
        monkeypatch.setattr(backup_config, "load", lambda path: using)
        monkeypatch.setattr(signal, "signal", lambda number, action: None)
        code = cli.main(words)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def made(call: Any, *words: str, **options: Any) -> str:
    """Make a set and return its id."""
    _, out, _ = call("run", "--json", *words, **options)
    return str(json.loads(out)["set_id"])


def age(config: Config, bucket: FakeS3, set_id: str, days: int) -> str:
    """Turn a set into one that was made days ago; return its new id."""
    parsed = manifest.parse_id(set_id)
    assert parsed is not None
    older = manifest.set_id(parsed[0] - timedelta(days=days), HOST)
    key = config.secret(manifest.SIGNING_KEY)
    document = manifest.decode((config.sets_dir / set_id / "manifest.json").read_bytes(), key, "it")
    entries = verification.parse((config.sets_dir / set_id / "verification.json").read_bytes(), set_id, key)
    changed = {
        "manifest.json": manifest.encode(manifest.sign({**document, "id": older}, key)),
        "verification.json": verification.document(older, entries, key),
    }
    (config.sets_dir / set_id).rename(config.sets_dir / older)
    for name, data in changed.items():
        (config.sets_dir / older / name).write_bytes(data)
    for name in list(bucket.objects):
        if f"/{set_id}/" in name:
            bucket.objects[name.replace(set_id, older)] = changed.get(Path(name).name, bucket.objects[name])
            del bucket.objects[name]
    return older


# --- run, list, show -------------------------------------------------------------------------------------------------


def test_a_run_for_people(call: Any) -> None:
    code, out, err = call("run")
    assert (code, err) == (0, "")
    assert "9 files" in out
    assert "verified" in out
    code, out, _ = call("status")
    assert code == 0
    assert "all is well" in out
    assert "sets (s3): 1" in out


def test_a_run_for_programs(call: Any, config: Config, bucket: FakeS3) -> None:
    bucket.fail = away
    code, out, err = call("run", "--json")
    answer = json.loads(out)
    assert (code, answer["code"], answer["places"], answer["complete"]) == (5, 5, ["local"], True)
    assert answer["problems"][0].startswith("the object store")
    assert "PROBLEM: the object store" in err
    code, out, _ = call("run")
    assert (code, out.splitlines()[-1]) == (
        5,
        "Ended with 1 problem(s), exit code 5. See: n8n-platform-backup status",
    )
    code, out, _ = call("status")
    assert code == 1
    assert "is not in the object store" in out
    metrics = config.metrics_file.read_text()
    assert 'n8n_backup_last_run_failed{kind="set"} 1' in metrics
    assert 'n8n_backup_sets{place="local"} 2' in metrics


def test_runs_that_do_not_begin(call: Any, config: Config) -> None:
    code, _, err = call("run", "--parts", "nonsense")
    assert code == 2
    assert "Parts of this host: database, redis" in err
    code, _, err = call("run", using=replace(config, minimum_free_mb=10**9))
    assert code == 4
    assert "Make room" in err
    assert "Make room" in state.read(config)["problems"][0]
    with lock.held(config.lock_file, "somebody"):
        code, _, err = call("run")
    assert code == 3
    assert "somebody" in err
    (config.secrets_dir / manifest.SIGNING_KEY).unlink()
    code, _, err = call("run")
    assert code == 69
    assert "docs/runbooks/disaster-recovery.md" in err


def test_the_list(call: Any, config: Config, bucket: FakeS3) -> None:
    assert call("list")[1] == "There is no set. Make one: n8n-platform-backup run\n"
    first = made(call)
    second = made(call, "--parts", "redis")
    (config.sets_dir / second / "manifest.json").write_text("{")
    del bucket.objects[f"here/sets/{second}/manifest.json"]
    code, out, _ = call("list")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["SET", "AGE", "SIZE", "WHERE", "N8N", "PARTS", "VERIFIED"]
    assert "DO NOT USE: local: the manifest" in lines[1]
    assert lines[2].startswith(first)
    assert "local+s3" in lines[2]
    assert lines[2].endswith("0 min ago by checksums")
    entries = json.loads(call("list", "--json")[1])
    assert entries[1]["id"] == first
    assert entries[1]["places"] == ["local", "s3"]
    assert entries[1]["verified"]["result"] == "ok"
    assert entries[1]["encryption_key_fingerprint"]
    code, out, _ = call("list", "--from", "s3", using=replace(config, s3=None))
    assert code == 2
    bucket.fail = away
    code, out, _ = call("list")
    assert code == 5
    assert "does not answer" in out


def test_the_list_without_keys(call: Any, config: Config) -> None:
    made(call)
    (config.secrets_dir / manifest.SIGNING_KEY).unlink()
    code, out, _ = call("list")
    assert code == 0
    assert "signatures are not checked" in out


def test_show(call: Any, config: Config) -> None:
    set_id = made(call)
    code, out, err = call("show", set_id)
    shown = json.loads(out)
    assert (code, shown["id"], shown["places"], err) == (0, set_id, ["local", "s3"], "")
    assert shown["verification"][0]["by"] == "checksums"
    (config.secrets_dir / manifest.SIGNING_KEY).rename(config.secrets_dir / "away")
    code, _, err = call("show", "latest")
    assert code == 0
    assert "the signature is not checked" in err
    (config.secrets_dir / manifest.SIGNING_KEY).write_text("other")
    code, _, err = call("show", set_id)
    assert code == 1
    assert "signed with another backup_manifest_key" in err
    for name in ("../../etc", "20200101T000000Z-host-1"):
        code, _, err = call("show", name)
        assert code == 2
        assert "n8n-platform-backup list" in err


def test_the_latest_is_the_newest_complete_one_of_this_host(call: Any, config: Config) -> None:
    complete = made(call)
    made(call, "--parts", "redis")
    assert json.loads(call("show", "latest")[1])["id"] == complete
    code, _, err = call("show", "latest", using=replace(config, host="other"))
    assert code == 2
    assert "no complete set of this host (local and s3)" in err


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verifying(call: Any, config: Config, bucket: FakeS3) -> None:
    set_id = made(call)
    for words in (("verify", "latest"), ("verify", set_id, "--deep")):
        code, out, _ = call(*words)
        assert code == 0
        assert "verified" in out
    found = json.loads(call("verify", "latest", "--json")[1])
    assert (found["result"], found["by"], found["problems"]) == ("ok", "checksums", [])
    assert json.loads(call("list", "--json")[1])[0]["verified"]["by"] == "archive"


def test_a_set_that_is_only_in_the_store(call: Any, config: Config, bucket: FakeS3) -> None:
    set_id = made(call)
    sets.LocalShelf(config.sets_dir).remove(set_id)
    assert call("verify", set_id, "--deep")[0] == 0
    bucket.objects[f"here/sets/{set_id}/database.dump"] += b"x"
    code, out, _ = call("verify", set_id)
    assert code == 1
    assert "s3: database.dump has" in out


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_flipped_bit_in_any_file_is_found(call: Any, config: Config, bucket: FakeS3, place: str) -> None:
    set_id = made(call)
    names = sorted(path.name for path in (config.sets_dir / set_id).iterdir() if path.name != "verification.json")
    assert len(names) == 10
    for name in names:
        path, key = config.sets_dir / set_id / name, f"here/sets/{set_id}/{name}"
        whole = bytearray(bucket.objects[key])
        whole[len(whole) // 2] ^= 1
        before, bucket.objects[key] = bucket.objects[key], bytes(whole) if place == "s3" else bucket.objects[key]
        path.write_bytes(bytes(whole) if place == "local" else before)
        code, out, _ = call("verify", set_id, "--deep")
        assert code == 1, name
        assert f"{place}: " in out
        path.write_bytes(before)
        bucket.objects[key] = before


def test_what_lacks_is_found(call: Any, config: Config, bucket: FakeS3) -> None:
    set_id = made(call)
    del bucket.objects[f"here/sets/{set_id}/database.dump"]
    bucket.objects[f"here/sets/{set_id}/workflows.tar.zst"] += b"x"
    code, out, _ = call("verify", set_id)
    assert code == 1
    assert "s3: database.dump is missing" in out
    assert "s3: workflows.tar.zst has" in out
    code, out, _ = call("verify", set_id, "--deep")
    assert "s3: database.dump is missing" in out
    (config.sets_dir / set_id / "database.dump").unlink()
    code, out, _ = call("verify", set_id)
    assert "local: database.dump cannot be read: cannot read" in out
    code, out, _ = call("status")
    assert code == 1
    assert "failed its check" in out
    # Everything else is still listed.
    code, out, _ = call("list")
    assert "FAILED 0 min ago by checksums: " in out


def test_one_damaged_copy_leaves_the_other(call: Any, config: Config, tmp_path: Path) -> None:
    set_id = made(call)
    (config.sets_dir / set_id / "configuration.tar.zst").write_bytes(b"damaged")
    assert call("verify", set_id)[0] == 1
    code, out, _ = call("list")
    assert f"{set_id}" in out
    assert "0 min ago by checksums\n" in out
    assert "its copy in local is damaged: configuration.tar.zst has 7 bytes" in out
    target = tmp_path / "target"
    target.mkdir()
    code, out, _ = call("restore-files", "latest", "--parts", "configuration", "--target", str(target))
    assert code == 0
    assert "warning" not in out


def test_places_that_describe_different_sets(call: Any, config: Config, bucket: FakeS3) -> None:
    set_id = made(call)
    key = config.secret(manifest.SIGNING_KEY)
    path = config.sets_dir / set_id / "manifest.json"
    document = manifest.decode(path.read_bytes(), key, "it")
    path.write_bytes(manifest.encode(manifest.sign({**document, "files": document["files"][1:]}, key)))
    code, out, _ = call("verify", set_id)
    assert code == 1
    assert "the manifests of the places differ" in out


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("database.dump", b"nothing", "pg_restore failed"),
        ("database.sql.gz", b"nothing", "gzip failed"),
        ("redis-queue.rdb.zst", b"nothing", "zstd failed"),
        ("n8n-data.tar.zst", b"nothing", "failed"),
        ("secrets.tar.zst.age", b"nothing", "is not encrypted"),
        ("community-nodes.json", b"{", "Expecting"),
        ("other.txt", b"anything", ""),
    ],
)
def test_the_inside_of_files(config: Config, tmp_path: Path, name: str, data: bytes, problem: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with path.open("rb") as stream:
        try:
            text = check.readable(config, name, stream)
        except (BackupError, ValueError) as error:
            text = str(error)
    assert problem in text
    assert bool(text) == bool(problem)


def test_files_that_are_readable_but_wrong(config: Config, tmp_path: Path) -> None:
    program(tmp_path / "bin", "pg_restore", "echo '; only comments'")
    with (tmp_path / "x").open("wb+") as stream:
        assert "names no table" in check.readable(replace(config, database=None), "database.dump", stream)
    subprocess.run(["zstd", "-q", "-o", tmp_path / "y"], input=b"no rdb", check=True)
    with (tmp_path / "y").open("rb") as stream:
        assert "holds no RDB file" in check.readable(config, "redis-queue.rdb.zst", stream)


def test_a_store_that_goes_away_while_it_is_read(call: Any, config: Config, bucket: FakeS3) -> None:
    set_id = made(call)
    shelf = sets.shelves(config, "s3")[0]
    bucket.fail = away
    with pytest.raises(PlaceError), check.opened(shelf, set_id, "database.dump") as stream:
        assert stream.read() == b""


def test_a_check_whose_result_cannot_be_noted(call: Any, config: Config, bucket: FakeS3) -> None:
    set_id = made(call)

    def fail(method: str, values: Any) -> None:
        if method == "put_object":
            away(method, values)

    bucket.fail = fail
    code, out, _ = call("verify", set_id)
    assert code == 0
    assert "warning: the result could not be noted" in out


# --- prune -----------------------------------------------------------------------------------------------------------


def test_pruning(call: Any, config: Config, bucket: FakeS3) -> None:
    ids = [age(config, bucket, made(call), days) for days in (60, 50, 10)]
    ids.append(made(call, using=replace(config, retention=replace(config.retention, minimum_sets=9))))
    tight = replace(config, retention=replace(config.retention, minimum_sets=1))
    code, out, _ = call("prune", "--dry-run", using=tight)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"GOES   local  {ids[0]}: it is 60 days old, 7 days are kept"
    assert lines[3] == f"stays  local  {ids[3]}: it is younger than 7 days"
    assert lines[-1] == "5 of 8 would be deleted."
    assert len(sets.LocalShelf(config.sets_dir).ids()) == 4
    plan = json.loads(call("prune", "--dry-run", "--json", using=tight)[1])
    code, out, _ = call("prune", using=tight)
    assert code == 0
    assert out.splitlines()[-1] == "5 of 8 deleted."
    assert sets.LocalShelf(config.sets_dir).ids() == [ids[3]]
    assert {key.split("/")[2] for key in bucket.objects} == {ids[2], ids[3]}
    assert sorted(entry["id"] for entry in plan if not entry["keep"]) == sorted(ids[:3] + ids[:2])
    assert json.loads(call("prune", "--json", using=tight)[1])[0]["keep"]


def test_pruning_without_the_store(call: Any, bucket: FakeS3) -> None:
    made(call)
    bucket.fail = away
    code, out, _ = call("prune")
    assert code == 5
    assert "0 of 1 deleted." in out


def test_a_clock_that_jumps(call: Any, config: Config, bucket: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [age(config, bucket, made(call), days) for days in (60, 50, 40)]
    tight = replace(config, retention=replace(config.retention, minimum_sets=1, local_days=1))
    reading: dict[str, Any] = {"wall": datetime.now(UTC).timestamp(), "since_boot": 1000.0, "boot": "b"}
    state.update(config, {"clock": {**reading, "wall": reading["wall"] - 10 * 86400, "since_boot": 900.0}})
    monkeypatch.setattr(state, "clock_reading", lambda: reading)
    code, out, _ = call("run", using=tight)
    assert code == 0
    assert "leapt ahead by 240.0 h" in out
    assert "in doubt" in out
    assert len(sets.LocalShelf(config.sets_dir).ids()) == 4
    # The doubt stays until a person has looked.
    assert "in doubt" in call("prune", "--dry-run", using=tight)[1]
    code, out, _ = call("prune", "--trust-clock", using=tight)
    assert [entry for entry in ids if entry in sets.LocalShelf(config.sets_dir).ids()] == []


def test_sets_from_the_future_and_sets_nobody_understands(call: Any, config: Config, bucket: FakeS3) -> None:
    old = age(config, bucket, made(call), 100)
    future = age(config, bucket, made(call), -100)
    strange = age(config, bucket, made(call), 50)
    (config.sets_dir / strange / "manifest.json").write_text("{}")
    code, out, _ = call("prune", using=replace(config, retention=replace(config.retention, minimum_sets=0)))
    assert code == 0
    assert f"{future} (local) is from the future" in out
    assert f"{strange} (local) cannot be judged" in out
    assert old in sets.LocalShelf(config.sets_dir).ids()


def test_only_what_retention_keeps_is_uploaded(call: Any, config: Config, bucket: FakeS3) -> None:
    ids = [age(config, bucket, made(call), days) for days in (60, 5, 3, 2)]
    bucket.objects.clear()
    path = config.sets_dir / ids[2] / "database.dump"
    path.write_bytes(path.read_bytes().replace(b"PGDMP", b"PGDMX"))
    (config.sets_dir / ids[3] / "database.dump").unlink()
    code, out, _ = call("run", "--parts", "redis")
    assert code == 5
    assert f"{ids[2]}/database.dump is damaged" in out
    assert f"cannot read {config.sets_dir / ids[3]}/database.dump" in out
    assert f"uploaded {ids[1]}" in out
    there = {key.split("/")[2] for key in bucket.objects if key.endswith("manifest.json")}
    assert there & set(ids) == {ids[1]}


# --- fetch and restore-files -----------------------------------------------------------------------------------------


def test_fetching(call: Any, config: Config, tmp_path: Path) -> None:
    set_id = made(call)
    sets.LocalShelf(config.sets_dir).remove(set_id)
    code, out, _ = call("fetch", "latest", str(config.sets_dir))
    assert code == 0
    assert "fetched" in out
    assert call("verify", set_id, "--deep")[0] == 0
    code, out, _ = call("fetch", set_id, str(tmp_path / "more"), "--json")
    assert json.loads(out)["path"] == str(tmp_path / "more" / set_id)


def test_files_come_back(call: Any, config: Config, tmp_path: Path) -> None:
    set_id = made(call)
    target, identity = tmp_path / "target", tmp_path / "identity"
    target.mkdir()
    identity.write_text("right")
    every = "n8n,configuration,certificates,secrets"
    words = ["restore-files", set_id, "--parts", every, "--target", str(target)]
    code, _, err = call(*words)
    assert code == 2
    assert "is encrypted: give the file with the age identity" in err
    assert call(*words, "--identity", str(tmp_path / "none"))[0] == 2
    code, out, _ = call(*words, "--identity", str(identity), "--numeric-owner")
    assert code == 0
    assert "unpacked secrets.tar.zst.age" in out
    inside = target / str(tmp_path).lstrip("/")
    assert (inside / "secrets/n8n_encryption_key").read_text() == "n8n_encryption_key-value\n"
    assert (inside / "etc/n8n.env").stat().st_mode & 0o777 == 0o600
    assert (inside / "certificates/acme.json").exists()
    assert (inside / "n8n/main/note").read_text() == "kept"
    identity.write_text("wrong")
    code, _, err = call(*words, "--identity", str(identity))
    assert code == 1
    assert "no identity matched" in err


def test_files_that_cannot_come_back(call: Any, config: Config, tmp_path: Path, bucket: FakeS3) -> None:
    set_id = made(call, "--parts", "configuration")
    where = ("--target", str(tmp_path))
    for part, words in (("database", "playbooks/restore.yml"), ("n8n", "has no part n8n")):
        code, _, err = call("restore-files", set_id, "--parts", part, *where)
        assert code == 2
        assert words in err
    assert call("restore-files", set_id, "--parts", "configuration", "--target", str(tmp_path / "none"))[0] == 2
    (config.sets_dir / set_id / "configuration.tar.zst").unlink()
    code, out, _ = call("restore-files", set_id, "--parts", "configuration", *where)
    assert code == 0
    assert "Taking the other copy" in out
    bucket.objects[f"here/sets/{set_id}/configuration.tar.zst"] = b"damaged"
    code, out, err = call("restore-files", set_id, "--parts", "configuration", *where)
    assert code == 1
    assert "Nothing was unpacked" in err
    (config.sets_dir / set_id / "manifest.json").write_text("{}")
    bucket.objects[f"here/sets/{set_id}/manifest.json"] = b"{}"
    code, _, err = call("restore-files", set_id, "--parts", "configuration", *where)
    assert code == 1
    assert "is damaged" in err


def test_the_root_is_only_touched_when_a_person_has_typed_the_host(
    call: Any, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_id = made(call)
    extracted: list[Path] = []
    monkeypatch.setattr(unpack, "extract", lambda shelf, name, files, target, *rest: extracted.append(target))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for typed, code in (("yes", 1), (HOST, 0)):
        monkeypatch.setattr("builtins.input", lambda text, typed=typed: typed)
        assert call("restore-files", set_id, "--parts", "configuration")[0] == code
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    (config.secrets_dir / manifest.SIGNING_KEY).unlink()
    code, out, _ = call("restore-files", set_id, "--parts", "configuration")
    assert code == 0
    assert "is not checked" in out
    assert extracted == [Path("/"), Path("/")]


# --- sets that are in a strange state ---------------------------------------------------------------------------------


def test_directories_that_cannot_be_used(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PlaceError, match="cannot write"):
        sets.LocalShelf(tmp_path / "file" / "sets").prepare()
    shelf = sets.LocalShelf(tmp_path)
    with pytest.raises(PlaceError, match="cannot delete"):
        shelf.remove("20261122T000000Z-host-1")
    (tmp_path / "20261122T000000Z-host-1" / "manifest.json").mkdir(parents=True)
    with pytest.raises(PlaceError, match="cannot read"):
        shelf.read("20261122T000000Z-host-1", "manifest.json")
    assert shelf.read("20261122T000000Z-host-1", "none") is None


def test_strange_manifests(config: Config, tmp_path: Path) -> None:
    shelf, one, two = sets.LocalShelf(tmp_path), "20261122T000000Z-host-1", "20261123T000000Z-host-1"
    for name in (one, two):
        (tmp_path / name).mkdir()
    assert sets.look(shelf, one, "key").problem == "it has no manifest"
    document = manifest.sign({"format": 1, "id": two, "files": []}, "key")
    (tmp_path / one / "manifest.json").write_bytes(manifest.encode(document))
    assert sets.look(shelf, one, "key").problem == f"its manifest is that of {two}"
    evil = [{"name": "../x", "part": "n8n", "size": 1, "sha256": ""}]
    (tmp_path / two / "manifest.json").write_bytes(manifest.encode(manifest.sign({**document, "files": evil}, "key")))
    assert "impossible name" in sets.look(shelf, two, "key").problem
    with pytest.raises(BackupError, match="is not the id of a set"):
        sets.look(shelf, "nonsense", "key")


def test_only_the_place_that_answers_is_used(call: Any, config: Config, bucket: FakeS3) -> None:
    set_id = made(call)
    bucket.fail = away
    assert call("show", "latest")[0] == 0
    sets.LocalShelf(config.sets_dir).remove(set_id)
    code, _, err = call("show", set_id)
    assert code == 1
    assert "does not answer" in err


# --- status ----------------------------------------------------------------------------------------------------------


def test_the_status_of_a_new_host(call: Any, config: Config) -> None:
    code, out, _ = call("status")
    assert code == 1
    assert "never had a complete backup set" in out
    both = replace(config, physical=Physical(), sets_dir=config.lock_file)
    config.lock_file.touch()
    code, out, _ = call("status", "--json", using=both)
    found = json.loads(out)
    assert code == 1
    assert any("never had a complete physical backup" in text for text in found["problems"])
    assert any("cannot read" in text for text in found["problems"])


def test_the_status_of_a_sick_host(call: Any, config: Config, bucket: FakeS3) -> None:
    made(call)
    now = datetime.now(UTC).timestamp()
    state.update(config, {"set": {"last_success": now - 30 * 3600}, "running": {"set": "20261122T000000Z-host-1"}})
    state.drilled(config, False, 0, 0, "the canary did not answer")
    asks = replace(config, maximum_drill_age_days=8)
    code, out, _ = call("status", using=asks)
    assert code == 1
    assert "the last complete backup set is 30 h old, more than 26 h" in out
    assert "was killed or stopped" in out
    assert "the last drill failed: the canary did not answer" in out
    with lock.held(config.lock_file, "run"):
        out = call("status", using=asks)[1]
    assert "a run is under way" in out
    assert "was killed" not in out
    state.drilled(config, True, 123.4, 5)
    state.update(config, {"drill": {"last_success": now - 9 * 86400}})
    code, out, _ = call("status", using=asks)
    assert "no set was restored in a drill for 8 days" in out
    assert "last drill: restored in 123 s" in out
    set_id = made(call)
    (config.sets_dir / set_id / "verification.json").unlink()
    code, out, _ = call("status")
    assert f"{set_id} was never verified" in out
    (config.sets_dir / set_id / "manifest.json").write_text("{}")
    assert f"{set_id} must not be used" in call("status")[1]


# --- the rest --------------------------------------------------------------------------------------------------------


def test_signals_end_a_run_in_good_order(call: Any, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(making: Any) -> None:
        cli.stop(signal.SIGTERM, None)

    monkeypatch.setitem(parts.MAKERS, "redis", interrupted)
    code, _, err = call("run")
    assert code == 1
    assert err == "n8n-platform-backup: stopped (SIGTERM); what was begun is removed\n"
    assert list(config.sets_dir.iterdir()) == []


def test_other_errors_of_the_system(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*values: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(status, "collect", fail)
    code, _, err = call("status")
    assert code == 69
    assert "Permission denied" in err


def test_the_module_can_be_started(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    for words, code in ((["--help"], 0), (["--settings", tmp_path / "none", "status"], 69), ([], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "n8n_platform.backup", *words],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
        )
        assert done.returncode == code, done.stderr
    assert "usage" in done.stderr

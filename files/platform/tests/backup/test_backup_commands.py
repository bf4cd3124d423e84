"""The command line, as a person and as programs use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from n8n_platform.backup import check, cli, lock, manifest, parts, sets, state, status
from n8n_platform.backup.config import Config, Physical
from n8n_platform.backup.errors import BackupError, PlaceError

from files.platform.tests.backup.backup_fakes import FakeS3, away, made, program

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
    bucket.objects[f"here/sets/{set_id}/database.dump.zst"] += b"x"
    code, out, _ = call("verify", set_id)
    assert code == 1
    assert "s3: database.dump.zst has" in out


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
    del bucket.objects[f"here/sets/{set_id}/database.dump.zst"]
    bucket.objects[f"here/sets/{set_id}/workflows.tar.zst"] += b"x"
    code, out, _ = call("verify", set_id)
    assert code == 1
    assert "s3: database.dump.zst is missing" in out
    assert "s3: workflows.tar.zst has" in out
    code, out, _ = call("verify", set_id, "--deep")
    assert "s3: database.dump.zst is missing" in out
    (config.sets_dir / set_id / "database.dump.zst").unlink()
    code, out, _ = call("verify", set_id)
    assert "local: database.dump.zst cannot be read: cannot read" in out
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
        ("database.dump.zst", b"nothing", "zstd failed"),
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
    program(tmp_path / "bin", "pg_restore", "cat > /dev/null; echo 'SET x;'")
    subprocess.run(["zstd", "-q", "-o", tmp_path / "x"], input=b"no table", check=True)
    with (tmp_path / "x").open("rb") as stream:
        assert "makes no table" in check.readable(replace(config, database=None), "database.dump.zst", stream)
    subprocess.run(["zstd", "-q", "-o", tmp_path / "y"], input=b"no rdb", check=True)
    with (tmp_path / "y").open("rb") as stream:
        assert "holds no RDB file" in check.readable(config, "redis-queue.rdb.zst", stream)


def test_a_store_that_goes_away_while_it_is_read(call: Any, config: Config, bucket: FakeS3) -> None:
    set_id = made(call)
    shelf = sets.shelves(config, "s3")[0]
    bucket.fail = away
    with pytest.raises(PlaceError), check.opened(shelf, set_id, "database.dump.zst") as stream:
        assert stream.read() == b""


def test_a_program_that_does_not_read_the_store_to_its_end(call: Any, config: Config, bucket: FakeS3) -> None:
    set_id = made(call)
    bucket.objects[f"here/sets/{set_id}/database.dump.zst"] *= 10000
    with check.opened(sets.shelves(config, "s3")[0], set_id, "database.dump.zst") as stream:
        assert stream.read(4) == b"\x28\xb5\x2f\xfd"


def test_a_check_whose_result_cannot_be_noted(call: Any, config: Config, bucket: FakeS3) -> None:
    set_id = made(call)

    def fail(method: str, values: Any) -> None:
        if method == "put_object":
            away(method, values)

    bucket.fail = fail
    code, out, _ = call("verify", set_id)
    assert code == 0
    assert "warning: the result could not be noted" in out


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
    state.update(config, {"set": {"last_success": now - 30 * 3600}, "running": {"since": "2026-11-22T00:00:00+00:00"}})
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
    (config.state_dir / "state.json").unlink()
    made(call)
    assert "in a drill" not in call("status", using=asks)[1]
    state.update(config, {"set": {"first_success": now - 9 * 86400}})
    assert "no backup was restored in a drill yet" in call("status", using=asks)[1]
    state.drilled(config, True, 123.4, 5)
    state.update(config, {"drill": {"last_success": now - 9 * 86400}})
    code, out, _ = call("status", using=asks)
    assert "no backup was restored in a drill for 8 days" in out
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

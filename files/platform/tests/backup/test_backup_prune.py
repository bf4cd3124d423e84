"""Old sets go, missing ones are sent, and files come back."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from n8n_platform.backup import manifest, sets, state, unpack
from n8n_platform.backup.config import Config

from files.platform.tests.backup.backup_fakes import HOST, FakeS3, age, away, made

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
    monkeypatch.setattr(state, "clock_reading", lambda config: reading)
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
    path = config.sets_dir / ids[2] / "database.dump.zst"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (config.sets_dir / ids[3] / "database.dump.zst").unlink()
    code, out, _ = call("run", "--parts", "redis")
    assert code == 5
    assert f"{ids[2]}/database.dump.zst is damaged" in out
    assert f"cannot read {config.sets_dir / ids[3]}/database.dump.zst" in out
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

"""Programs in pipes, their users, and the places their output goes to."""

from __future__ import annotations

import errno
import hashlib
import os
import pwd
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from n8n_platform.backup import fetch, identity, lock, manifest, pipeline, places, s3
from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import BackupError, LockedError, PlaceError, UnusableError, UsageError
from n8n_platform.backup.pipeline import Command, Pipeline, output
from n8n_platform.backup.report import Report

from files.platform.tests.backup.backup_fakes import ClientError, FakeS3, away, store_of


def run(*commands: Command) -> tuple[bytes, list[str]]:
    """Return what a pipeline printed, and its warnings."""
    with Pipeline(commands) as found:
        return b"".join(found.chunks()), found.finish()


def shell(script: str, **options: Any) -> Command:
    """Return a small program."""
    return Command(["sh", "-c", script], **options)


def test_programs_are_joined() -> None:
    assert run(shell("echo a; echo b"), shell("sort -r"), shell("head -1")) == (b"b\n", [])


def test_the_first_cause_is_told() -> None:
    with pytest.raises(BackupError, match=r"^sh failed \(exit code 3\): no space for words$"):
        run(shell("yes"), shell("echo no space for words >&2; exit 3"))
    with pytest.raises(BackupError, match=r"^sh failed \(exit code 4\) and said nothing$"):
        run(shell("exit 4"), shell("cat"))
    with pytest.raises(BackupError, match=r"^sh was killed by SIGKILL"):
        run(shell("kill -9 $$"), shell("cat"))


def test_tolerated_codes_are_warnings() -> None:
    tolerated = frozenset({1})
    assert run(shell("echo gone >&2; exit 1", tolerated=tolerated)) == (b"", ["sh: gone"])
    assert run(shell("exit 1", tolerated=tolerated)) == (b"", [])
    assert run(shell("echo chatter >&2")) == (b"", [])


def test_only_the_end_of_complaints_is_kept() -> None:
    with pytest.raises(BackupError) as raised:
        run(shell("yes complaint | head -100000 >&2; echo last words >&2; exit 1"))
    assert str(raised.value).endswith("last words")
    assert len(str(raised.value)) < pipeline.COMPLAINTS + 100


def test_a_missing_program_is_named() -> None:
    with pytest.raises(UnusableError, match="cannot start no-such-program"):
        run(shell("yes"), Command(["no-such-program"]))


def test_leaving_early_ends_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "STOP_SECONDS", 0.2)
    with Pipeline([shell("trap '' TERM; echo begun; while :; do read -r x || :; done")]) as found:
        next(found.chunks())
    assert found.processes[0].returncode == -9


def test_the_environment_is_small_and_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "secret")
    printed, _ = run(Command(["env"], extra_environment=(("A", "b"),)))
    names = {line.partition(b"=")[0] for line in printed.splitlines()}
    assert names - {b"PWD", b"_", b"SHLVL"} == {b"PATH", b"LC_ALL", b"HOME", b"A"}


def test_one_program() -> None:
    assert output(shell("cat; echo out")) == "out\n"
    assert output(shell("exit 7"), accept=lambda code: code == 7) == ""
    with pytest.raises(BackupError, match="on output"):
        output(shell("echo on output; echo a warning >&2; exit 1"))
    with pytest.raises(BackupError, match=r"did not end within 0.1 s and was stopped"):
        output(shell("exec tail -f /dev/null"), timeout=0.1)


# --- users -----------------------------------------------------------------------------------------------------------


def test_acting_as_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, Any]] = []
    account = SimpleNamespace(pw_uid=26, pw_gid=27, pw_dir="/var/lib/postgresql")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "getegid", lambda: 5)
    monkeypatch.setattr(os, "getgroups", lambda: [5, 6])
    monkeypatch.setattr(pwd, "getpwnam", lambda name: account)
    for name in ("setgroups", "setegid", "seteuid"):
        monkeypatch.setattr(os, name, lambda value, name=name: done.append((name, value)))
    with pytest.raises(KeyError), identity.acting_as("postgres"):
        raise KeyError
    assert done == [
        *(("setgroups", []), ("setegid", 27), ("seteuid", 26)),
        *(("seteuid", 0), ("setegid", 5), ("setgroups", [5, 6])),
    ]
    given: dict[str, Any] = {}

    def popen(words: list[str], **options: Any) -> None:
        given.update(options)
        raise FileNotFoundError(errno.ENOENT, "No such file")

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(UnusableError):
        pipeline.start(Command(["pg_dump"], user="postgres"), None, None, None)
    assert (given["user"], given["group"], given["extra_groups"]) == (26, 27, [])
    assert given["env"]["HOME"] == "/var/lib/postgresql"


def test_a_user_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UnusableError, match="no user no-such-user"), identity.acting_as("no-such-user"):
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with identity.acting_as("no-such-user"):
        pass


# --- lock ------------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from n8n_platform.backup import lock
with lock.held(Path(sys.argv[1]), "n8n-platform-backup run"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "lock"
    assert not lock.is_held(path)
    source = Path(lock.__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(source)},
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert lock.is_held(path)
        words = rf"`n8n-platform-backup run` \(process {holder.pid}, since 20"
        with pytest.raises(LockedError, match=words), lock.held(path, "n8n-platform-backup prune"):
            pass
        holder.kill()
    # What it wrote is still there, the lock is not.
    assert path.read_text()
    assert not lock.is_held(path)
    with lock.held(path, "n8n-platform-backup prune"):
        assert "prune" in path.read_text()
    assert path.read_text() == ""
    with pytest.raises(UnusableError, match="cannot open the lock"), lock.held(tmp_path, "x"):
        pass


# --- object store ----------------------------------------------------------------------------------------------------


def test_big_objects_go_in_parts(bucket: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART", 1000)
    store = store_of(bucket)
    data = os.urandom(4600)
    upload = store.upload("here/big")
    for start in range(0, len(data), 300):
        upload.write(data[start : start + 300])
    upload.finish()
    assert bucket.objects["here/big"] == data
    assert sum(call.startswith("upload_part") for call in bucket.calls) == 4
    exact = store.upload("here/exact")
    exact.write(data[:1000])
    exact.finish()
    assert bucket.objects["here/exact"] == data[:1000]
    assert bucket.uploads == {}


def test_part_sizes_follow_the_size() -> None:
    store = store_of(FakeS3())
    assert store.upload("k").part_size == s3.PART
    huge = store.upload("k", 5 * 10**12)
    assert huge.part_size * s3.PARTS_MAX >= 5 * 10**12
    assert huge.part_size % s3.MB == 0


@pytest.mark.parametrize("method", ["create_multipart_upload", "upload_part", "complete_multipart_upload"])
@pytest.mark.parametrize("abort_fails", [False, True])
def test_a_failed_upload_is_thrown_away(
    bucket: FakeS3, monkeypatch: pytest.MonkeyPatch, method: str, abort_fails: bool
) -> None:
    monkeypatch.setattr(s3, "PART", 100)

    def fail(called: str, values: Any) -> None:
        if called == method or (abort_fails and called == "abort_multipart_upload"):
            raise ClientError("AccessDenied")

    bucket.fail = fail
    upload = store_of(bucket).upload("here/k")

    def everything() -> None:
        for _ in range(4):
            upload.write(b"x" * 100)
        upload.finish()

    with pytest.raises(PlaceError, match="may not do this"):
        everything()
    upload.abandon()
    assert bucket.objects == {}
    assert bool(bucket.uploads) == (abort_fails and method != "create_multipart_upload")


def test_the_store_is_listed_page_by_page(bucket: FakeS3) -> None:
    bucket.page_size = 2
    bucket.objects = {f"here/sets/a/{number}": b"x" for number in range(5)} | {"here/sets/": b"", "else/x": b""}
    assert store_of(bucket).contents() == {"a": {str(number): 1 for number in range(5)}}


def test_errors_of_the_store(bucket: FakeS3) -> None:
    store = store_of(bucket)
    assert store.get("here/none") is None
    bucket.objects["here/k"] = b"abc"
    assert store.get("here/k") == b"abc"
    assert b"".join(store.stream("here/k", 1)) == b"bc"
    bucket.fail = away
    with pytest.raises(PlaceError, match=r"does not answer: Could not connect to the endpoint\. Is it running"):
        store.get("here/k")


def test_connecting_to_the_store(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = s3.connect(config)
    assert found is not None
    assert found.client.meta.endpoint_url == "http://store.internal:7070"
    assert found.client._request_signer._credentials.secret_key == "object_store_backup_secret-value"
    assert s3.connect(Config("e", "h", config.sets_dir, config.secrets_dir)) is None
    monkeypatch.setitem(sys.modules, "boto3.session", None)
    with pytest.raises(UnusableError, match="python3-boto3"):
        s3.connect(config)


# --- places ----------------------------------------------------------------------------------------------------------


def test_memory_stays_small_whatever_the_size(tmp_path: Path, bucket: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART", 1024 * 1024)
    monkeypatch.setattr(bucket, "upload_part", lambda **values: {"ETag": "e"})
    monkeypatch.setattr(bucket, "complete_multipart_upload", lambda **values: {})
    writer = places.SetWriter([places.LocalPlace(tmp_path, "a"), places.S3Place(store_of(bucket), "a")])
    tracemalloc.start()
    with Pipeline([Command(["head", "-c", "40000000", "/dev/zero"])]) as found:
        file = writer.add("f", "p", found.chunks(), finish=lambda: found.finish().clear())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert file.size == 40_000_000
    assert peak < 8 * 1024 * 1024


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = places.FileSink(tmp_path / "f")
    with pytest.raises(PlaceError, match="File exists"):
        places.FileSink(tmp_path / "f")

    def full(*values: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(PlaceError, match=f"No space left on device. Look at: df -h {tmp_path}"):
            sink.write(b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PlaceError, match="No space left"):
            sink.finish()
    sink.abandon()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PlaceError, match="cannot write"):
        places.LocalPlace(tmp_path / "missing", "a")
    place = places.LocalPlace(tmp_path, "a")
    (tmp_path / "a").write_text("in the way")
    with pytest.raises(PlaceError, match="cannot write"):
        place.commit(b"{}")


def test_small_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    places.write_private(path, b"1")
    places.write_private(path, b"2")
    assert path.read_bytes() == b"2"
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "d").mkdir()
    with pytest.raises(PlaceError, match="cannot write"):
        places.write_private(tmp_path / "d", b"x")

    def fail(self: Any, data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(places.FileSink, "write", fail)
    with pytest.raises(KeyboardInterrupt):
        places.write_private(path, b"3")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["d", "f"]


def test_giving_up_everywhere(tmp_path: Path, bucket: FakeS3) -> None:
    writer = places.SetWriter([places.LocalPlace(tmp_path, "a"), places.S3Place(store_of(bucket), "a")])
    with pytest.raises(ZeroDivisionError):
        writer.add("f", "p", (b"x" if number else bytes(1 // number) for number in (1, 0)))
    writer.add("g", "p", [b"x"])
    bucket.fail = away
    writer.discard("p")
    assert list(writer.problems) == ["s3"]
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


# --- fetching --------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(bucket: FakeS3) -> tuple[str, bytes]:
    """Return id and content of a set in the store."""
    set_id, data = "20261122T000000Z-h", os.urandom(1000)
    files = [{"name": "f", "part": "n8n", "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "s3": None}]
    document = manifest.sign({"format": 1, "id": set_id, "files": files}, "key")
    bucket.objects[f"here/sets/{set_id}/manifest.json"] = manifest.encode(document)
    bucket.objects[f"here/sets/{set_id}/f"] = data
    return set_id, data


def test_a_fetch_goes_on_where_it_was_stopped(bucket: FakeS3, stored: tuple[str, bytes], tmp_path: Path) -> None:
    set_id, data = stored
    bucket.objects[f"here/sets/{set_id}/verification.json"] = b"{}"
    working = tmp_path / f".fetching-{set_id}"
    working.mkdir()
    (working / "f.part").write_bytes(data[:600])
    starts: list[str] = []
    bucket.fail = lambda method, values: starts.append(values.get("Range", ""))
    say = Report()
    found = fetch.fetch(store_of(bucket), set_id, tmp_path, "key", say)
    assert (found / "f").read_bytes() == data
    assert (found / "f").stat().st_mode & 0o777 == 0o600
    assert (found / "verification.json").exists()
    assert "bytes=600-" in starts
    assert say.warnings == []
    calls = len(bucket.calls)
    assert fetch.fetch(store_of(bucket), set_id, tmp_path, "key", say) == found
    assert len(bucket.calls) == calls


def test_a_fetch_that_was_wrong_begins_anew(bucket: FakeS3, stored: tuple[str, bytes], tmp_path: Path) -> None:
    set_id, data = stored
    working = tmp_path / f".fetching-{set_id}"
    working.mkdir()
    (working / "f.part").write_bytes(b"?" * 600)
    say = Report()
    assert (fetch.fetch(store_of(bucket), set_id, tmp_path, None, say) / "f").read_bytes() == data
    assert "signature" in say.warnings[0]
    other = tmp_path / "other"
    bucket.objects[f"here/sets/{set_id}/f"] = b"?" * 1000
    with pytest.raises(BackupError, match="is damaged in the object store"):
        fetch.fetch(store_of(bucket), set_id, other, "key", say)
    # What was whole before is not fetched again.
    (other / f".fetching-{set_id}" / "f").write_bytes(data)
    assert (fetch.fetch(store_of(bucket), set_id, other, "key", say) / "f").read_bytes() == data


def test_what_cannot_be_fetched(bucket: FakeS3, stored: tuple[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no set"):
        fetch.fetch(store_of(bucket), "20200101T000000Z-h", tmp_path, "key", Report())
    with pytest.raises(manifest.SignatureError):
        fetch.fetch(store_of(bucket), stored[0], tmp_path, "other key", Report())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PlaceError, match="cannot write"):
        fetch.fetch(store_of(bucket), stored[0], tmp_path / "file", "key", Report())

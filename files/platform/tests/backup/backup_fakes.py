"""Stand-ins for the object store, the database, Redis and the programs a backup calls."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from n8n_platform.backup import database, manifest, s3, verification
from n8n_platform.backup.config import S3, Config, Database, N8n, Paths, Redis, Secrets

from files.platform.tests.fakes import FakeConnection

HOST = "host-1"
SETTINGS = S3(url="http://store.internal:7070", bucket="bucket", access_key="writer", prefix="here/")


class ClientError(Exception):
    """What boto3 raises for an answer that is an error."""

    def __init__(self, code: str, text: str = "refused") -> None:
        super().__init__(f"An error occurred ({code}): {text}")
        self.response = {"Error": {"Code": code}}


class FakeS3:
    """A bucket in memory. ``fail`` is asked before each call and may raise."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, tuple[str, dict[int, bytes]]] = {}
        self.calls: list[str] = []
        self.fail: Callable[[str, Mapping[str, Any]], None] = lambda method, values: None
        self.page_size = 1000

    def _called(self, method: str, **values: Any) -> None:
        self.calls.append(f"{method} {values.get('Key', '')}")
        self.fail(method, values)

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, ContentMD5: str) -> dict[str, Any]:  # noqa: N803
        self._called("put_object", Key=Key)
        assert s3.md5(Body) == ContentMD5
        self.objects[Key] = Body
        return {}

    def create_multipart_upload(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        self._called("create_multipart_upload", Key=Key)
        upload_id = f"upload-{len(self.calls)}"
        self.uploads[upload_id] = (Key, {})
        return {"UploadId": upload_id}

    def upload_part(
        self,
        *,
        Bucket: str,  # noqa: N803
        Key: str,  # noqa: N803
        UploadId: str,  # noqa: N803
        PartNumber: int,  # noqa: N803
        Body: bytes,  # noqa: N803
        ContentMD5: str,  # noqa: N803
    ) -> dict[str, Any]:
        self._called("upload_part", Key=Key, PartNumber=PartNumber)
        assert s3.md5(Body) == ContentMD5
        self.uploads[UploadId][1][PartNumber] = Body
        return {"ETag": f"etag-{PartNumber}"}

    def complete_multipart_upload(
        self,
        *,
        Bucket: str,  # noqa: N803
        Key: str,  # noqa: N803
        UploadId: str,  # noqa: N803
        MultipartUpload: dict[str, Any],  # noqa: N803
    ) -> dict[str, Any]:
        self._called("complete_multipart_upload", Key=Key)
        _, parts = self.uploads.pop(UploadId)
        numbers = [part["PartNumber"] for part in MultipartUpload["Parts"]]
        assert numbers == sorted(parts)
        self.objects[Key] = b"".join(parts[number] for number in numbers)
        return {}

    def abort_multipart_upload(self, *, Bucket: str, Key: str, UploadId: str) -> dict[str, Any]:  # noqa: N803
        self._called("abort_multipart_upload", Key=Key)
        self.uploads.pop(UploadId, None)
        return {}

    def list_multipart_uploads(self, *, Bucket: str, Prefix: str) -> dict[str, Any]:  # noqa: N803
        self._called("list_multipart_uploads")
        return {"Uploads": [{"Key": key, "UploadId": name} for name, (key, _) in self.uploads.items()]}

    def list_objects_v2(self, *, Bucket: str, Prefix: str, ContinuationToken: str = "") -> dict[str, Any]:  # noqa: N803
        self._called("list_objects_v2")
        keys = sorted(key for key in self.objects if key.startswith(Prefix) and key > ContinuationToken)
        page = keys[: self.page_size]
        answer: dict[str, Any] = {"Contents": [{"Key": key, "Size": len(self.objects[key])} for key in page]}
        if len(keys) > len(page):
            answer |= {"IsTruncated": True, "NextContinuationToken": page[-1]}
        return answer

    def get_object(self, *, Bucket: str, Key: str, Range: str = "bytes=0-") -> dict[str, Any]:  # noqa: N803
        self._called("get_object", Key=Key, Range=Range)
        if Key not in self.objects:
            raise ClientError("NoSuchKey")
        start = int(Range.removeprefix("bytes=").removesuffix("-"))
        return {"Body": io.BytesIO(self.objects[Key][start:])}

    def delete_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        self._called("delete_object", Key=Key)
        self.objects.pop(Key, None)
        return {}


def store_of(client: FakeS3) -> s3.Store:
    """Return a store on a fake client."""
    return s3.Store(client, SETTINGS, (ClientError, OSError))


class AwayError(OSError):
    """What a client raises when nobody answers."""


def away(method: str, values: Mapping[str, Any]) -> None:
    """Be an object store that is not there."""
    raise AwayError('Could not connect to the endpoint URL: "http://store.internal:7070/bucket"')


DATABASE_RULES: dict[str, Any] = {
    "pg_export_snapshot": [{"v": "0001-1"}],
    "pg_current_wal_lsn": [
        {
            "lsn": "0/5000060",
            "wal_segment": "000000010000000000000005",
            "timeline": 1,
            "size_bytes": 5000,
            "version": "17.11 (Debian)",
        }
    ],
    "FROM pg_class": [
        {"name": "migrations", "quoted": "public.migrations"},
        {"name": "credentials_entity", "quoted": "public.credentials_entity"},
        {"name": "workflow_entity", "quoted": "public.workflow_entity"},
    ],
    "SELECT count(*)": [{"v": 7}],
    "encode(sha256": [{"v": "ab" * 32}],
    "to_regclass('migrations')": [{"v": True}],
    "FROM migrations ORDER": [{"name": "Latest1", "timestamp": 17}],
    "to_regclass('installed_packages')": [{"v": True}],
    "FROM installed_packages": [{"package": "n8n-nodes-x", "version": "1.0.0"}],
    "pg_database_size": [{"v": 5000}],
}


@contextlib.contextmanager
def fake_session(config: Config, settings: Database) -> Iterator[database.Snapshot]:
    """Be a database that answers."""
    snapshot = database.Snapshot(FakeConnection(DATABASE_RULES))
    snapshot.begin()
    yield snapshot


class FakeRedis:
    """A Redis that saves after being asked a few times. ``states`` are its answers to INFO persistence, in turn."""

    def __init__(self, states: list[dict[str, Any]]) -> None:
        self.states = states
        self.commands: list[tuple[str, ...]] = []

    def info(self, section: str) -> dict[str, Any]:
        if section == "server":
            return {"redis_version": "8.0.2"}
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def execute_command(self, *words: str) -> None:
        self.commands.append(words)


def program(folder: Path, name: str, body: str) -> Path:
    """Write a program."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


AGE = """
case $1 in
  --encrypt) printf 'age-encryption.org/v1\\n'; exec cat ;;
  --decrypt)
    [ "$(cat "$3")" = right ] || { echo 'age: error: no identity matched' >&2; exit 1; }
    read -r first
    exec cat ;;
esac
"""
N8N = """
kind=${1#export:}
for word in "$@"; do case $word in --output=*) folder=${word#--output=} ;; esac; done
if [ "$kind" = credentials ]; then echo 'No credentials found with specified filters' >&2; exit 1; fi
echo '{"id": "w1"}' > "$folder/w1.json"
"""


def complete_config(tmp_path: Path, with_s3: bool = True) -> Config:
    """Return the settings of a host that has every part, with files and programs to go with them."""
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for name in ("backup_manifest_key", "n8n_encryption_key", "redis_admin_password", "object_store_backup_secret"):
        (secrets / name).write_text(f"{name}-value\n")
    for folder, mode in (("main/.n8n", 0o700), ("main/.cache", 0o700), ("main/.n8n/nodes", 0o700)):
        (tmp_path / "n8n" / folder).mkdir(parents=True, mode=mode)
    (tmp_path / "n8n/main/.n8n/config").write_text('{"encryptionKey": "n8n_encryption_key-value"}')
    (tmp_path / "n8n/main/.n8n/nodes/package.json").write_text('{"dependencies": {"n8n-nodes-x": "1.0.0"}}')
    (tmp_path / "n8n/main/.cache/big").write_text("cached")
    (tmp_path / "n8n/main/note").write_text("kept")
    for folder in ("exports", "files", "release-1.2.3", "etc", "certificates"):
        (tmp_path / folder).mkdir()
    (tmp_path / "current").symlink_to(tmp_path / "release-1.2.3")
    (tmp_path / "etc/n8n.env").write_text("A=b\n")
    (tmp_path / "etc/n8n.env").chmod(0o600)
    (tmp_path / "certificates/acme.json").write_text("{}")
    (tmp_path / "dump.rdb").write_bytes(b"REDIS0012" + os.urandom(1000))
    programs = tmp_path / "bin"
    program(programs, "pg_dump", "printf 'PGDMP'; printf '%s\\n' \"$@\"; head -c 300000 /dev/zero")
    program(
        programs, "pg_restore", "start=$(head -c 5); cat > /dev/null; [ \"$start\" = PGDMP ] && echo 'CREATE TABLE x'"
    )
    program(programs, "age", AGE)
    n8n = program(programs, "n8n", N8N)
    return Config(
        environment="test",
        host=HOST,
        sets_dir=tmp_path / "sets",
        secrets_dir=secrets,
        collection_version="0.1.0",
        state_dir=tmp_path / "state",
        metrics_file=tmp_path / "state" / "n8n_backup.prom",
        lock_file=tmp_path / "lock",
        user="",
        database=Database(bin_dir=programs),
        redis=(Redis(rdb=tmp_path / "dump.rdb"),),
        n8n=N8n(
            data_dir=tmp_path / "n8n",
            export_dir=tmp_path / "exports",
            files_dir=tmp_path / "files",
            cli=n8n,
            user="",
            release=tmp_path / "current",
        ),
        configuration=Paths((tmp_path / "etc", secrets)),
        certificates=Paths((tmp_path / "certificates",)),
        secrets=Secrets((secrets,), ("age1abc", "/etc/recipients")),
        s3=SETTINGS if with_s3 else None,
        minimum_free_mb=1,
    )


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

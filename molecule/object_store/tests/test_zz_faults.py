"""Killed, full and renewed: what was acknowledged is there, and nothing half done is visible."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

testinfra_hosts = ["n8n-platform-object-store"]
DATA = "/srv/test/object-store"
UNIT = "object-store.service"
HEALTHY = "timeout 30 bash -c 'until curl -sfk https://127.0.0.1:7070/health >/dev/null; do sleep 0.2; done'"


class Uploader(threading.Thread):
    """Uploads one object after the other, some in parts, and remembers what was acknowledged."""

    def __init__(self, s3: Any, bucket: str, prefix: str, number: int) -> None:
        super().__init__(daemon=True)
        self.s3, self.bucket, self.prefix = s3, bucket, f"{prefix}{number}/"
        self.random = random.Random(number)
        self.acknowledged: dict[str, str] = {}
        self.failed = 0
        self.done = threading.Event()

    def upload(self, key: str, body: bytes) -> None:
        """Upload one object."""
        if len(body) < 5 * 1024 * 1024:
            self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)
            return
        one = {"Bucket": self.bucket, "Key": key}
        upload = self.s3.create_multipart_upload(**one)["UploadId"]
        half = 5 * 1024 * 1024
        tags = [
            self.s3.upload_part(**one, UploadId=upload, PartNumber=i, Body=part)["ETag"]
            for i, part in enumerate((body[:half], body[half:]), 1)
        ]
        parts = [{"ETag": tag, "PartNumber": i} for i, tag in enumerate(tags, 1)]
        self.s3.complete_multipart_upload(**one, UploadId=upload, MultipartUpload={"Parts": parts})

    def run(self) -> None:
        """Upload until told to stop."""
        for count in range(10000):
            if self.done.is_set():
                return
            body = self.random.randbytes(self.random.choice([10, 100000, 1500000, 6 * 1024 * 1024]))
            # Every third key is written twice, so that versions are made as well.
            key = f"{self.prefix}{count - count % 3 if count % 3 == 2 else count}"
            try:
                self.upload(key, body)
            except (ClientError, BotoCoreError):
                self.failed += 1
                # What is there now may be the old or the new object.
                self.acknowledged.pop(key, None)
                self.done.wait(0.2)
            else:
                self.acknowledged[key] = hashlib.sha256(body).hexdigest()


def test_a_killed_server_loses_nothing_it_acknowledged(host: Any, ours: Any, prefix: str) -> None:
    s3 = ours.client()
    uploaders = [Uploader(ours.client(), ours.bucket, prefix, number) for number in range(3)]
    for uploader in uploaders:
        uploader.start()
    pauses = random.Random(7)
    for _ in range(4):
        uploaders[0].done.wait(pauses.uniform(0.7, 1.5))
        host.check_output(f"systemctl kill --signal=KILL {UNIT}; {HEALTHY}")
    for uploader in uploaders:
        uploader.done.set()
    for uploader in uploaders:
        uploader.join(60)
        assert not uploader.is_alive()
    assert sum(uploader.failed for uploader in uploaders) > 0, "nothing was under way when the server died"
    acknowledged = {key: digest for uploader in uploaders for key, digest in uploader.acknowledged.items()}
    assert len(acknowledged) > 10
    for key, digest in acknowledged.items():
        body = s3.get_object(Bucket=ours.bucket, Key=key)["Body"].read()
        assert hashlib.sha256(body).hexdigest() == digest, key
    # Whatever else is listed is whole: its content has the size and the tag it is listed with.
    listed = [
        one
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=ours.bucket, Prefix=prefix)
        for one in page["Contents"]
    ]
    for one in listed:
        body = s3.get_object(Bucket=ours.bucket, Key=one["Key"])["Body"].read()
        assert len(body) == one["Size"], one
        if "-" not in one["ETag"]:
            assert hashlib.md5(body, usedforsecurity=False).hexdigest() == one["ETag"].strip('"'), one


@pytest.fixture
def small_disk(host: Any, stopped_timers: None, program: Any) -> Iterator[None]:
    """Put the store on a file system of 48 MiB."""
    host.check_output(
        f"systemctl stop {UNIT} && mount -t tmpfs -o size=48m,mode=0700,uid=$(id -u object-store) none {DATA}"
    )
    host.check_output(f"install -d -o object-store -g object-store {DATA}/objects {DATA}/versions")
    host.check_output(f"systemctl start {UNIT} && {HEALTHY}")
    assert program("setup", minimum_free_mb=0).rc == 0
    yield
    host.check_output(f"systemctl stop {UNIT} && umount {DATA} && systemctl start {UNIT} && {HEALTHY}")


def test_a_full_disk_is_said_and_passes(host: Any, ours: Any, root: Any, prefix: str, small_disk: None) -> None:
    s3, bodies, code = ours.client(), {}, ""
    for count in range(20):
        body = os.urandom(4 * 1024 * 1024 + count)
        try:
            s3.put_object(Bucket=ours.bucket, Key=f"{prefix}{count}", Body=body)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            break
        bodies[f"{prefix}{count}"] = body
    assert code == "InsufficientStorage"
    assert len(bodies) > 5
    with pytest.raises(ClientError):
        s3.put_object(Bucket=ours.bucket, Key=f"{prefix}0", Body=os.urandom(4 * 1024 * 1024))
    # Nothing half written is listed, and all that was acknowledged can be read.
    listed = s3.list_objects_v2(Bucket=ours.bucket, Prefix=prefix)["Contents"]
    assert {one["Key"]: one["Size"] for one in listed} == {key: len(body) for key, body in bodies.items()}
    for key, body in bodies.items():
        assert s3.get_object(Bucket=ours.bucket, Key=key)["Body"].read() == body
    # With room again it goes on.
    host.check_output(f"mount -o remount,size=96m {DATA}")
    s3.put_object(Bucket=ours.bucket, Key=f"{prefix}after", Body=body)
    assert s3.get_object(Bucket=ours.bucket, Key=f"{prefix}after")["Body"].read() == body


def test_uploads_stop_before_the_disk_is_full(
    ours: Any, prefix: str, program: Any, refused: Any, stopped_timers: None
) -> None:
    s3, key = ours.client(), f"{prefix}x"
    s3.put_object(Bucket=ours.bucket, Key=key, Body=b"1")
    low = program("guard", minimum_free_mb=10**9)
    assert "uploads are stopped" in low.stderr
    assert refused(s3.put_object, Bucket=ours.bucket, Key=key, Body=b"2") == "AccessDenied"
    assert refused(s3.create_multipart_upload, Bucket=ours.bucket, Key=key) == "AccessDenied"
    assert s3.get_object(Bucket=ours.bucket, Key=key)["Body"].read() == b"1"
    s3.delete_object(Bucket=ours.bucket, Key=key)
    assert program("guard").rc == 0
    s3.put_object(Bucket=ours.bucket, Key=key, Body=b"3")


def test_a_renewed_certificate_is_taken_up(host: Any, ours: Any, running: Callable[[str], None]) -> None:
    before = host.check_output(f"systemctl show -P MainPID {UNIT}")
    host.check_output(
        "cp /etc/n8n-platform/tls/host.crt /run/renewed && cp /run/renewed /etc/n8n-platform/tls/host.crt"
    )
    changed = f"until [ $(systemctl show -P MainPID {UNIT}) != {before} ]; do sleep 0.2; done"
    host.check_output(f"timeout 20 bash -c '{changed}'; {HEALTHY}")
    running(UNIT)
    ours.client().list_objects_v2(Bucket=ours.bucket)


def test_metrics_are_where_others_look(host: Any) -> None:
    host.check_output("systemctl start object-store-guard.service")
    text = host.file("/var/lib/n8n-platform/metrics/object_store.prom").content_string
    values = dict(line.split() for line in text.splitlines() if not line.startswith("#"))
    assert float(values["object_store_free_bytes"]) > 0
    assert values["object_store_uploads_stopped"] == "0"

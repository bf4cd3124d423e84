"""What backups need of any S3 store: the same tests for our own and for one that is external to its user."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

testinfra_hosts = ["n8n-platform-object-store"]
PART = 5 * 1024 * 1024


@pytest.fixture(params=["ours", "external"])
def store(request: pytest.FixtureRequest) -> Any:
    """Return each store in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def s3(store: Any) -> Any:
    """Return a client of the writer."""
    return store.client()


@pytest.fixture
def bucket(store: Any) -> str:
    """Return the bucket's name."""
    return str(store.bucket)


class TestConformance:
    @pytest.mark.parametrize("size", [0, 1, 70000, PART + 3])
    def test_what_was_put_is_got(self, s3: Any, bucket: str, prefix: str, size: int) -> None:
        body = os.urandom(size)
        key = f"{prefix}a b+c/übung-{size}.tar.zst"
        s3.put_object(Bucket=bucket, Key=key, Body=body, Metadata={"set": "20261122T210000Z-a"})
        answer = s3.get_object(Bucket=bucket, Key=key)
        assert answer["Body"].read() == body
        assert answer["Metadata"] == {"set": "20261122T210000Z-a"}
        head = s3.head_object(Bucket=bucket, Key=key)
        assert head["ContentLength"] == size
        if size:
            part = s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={size // 2}-")
            assert part["Body"].read() == body[size // 2 :]

    def test_a_body_that_is_not_what_was_announced_is_refused(
        self, s3: Any, bucket: str, prefix: str, refused: Any
    ) -> None:
        wrong = hashlib.sha256(b"other").digest()
        code = refused(
            s3.put_object, Bucket=bucket, Key=f"{prefix}x", Body=b"one", ChecksumSHA256=base64.b64encode(wrong).decode()
        )
        assert code == "BadDigest"
        assert s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["KeyCount"] == 0

    def test_an_upload_in_parts(self, s3: Any, bucket: str, prefix: str) -> None:
        parts = [os.urandom(PART), os.urandom(PART), os.urandom(7)]
        key = f"{prefix}large"
        upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        tags = [
            s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=i, Body=part)["ETag"]
            for i, part in enumerate(parts, 1)
        ]
        assert s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["KeyCount"] == 0
        assert len(s3.list_parts(Bucket=bucket, Key=key, UploadId=upload)["Parts"]) == 3
        listed = [{"ETag": tag, "PartNumber": i} for i, tag in enumerate(tags, 1)]
        s3.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": listed})
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b"".join(parts)

    def test_an_upload_that_is_given_up_leaves_nothing(self, s3: Any, bucket: str, prefix: str, refused: Any) -> None:
        key = f"{prefix}large"
        upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"x")
        s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
        assert refused(s3.list_parts, Bucket=bucket, Key=key, UploadId=upload) == "NoSuchUpload"
        assert s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["KeyCount"] == 0

    def test_lists_come_in_pages(self, s3: Any, bucket: str, prefix: str) -> None:
        keys = sorted(f"{prefix}{i % 3}/{i:03d}" for i in range(25))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda key: s3.put_object(Bucket=bucket, Key=key, Body=b"1"), keys))
        pages = list(
            s3.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": 10}
            )
        )
        assert [len(page["Contents"]) for page in pages] == [10, 10, 5]
        assert [one["Key"] for page in pages for one in page["Contents"]] == keys
        top = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="/")
        assert [one["Prefix"] for one in top["CommonPrefixes"]] == [f"{prefix}{i}/" for i in range(3)]

    def test_versions_survive_overwriting_and_deleting(self, s3: Any, bucket: str, prefix: str, refused: Any) -> None:
        key = f"{prefix}backup.info"
        versions = [s3.put_object(Bucket=bucket, Key=key, Body=b"%d" % i)["VersionId"] for i in range(3)]
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b"2"
        gone = s3.delete_object(Bucket=bucket, Key=key)
        assert gone["DeleteMarker"] is True
        assert refused(s3.get_object, Bucket=bucket, Key=key) == "NoSuchKey"
        assert s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["KeyCount"] == 0
        listed = s3.list_object_versions(Bucket=bucket, Prefix=prefix)
        assert {one["VersionId"] for one in listed["Versions"]} == set(versions)
        assert [one["VersionId"] for one in listed["DeleteMarkers"]] == [gone["VersionId"]]
        for i, version in enumerate(versions):
            assert s3.get_object(Bucket=bucket, Key=key, VersionId=version)["Body"].read() == b"%d" % i

    def test_the_writer_destroys_nothing(self, s3: Any, bucket: str, prefix: str, refused: Any) -> None:
        key = f"{prefix}locked"
        version = s3.put_object(Bucket=bucket, Key=key, Body=b"keep me")["VersionId"]
        one = {"Bucket": bucket, "Key": key, "VersionId": version}
        soon = datetime.now(UTC) + timedelta(seconds=90)
        retention = {"Mode": "GOVERNANCE", "RetainUntilDate": soon}
        lock = {"ObjectLockEnabled": "Enabled"}
        statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{bucket}/*"}
        attempts: list[tuple[Callable[..., Any], dict[str, Any]]] = [
            (s3.delete_object, one),
            (s3.delete_object, {**one, "BypassGovernanceRetention": True}),
            (s3.put_object_retention, {**one, "Retention": retention}),
            (s3.put_object_retention, {**one, "Retention": retention, "BypassGovernanceRetention": True}),
            (s3.put_object_legal_hold, {**one, "LegalHold": {"Status": "ON"}}),
            (s3.put_object_lock_configuration, {"Bucket": bucket, "ObjectLockConfiguration": lock}),
            (s3.put_bucket_versioning, {"Bucket": bucket, "VersioningConfiguration": {"Status": "Suspended"}}),
            (
                s3.put_bucket_policy,
                {"Bucket": bucket, "Policy": f'{{"Version": "2012-10-17", "Statement": {statement}}}'},
            ),
            (s3.delete_bucket_policy, {"Bucket": bucket}),
            (s3.put_bucket_acl, {"Bucket": bucket, "ACL": "public-read"}),
            (s3.put_object_acl, {"Bucket": bucket, "Key": key, "ACL": "public-read"}),
            (s3.delete_bucket, {"Bucket": bucket}),
            (s3.create_bucket, {"Bucket": "another-bucket"}),
            # A lock chosen by the writer could fill the disk for ever.
            (
                s3.put_object,
                {"Bucket": bucket, "Key": key, "ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": soon},
            ),
        ]
        for call, arguments in attempts:
            assert refused(call, **arguments) == "AccessDenied", (call.__name__, arguments)
        batch = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key, "VersionId": version}]})
        assert [error["Code"] for error in batch["Errors"]] == ["AccessDenied"]
        assert s3.get_object(**one)["Body"].read() == b"keep me"
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b"keep me"

    def test_writers_of_one_key_do_not_mix(self, s3: Any, bucket: str, prefix: str) -> None:
        bodies = [bytes([letter]) * 300000 for letter in b"abcdefgh"]
        key = f"{prefix}contended"
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda body: s3.put_object(Bucket=bucket, Key=key, Body=body), bodies))
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() in bodies
        for answer, body in zip(answers, bodies, strict=True):
            assert s3.get_object(Bucket=bucket, Key=key, VersionId=answer["VersionId"])["Body"].read() == body

# SPDX-License-Identifier: GPL-3.0-or-later
"""Find out, as the one who writes backups, whether a store keeps them safe."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from object_store_base import Settings, StoreError, code_of, current_lock, finding, remembered, write, writer

PROBE = "n8n-platform-probe"

WRITER_ON_BUCKET = (
    "s3:GetBucketLocation",
    "s3:GetBucketObjectLockConfiguration",
    "s3:GetBucketVersioning",
    "s3:ListBucket",
    "s3:ListBucketMultipartUploads",
    "s3:ListBucketVersions",
)

WRITER_ON_OBJECTS = (
    "s3:AbortMultipartUpload",
    "s3:DeleteObject",
    "s3:GetObject",
    "s3:GetObjectRetention",
    "s3:GetObjectVersion",
    "s3:ListMultipartUploadParts",
    "s3:PutObject",
)

# What services answer to a request that is allowed but cannot be carried out.
NOT_REFUSED = {"MalformedPolicy", "MalformedXML", "InvalidRequest", "InvalidArgument", "BucketNotEmpty"}

ADVICE = {
    "InvalidAccessKeyId": "The store does not know the key: check platform_object_store_access_key.",
    "SignatureDoesNotMatch": "The secret does not belong to the key: set secrets_values.object_store_backup_secret.",
    "AuthorizationHeaderMalformed": "Set platform_object_store_region to the region of the bucket.",
    "RequestTimeTooSkewed": "Set the clock of this host; chronyc tracking tells how far it is off.",
    "NoSuchBucket": "Create the bucket with versioning and object lock, or set object_store_create_bucket: true once.",
    "404": "Create the bucket with versioning and object lock, or set object_store_create_bucket: true once.",
    "PermanentRedirect": "The bucket is elsewhere: correct platform_object_store_url and platform_object_store_region.",
}


def reach(settings: Settings, s3: Any) -> list[dict[str, str]]:
    """Return what keeps the writer from using the store at all."""
    try:
        s3.list_objects_v2(Bucket=settings.bucket, MaxKeys=1)
    except Exception as error:
        code = code_of(error)
        kind = type(error).__name__
        advice = ADVICE.get(code, "Check the address, the key and the rights of the key.")
        if kind == "SSLError":
            advice = f"The certificate is not one that {settings.ca_file} proves: set platform_object_store_ca_file."
        elif kind in ("EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError"):
            advice = f"Nothing answers at {settings.url}: check platform_object_store_url, the network and the service."
        return [finding(f"The bucket {settings.bucket} cannot be used: {code or kind}: {error}", advice)]
    return []


def safety(settings: Settings, s3: Any) -> list[dict[str, str]]:
    """Return what is missing in the bucket's own protection."""
    found = []
    try:
        if s3.get_bucket_versioning(Bucket=settings.bucket).get("Status") != "Enabled":
            advice = "Switch versioning on; without it whoever overwrites a backup destroys it."
            found.append(finding(f"The bucket {settings.bucket} keeps no versions.", advice))
        lock = current_lock(s3, settings.bucket) or {}
        retention = lock.get("Rule", {}).get("DefaultRetention", {})
        days = int(retention.get("Days", 0)) or int(retention.get("Years", 0)) * 365
        if settings.lock_mode and days < settings.lock_days:
            held = f"only {days} days" if days else "no time"
            text = f"The bucket {settings.bucket} locks objects for {held}, wanted are {settings.lock_days} days."
            advice = (
                f"Set its object lock to {settings.lock_mode} for {settings.lock_days} days (most services allow"
                " that only for a bucket made with object lock), or set object_store_lock_mode: none."
            )
            found.append(finding(text, advice))
    except s3.exceptions.ClientError as error:
        text = f"The key may not read how the bucket is protected: {code_of(error)}."
        found.append(finding(text, "Allow s3:GetBucketVersioning and s3:GetBucketObjectLockConfiguration."))
    return found


def forbidden(s3: Any, bucket: str, version: str, lock: dict[str, Any] | None) -> Iterator[tuple[str, str, Any]]:
    """Yield what the writer must not be able to do: name of the right, why, and a call that does no harm if it can."""
    one = {"Bucket": bucket, "Key": PROBE, "VersionId": version}
    until = datetime.fromtimestamp(time.time() + 120, tz=UTC)
    yield ("s3:DeleteObjectVersion", "destroy versions", lambda: s3.delete_object(**one))
    yield (
        "s3:BypassGovernanceRetention",
        "destroy locked versions",
        lambda: s3.delete_object(**one, BypassGovernanceRetention=True),
    )
    if lock:
        retention = {"Mode": "GOVERNANCE", "RetainUntilDate": until}
        yield (
            "s3:PutObjectRetention",
            "change the lock of a version",
            lambda: s3.put_object_retention(**one, Retention=retention, BypassGovernanceRetention=True),
        )
        yield (
            "s3:PutBucketObjectLockConfiguration",
            "change the lock of the bucket",
            lambda: s3.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration=lock),
        )
    yield (
        "s3:PutBucketVersioning",
        "stop the keeping of versions",
        lambda: s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}),
    )
    # What follows is asked for in a way that no service can carry out.
    broken = '{"Version": "2012-10-17", "Statement": []}'
    yield ("s3:PutBucketPolicy", "change who may do what", lambda: s3.put_bucket_policy(Bucket=bucket, Policy=broken))
    rules: dict[str, Any] = {"Rules": []}
    yield (
        "s3:PutLifecycleConfiguration",
        "let the store delete by itself",
        lambda: s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules),
    )
    # There are versions in the bucket now, so nobody can.
    yield ("s3:DeleteBucket", "delete the bucket", lambda: s3.delete_bucket(Bucket=bucket))


def rights(settings: Settings, s3: Any) -> list[dict[str, str]]:
    """Return what the writer cannot do but must, and what it can do but must not."""
    bucket, body = settings.bucket, os.urandom(64)
    step = "put an object"
    try:
        first = s3.put_object(Bucket=bucket, Key=PROBE, Body=body).get("VersionId", "")
        step = "read an object"
        same = s3.get_object(Bucket=bucket, Key=PROBE)["Body"].read() == body
        step = "list objects"
        listed = s3.list_objects_v2(Bucket=bucket, Prefix=PROBE).get("KeyCount", 0)
        step = "delete an object"
        s3.delete_object(Bucket=bucket, Key=PROBE)
        step = "read a version that was deleted"
        if not (same and listed and first):
            raise StoreError("what was written is not what is there")
        kept = s3.get_object(Bucket=bucket, Key=PROBE, VersionId=first)["Body"].read() == body
        if not kept:
            raise StoreError("an older version is not what was written")
    except (s3.exceptions.ClientError, StoreError) as error:
        advice = f"Allow {', '.join(WRITER_ON_OBJECTS)} on the bucket's objects, and check that it keeps versions."
        return [finding(f"The key cannot {step}: {error}", advice)]
    found = []
    lock = current_lock(s3, bucket)
    for right, what, attempt in forbidden(s3, bucket, first, lock):
        try:
            attempt()
        except s3.exceptions.ClientError as error:
            code = code_of(error)
            if code not in NOT_REFUSED:
                continue
        advice = f"Take {right} away from the key {settings.writer}: whoever steals it could destroy all backups."
        found.append(finding(f"The key may {what}.", advice))
    return found


def fingerprint(settings: Settings) -> str:
    """Return what identifies the store, the key and its secret, without telling them."""
    parts = [settings.url, settings.bucket, settings.writer, settings.secret("object_store_backup_secret")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def check(settings: Settings, all_rights: bool) -> list[dict[str, str]]:
    """Return what is wrong with the store, seen by the one who writes backups.

    The rights are tried once for each store and key, because each trial leaves a small version behind; ``all_rights``
    tries them again.
    """
    s3 = writer(settings)
    found = reach(settings, s3)
    if found:
        return found
    found = safety(settings, s3)
    memory = Path(settings.checked_file)
    mark = fingerprint(settings)
    if all_rights or remembered(memory).get("fingerprint") != mark:
        wrong = rights(settings, s3)
        if not wrong:
            write(memory, json.dumps({"fingerprint": mark}) + "\n")
        found += wrong
    return found

"""Old versions go when they may, new ones are locked, and an external store that is not safe is refused in words."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

testinfra_hosts = ["n8n-platform-object-store"]
# Their own for each run, so that the tests can be repeated.
RUN = uuid.uuid4().hex[:12]
SCRATCH = {
    "bucket": f"scratch-{RUN}",
    "lock_mode": None,
    "purge_days": 0,
    "upload_days": 0,
    "checked_file": "/run/checked.json",
}


def test_a_version_gets_its_own_lock(
    host: Any, ours: Any, root: Any, prefix: str, refused: Any, stopped_timers: None
) -> None:
    key = f"{prefix}locked"
    version = ours.client().put_object(Bucket=ours.bucket, Key=key, Body=b"1")["VersionId"]
    one = {"Bucket": ours.bucket, "Key": key, "VersionId": version}
    # Until then the bucket's own lock covers it, also from root.
    assert refused(root.delete_object, **one) == "AccessDenied"
    host.check_output("systemctl start object-store-keep.service")
    lock = root.get_object_retention(**one)["Retention"]
    left = lock["RetainUntilDate"] - datetime.now(UTC)
    assert lock["Mode"] == "GOVERNANCE"
    assert timedelta(days=2) - timedelta(minutes=5) < left <= timedelta(days=2)
    assert refused(root.delete_object, **one) == "AccessDenied"
    root.delete_object(**one, BypassGovernanceRetention=True)


def test_what_is_locked_stays_however_old(
    ours: Any, root: Any, prefix: str, program: Any, stopped_timers: None
) -> None:
    s3, key = ours.client(), f"{prefix}replaced"
    old = s3.put_object(Bucket=ours.bucket, Key=key, Body=b"old")["VersionId"]
    s3.put_object(Bucket=ours.bucket, Key=key, Body=b"new")
    figures = json.loads(program("keep", purge_days=0).stdout)
    assert figures["errors"] == []
    assert figures["still_locked"] >= 1
    assert s3.get_object(Bucket=ours.bucket, Key=key, VersionId=old)["Body"].read() == b"old"


def test_what_was_replaced_or_deleted_goes(root: Any, program: Any, stopped_timers: None) -> None:
    bucket = SCRATCH["bucket"]
    assert program("setup", **SCRATCH).rc == 0
    assert json.loads(program("setup", **SCRATCH).stdout) == {"changed": []}
    for key in ("kept", "gone"):
        for body in (b"1", b"2"):
            root.put_object(Bucket=bucket, Key=key, Body=body)
    root.delete_object(Bucket=bucket, Key="gone")
    root.create_multipart_upload(Bucket=bucket, Key="never-ended")
    first = json.loads(program("keep", **SCRATCH).stdout)
    assert (first["removed"], first["uploads_aborted"], first["errors"]) == (3, 1, [])
    second = json.loads(program("keep", **SCRATCH).stdout)
    assert second["removed"] == 1
    listed = root.list_object_versions(Bucket=bucket)
    assert [one["Key"] for one in listed["Versions"]] == ["kept"]
    assert "DeleteMarkers" not in listed
    assert root.get_object(Bucket=bucket, Key="kept")["Body"].read() == b"2"
    assert "Uploads" not in root.list_multipart_uploads(Bucket=bucket)
    # With a longer time nothing goes.
    root.put_object(Bucket=bucket, Key="kept", Body=b"3")
    assert json.loads(program("keep", **{**SCRATCH, "purge_days": 1}).stdout)["removed"] == 0


def findings(program: Callable[..., Any], host: Any, **changed: Any) -> str:
    """Return what a check from the other host says, which must be that the store is not good."""
    result = program("check --rights", host=host, checked_file="/run/checked.json", **changed)
    assert result.rc == 1, result.stdout + result.stderr
    return str(result.stdout + result.stderr)


def test_a_store_that_is_not_safe_is_refused(program: Any, backup_host: Any, ours: Any, server: Any) -> None:
    assert program("setup", **{**SCRATCH, "bucket": f"unlocked-{RUN}"}).rc == 0
    said = findings(program, backup_host, bucket=f"unlocked-{RUN}")
    assert "locks objects for no time, wanted are 2 days" in said
    assert "wanted are 400 days" in findings(program, backup_host, lock_days=400)
    assert "NoSuchBucket" in findings(program, backup_host, bucket="missing")
    assert "InvalidAccessKeyId" in findings(program, backup_host, writer="stranger")
    assert "platform_object_store_ca_file" in findings(program, backup_host, ca_file="/etc/ssl/certs/ISRG_Root_X1.pem")
    assert "Nothing answers" in findings(program, backup_host, url=ours.settings["url"].replace("7070", "7077"))


def test_a_key_that_may_too_much_is_refused(program: Any, server: Any) -> None:
    """Root's own key, passed off as the writer's."""
    server.check_output(
        "mkdir -p /run/as-root && cd /etc/n8n-platform/secrets"
        " && cp object_store_root_secret /run/as-root/object_store_backup_secret"
    )
    said = findings(program, server, writer="keeper", root=None, secrets_dir="/run/as-root")
    for what in (
        "destroy locked versions",
        "change the lock of the bucket",
        "change who may do what",
        "delete the bucket",
    ):
        assert f"The key may {what}." in said, said


def test_settings_that_cannot_work_are_refused(converge: Callable[..., Any]) -> None:
    result = converge("--limit", "object_store", "--check", platform_object_store_url="http://10.0.0.1:9000")
    assert result.returncode != 0
    assert "Plain HTTP would show the backups to the network" in result.stdout

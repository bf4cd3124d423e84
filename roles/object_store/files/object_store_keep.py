# SPDX-License-Identifier: GPL-3.0-or-later
"""Lock what is new in the store and remove what is old: what other services do by lifecycle rules."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from object_store_base import Settings, administrator, code_of, remembered, wanted_lock, write

DAY = 86400

BATCH = 1000

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ULID_LENGTH, ULID_TIME_LENGTH = 26, 10


@dataclass(frozen=True)
class Version:
    """One entry of a key's history: a version of the object, or a mark that it was deleted."""

    key: str
    id: str
    marker: bool
    latest: bool

    @property
    def born(self) -> float | None:
        """Seconds since 1970 at which it was made, from its identifier.

        A mark of deletion carries the date of the object it hides, so the listed date says nothing about its age.
        """
        return ulid_time(self.id)


def ulid_time(text: str) -> float | None:
    """Return the time in a ULID, seconds since 1970, or None if ``text`` is none."""
    if len(text) != ULID_LENGTH or any(letter not in CROCKFORD for letter in text):
        return None
    number = 0
    for letter in text[:ULID_TIME_LENGTH]:
        number = number * 32 + CROCKFORD.index(letter)
    return number / 1000


def purgeable(history: Sequence[Version], now: float, days: int) -> list[Version]:
    """Return the entries of one key that were replaced or deleted more than ``days`` ago.

    The current version always stays, and so does a mark of deletion as long as it hides anything: without it the
    hidden version would be the current one again. Entries whose age is not known stay.
    """
    dated = sorted(((one.born, one) for one in history if one.born is not None), key=lambda pair: pair[0], reverse=True)
    if len(dated) != len(history):
        return []
    limit = now - days * DAY
    old = [one for (newer, _), (_, one) in pairwise(dated) if newer < limit and not one.latest]
    if len(dated) == 1 and dated[0][1].marker and dated[0][0] < limit:
        return [dated[0][1]]
    return old


def histories(s3: Any, bucket: str) -> Iterator[list[Version]]:
    """Yield all versions and marks of each key, key by key."""
    pages = s3.get_paginator("list_object_versions").paginate(Bucket=bucket)
    current: list[Version] = []
    for page in pages:
        entries = [
            Version(item["Key"], item["VersionId"], marker, bool(item["IsLatest"]))
            for name, marker in (("Versions", False), ("DeleteMarkers", True))
            for item in page.get(name, [])
        ]
        for entry in sorted(entries, key=lambda one: one.key):
            if current and current[0].key != entry.key:
                yield current
                current = []
            current.append(entry)
    if current:
        yield current


def lock_version(s3: Any, settings: Settings, one: Version, now: float) -> bool:
    """Lock a version that has no lock of its own until it is ``lock_days`` old; return whether it was done."""
    where = {"Bucket": settings.bucket, "Key": one.key, "VersionId": one.id}
    try:
        s3.get_object_retention(**where)
    except s3.exceptions.ClientError as error:
        if code_of(error) not in ("NoSuchObjectLockConfiguration", "InvalidRequest"):
            raise
    else:
        return False
    until = max((one.born or now) + settings.lock_days * DAY, now + 60)
    retention = {"Mode": settings.lock_mode, "RetainUntilDate": datetime.fromtimestamp(until, tz=UTC)}
    s3.put_object_retention(**where, Retention=retention)
    return True


def remove(s3: Any, bucket: str, entries: list[Version]) -> tuple[int, int, list[str]]:
    """Delete entries for good; return how many went, how many are still locked, and other errors."""
    locked, errors = 0, []
    for start in range(0, len(entries), BATCH):
        batch = [{"Key": one.key, "VersionId": one.id} for one in entries[start : start + BATCH]]
        answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
        for one in answer.get("Errors", []):
            # Root is refused nothing but what is locked.
            if one.get("Code") in ("AccessDenied", "ObjectLocked"):
                locked += 1
            else:
                errors.append(f"{one.get('Key')}: {one.get('Code')} {one.get('Message')}")
    return len(entries) - locked - len(errors), locked, errors


def stale_uploads(s3: Any, bucket: str, before: float) -> Iterator[tuple[str, str]]:
    """Yield key and id of each upload in parts that was begun before a time and never ended."""
    for page in s3.get_paginator("list_multipart_uploads").paginate(Bucket=bucket):
        for upload in page.get("Uploads", []):
            if upload["Initiated"].timestamp() < before:
                yield upload["Key"], upload["UploadId"]


def keep(settings: Settings, now: float) -> dict[str, Any]:
    """Lock new versions, remove what is old, and return the figures.

    versitygw does not lock an object when it is written: the bucket's default only counts from the moment it was set.
    So it is set anew at each run, which covers what was written since, and each version gets its own lock here.
    """
    s3, bucket = administrator(settings), settings.bucket
    memory = Path(settings.state_dir) / "kept.json"
    # Two hours back: clocks are set, and a version may appear in the listing after its time.
    done = float(remembered(memory).get("started", 0)) - 2 * 3600
    if settings.lock_mode:
        s3.put_object_lock_configuration(Bucket=bucket, ObjectLockConfiguration=wanted_lock(settings))
    versions, locked_now, old, undated = 0, 0, [], 0
    for history in histories(s3, bucket):
        versions += len(history)
        undated += sum(one.born is None for one in history)
        if settings.lock_mode:
            new = [one for one in history if not one.marker and (one.born is None or one.born >= done)]
            locked_now += sum(lock_version(s3, settings, one, now) for one in new)
        old += purgeable(history, now, settings.purge_days)
    removed, locked, errors = remove(s3, bucket, old)
    aborted = 0
    for key, upload in list(stale_uploads(s3, bucket, now - settings.upload_days * DAY)):
        s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
        aborted += 1
    figures = {
        "started": now,
        "versions": versions,
        "locked_now": locked_now,
        "removed": removed,
        "still_locked": locked,
        "undated": undated,
        "uploads_aborted": aborted,
        "errors": errors[:20],
    }
    if not errors:
        write(memory, json.dumps(figures) + "\n")
    return figures

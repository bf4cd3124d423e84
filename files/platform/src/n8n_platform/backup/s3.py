# SPDX-License-Identifier: GPL-3.0-or-later
"""The object store: sets lie below ``<prefix>sets/<set id>/``, a set without a manifest is none."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any

from n8n_platform.backup.config import S3, Config
from n8n_platform.backup.errors import PlaceError, UnusableError

MB = 1024 * 1024
# Bytes of a part at least, and parts of an object at most. Two parts are in memory: one fills, one is on its way.
PART = 8 * MB
PARTS_MAX = 9000
CHUNK = 256 * 1024
FOLDER = "sets/"
MISSING = ("404", "NoSuchKey", "NotFound", "NoSuchUpload")
ADVICE = {
    "NoSuchBucket": "the bucket does not exist; run the role object_store, or create it at your provider",
    "InvalidAccessKeyId": "the store does not know this access key; was it rotated or revoked?",
    "SignatureDoesNotMatch": "the secret key is wrong; was it rotated? Run the roles secrets and object_store",
    "AccessDenied": "the access key may not do this; was it rotated or revoked, or is it the wrong bucket?",
    "403": "the access key may not do this; was it rotated or revoked, or is the clock of this host wrong?",
    "RequestTimeTooSkewed": "the clocks of this host and the store differ; look at: timedatectl",
    "QuotaExceeded": "the store is full",
    "XMinioStorageFull": "the store is full",
    "SlowDown": "the store is overloaded",
}


def md5(data: bytes) -> str:
    """Return the header that lets any store check what it received; buckets with object lock insist on it."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


class Upload:
    """An object that is written bit by bit, in parts sent by one thread; ``write`` waits when the store is slow."""

    def __init__(self, store: Store, key: str, expected: int = 0) -> None:
        self.store = store
        self.key = key
        self.part_size = max(PART, math.ceil(expected / PARTS_MAX / MB) * MB)
        self.buffer = bytearray()
        self.upload_id = ""
        self.parts: list[dict[str, Any]] = []
        self.sender = ThreadPoolExecutor(1, thread_name_prefix="s3-upload")
        self.under_way: Future[dict[str, Any]] | None = None

    def write(self, data: bytes) -> None:
        """Add data; raises :class:`PlaceError`, also for parts given earlier."""
        self.buffer += data
        if len(self.buffer) >= self.part_size:
            self._send()

    def _send(self) -> None:
        self._wait()
        if not self.upload_id:
            self.upload_id = self.store.call("create_multipart_upload", Key=self.key)["UploadId"]
        number, data = len(self.parts) + 1, bytes(self.buffer)
        self.buffer.clear()
        self.under_way = self.sender.submit(self._put_part, number, data)

    def _put_part(self, number: int, data: bytes) -> dict[str, Any]:
        answer = self.store.call(
            "upload_part", Key=self.key, UploadId=self.upload_id, PartNumber=number, Body=data, ContentMD5=md5(data)
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _wait(self) -> None:
        if self.under_way is not None:
            under_way, self.under_way = self.under_way, None
            self.parts.append(under_way.result())

    def finish(self) -> None:
        """Complete the object."""
        try:
            if self.upload_id:
                if self.buffer:
                    self._send()
                self._wait()
                self.store.call(
                    "complete_multipart_upload",
                    Key=self.key,
                    UploadId=self.upload_id,
                    MultipartUpload={"Parts": self.parts},
                )
            else:
                self.store.put(self.key, bytes(self.buffer))
        except BaseException:
            self.abandon()
            raise
        self.sender.shutdown()

    def abandon(self) -> None:
        """Throw away what was sent, as far as the store lets us; the next run looks for leftovers again."""
        self.sender.shutdown(cancel_futures=True)
        if self.upload_id:
            upload_id, self.upload_id = self.upload_id, ""
            try:
                self.store.call("abort_multipart_upload", Key=self.key, UploadId=upload_id)
            except PlaceError:
                return


def told(what: str, code: str, error: Exception) -> str:
    """Return how a call failed. What every call would say is said in the same words, so that it is told once."""
    if not code:
        text = str(error).partition(" URL: ")[0]
        return f"does not answer: {text}. Is it running, does this host reach it, is its certificate known here?"
    if code in ADVICE:
        return f"refuses ({code}): {ADVICE[code]}"
    return f"failed at {what}: {error}"


class Store:
    """A bucket. ``client`` is boto3's, ``errors`` are what it raises; every method raises :class:`PlaceError`."""

    name = "s3"

    def __init__(self, client: Any, settings: S3, errors: tuple[type[Exception], ...] = (OSError,)) -> None:
        self.client = client
        self.settings = settings
        self.errors = errors

    @contextmanager
    def _answers(self, what: str) -> Iterator[None]:
        try:
            yield
        except self.errors as error:
            answer = getattr(error, "response", {})
            code = str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""
            kind = MissingError if code in MISSING else PlaceError
            raise kind(f"the object store {self.settings.url} {told(what, code, error)}") from error

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Call a method of the client for our bucket."""
        with self._answers(f"{method} {values.get('Key', values.get('Prefix', ''))}".strip()):
            answer: dict[str, Any] = getattr(self.client, method)(Bucket=self.settings.bucket, **values)
            return answer

    def key(self, set_id: str, name: str) -> str:
        """Return the key of a file of a set."""
        return f"{self.settings.prefix}{FOLDER}{set_id}/{name}"

    def address(self, set_id: str, name: str) -> str:
        """Return what the manifest says about where a file is."""
        return f"s3://{self.settings.bucket}/{self.key(set_id, name)}"

    def put(self, key: str, data: bytes) -> None:
        """Write a small object."""
        self.call("put_object", Key=key, Body=data, ContentMD5=md5(data))

    def upload(self, key: str, expected: int = 0) -> Upload:
        """Return an object to write; ``expected`` is the greatest size it may have, in bytes."""
        return Upload(self, key, expected)

    def get(self, key: str) -> bytes | None:
        """Return a small object, None when there is none."""
        try:
            return b"".join(self.stream(key))
        except MissingError:
            return None

    def stream(self, key: str, start: int = 0) -> Iterator[bytes]:
        """Yield an object from a byte on."""
        body: IO[bytes] = self.call("get_object", Key=key, **({"Range": f"bytes={start}-"} if start else {}))["Body"]
        with self._answers(f"reading {key}"):
            while chunk := body.read(CHUNK):
                yield chunk

    def delete(self, key: str) -> None:
        """Remove an object; in a versioned bucket its last version stays readable for the store's owner."""
        self.call("delete_object", Key=key)

    def contents(self) -> dict[str, dict[str, int]]:
        """Return what lies there: ``set id -> file -> size``, sets without a manifest included."""
        found: dict[str, dict[str, int]] = {}
        start = f"{self.settings.prefix}{FOLDER}"
        values: dict[str, Any] = {"Prefix": start}
        while True:
            page = self.call("list_objects_v2", **values)
            for entry in page.get("Contents", ()):
                set_id, _, name = entry["Key"][len(start) :].partition("/")
                if name:
                    found.setdefault(set_id, {})[name] = int(entry["Size"])
            if not page.get("IsTruncated"):
                return found
            values["ContinuationToken"] = page["NextContinuationToken"]

    def abort_uploads(self, mine: Callable[[str], bool]) -> int:
        """Throw away uploads that a killed run began for sets that are ``mine``; return how many."""
        start = f"{self.settings.prefix}{FOLDER}"
        page = self.call("list_multipart_uploads", Prefix=start)
        begun = [entry for entry in page.get("Uploads") or () if mine(entry["Key"][len(start) :].partition("/")[0])]
        for entry in begun:
            self.call("abort_multipart_upload", Key=entry["Key"], UploadId=entry["UploadId"])
        return len(begun)


class MissingError(PlaceError):
    """There is no such object."""


def connect(config: Config) -> Store | None:
    """Return the object store, None when none is set. It is only asked with the first call."""
    settings = config.s3
    if settings is None:
        return None
    secret = config.secret(settings.secret)
    # Nobody else's settings for S3 may change where our backups go.
    os.environ.update(
        AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull, AWS_EC2_METADATA_DISABLED="true"
    )
    try:
        import boto3.session  # noqa: PLC0415  (a slow import that most commands do not need)
        from botocore.config import Config as Options  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    except ImportError as error:
        raise UnusableError(f"the Python library for S3 is missing ({error}). Install python3-boto3.") from error
    client = boto3.session.Session(
        aws_access_key_id=settings.access_key, aws_secret_access_key=secret, region_name=settings.region
    ).client(
        "s3",
        endpoint_url=settings.url or None,
        verify=settings.ca_file or None,
        config=Options(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            connect_timeout=5,
            read_timeout=60,
            retries={"total_max_attempts": 4, "mode": "standard"},
            # Not every store knows the newer checksums; each of our writes carries its own.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    return Store(client, settings, (BotoCoreError, ClientError, OSError))

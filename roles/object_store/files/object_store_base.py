# SPDX-License-Identifier: GPL-3.0-or-later
"""What all parts of the object store's program need: its settings and ways to ask the store."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1024 * 1024


class StoreError(Exception):
    """The store refused or did not answer; the text is for people."""


@dataclass(frozen=True)
class Settings:
    """What the role wrote for this program."""

    url: str
    region: str
    bucket: str
    ca_file: str
    secrets_dir: str
    state_dir: str
    writer: str
    root: str | None
    lock_mode: str | None
    lock_days: int
    purge_days: int
    upload_days: int
    minimum_free_mb: int
    data_dir: str
    metrics_file: str
    checked_file: str

    @classmethod
    def load(cls, path: Path) -> Settings:
        """Read the settings; raises OSError, ValueError or TypeError when they are not what the role writes."""
        given = json.loads(path.read_text(encoding="utf-8"))
        numbers = [name for name, kind in cls.__annotations__.items() if kind == "int"]
        return cls(**{**given, **{name: int(given[name]) for name in numbers}})

    def secret(self, name: str) -> str:
        """Return a secret from the unit's credentials, or from the platform's directory."""
        path = Path(os.environ.get("CREDENTIALS_DIRECTORY") or self.secrets_dir) / name
        return path.read_text(encoding="utf-8").rstrip("\n")


def code_of(error: Exception) -> str:
    """Return the code of an S3 error, or the name of another error."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    return type(error).__name__


def finding(problem: str, advice: str, severity: str = "error") -> dict[str, str]:
    """Return one finding, as the doctor prints it."""
    return {"severity": severity, "problem": problem, "advice": advice}


def client(settings: Settings, access_key: str, secret: str) -> Any:
    """Return an S3 client; imported here because most calls of ``guard`` need none and it is slow to load."""
    import boto3  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    return boto3.client(
        "s3",
        endpoint_url=settings.url,
        region_name=settings.region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret,
        verify=settings.ca_file,
        config=Config(
            connect_timeout=5,
            read_timeout=60,
            retries={"mode": "standard", "max_attempts": 3},
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def administrator(settings: Settings) -> Any:
    """Return a client of the account that owns the bucket: root of our own store, else the writer."""
    if settings.root:
        return client(settings, settings.root, settings.secret("object_store_root_secret"))
    return writer(settings)


def writer(settings: Settings) -> Any:
    """Return a client of the account that writes backups."""
    return client(settings, settings.writer, settings.secret("object_store_backup_secret"))


def write(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(text, encoding="utf-8")
    new.chmod(0o644)
    new.replace(path)


def remembered(path: Path) -> dict[str, Any]:
    """Return what an earlier run wrote, or nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def wanted_lock(settings: Settings) -> dict[str, Any]:
    """Return the lock configuration of the bucket."""
    if not settings.lock_mode:
        return {"ObjectLockEnabled": "Enabled"}
    rule = {"DefaultRetention": {"Mode": settings.lock_mode, "Days": settings.lock_days}}
    return {"ObjectLockEnabled": "Enabled", "Rule": rule}


def current_lock(s3: Any, bucket: str) -> dict[str, Any] | None:
    """Return the lock configuration of the bucket, None if it has none."""
    try:
        found = s3.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"]
    except s3.exceptions.ClientError as error:
        if code_of(error) == "ObjectLockConfigurationNotFoundError":
            return None
        raise
    retention = found.get("Rule", {}).get("DefaultRetention") or {}
    rule = {"Rule": {"DefaultRetention": retention}} if retention else {}
    return {"ObjectLockEnabled": found.get("ObjectLockEnabled", ""), **rule}

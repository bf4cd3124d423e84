# SPDX-License-Identifier: GPL-3.0-or-later
"""Set ids and the signed descriptions of sets."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from n8n_platform.backup.errors import BackupError

FORMAT = 1
NAME = "manifest.json"
SIGNING_KEY = "backup_manifest_key"
ENCRYPTION_KEY = "n8n_encryption_key"
FINGERPRINT_MESSAGE = b"n8n-platform encryption key fingerprint v1"
SIGNATURE = "signature"
METHOD = "hmac-sha256:"
ID_TIME = "%Y%m%dT%H%M%SZ"
ID_PATTERN = re.compile(r"(\d{8}T\d{6}Z)-([A-Za-z0-9][A-Za-z0-9._-]*)")
# A file's name in a manifest becomes a path; it must never lead out of the set's directory.
FILE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class SignatureError(BackupError):
    """A description was changed, or signed with another key; nothing in it may be believed."""


def set_id(moment: datetime, host: str) -> str:
    """Return the id of a set that was begun at a moment."""
    found = f"{moment.astimezone(UTC).strftime(ID_TIME)}-{host}"
    if not ID_PATTERN.fullmatch(found):
        raise BackupError(f"the host name {host!r} cannot be part of a file name; set it in the settings")
    return found


def parse_id(text: str) -> tuple[datetime, str] | None:
    """Return the moment and the host of a set id, None when it is none."""
    match = ID_PATTERN.fullmatch(text)
    if not match:
        return None
    try:
        return datetime.strptime(match[1], ID_TIME).replace(tzinfo=UTC), match[2]
    except ValueError:
        return None


def stamp(moment: datetime) -> str:
    """Return a moment as manifests say it."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def canonical(document: Mapping[str, Any]) -> bytes:
    """Return the bytes that are signed: the document without its signature, in one spelling only."""
    content = {name: value for name, value in document.items() if name != SIGNATURE}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def signature(document: Mapping[str, Any], key: str) -> str:
    """Return the signature of a document."""
    return METHOD + hmac.new(key.encode(), canonical(document), hashlib.sha256).hexdigest()


def sign(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the document with its signature."""
    return {**document, SIGNATURE: signature(document, key)}


def encode(document: Mapping[str, Any]) -> bytes:
    """Return a document as it is written to a file."""
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def decode(data: bytes, key: str | None, what: str) -> dict[str, Any]:
    """Read a signed document; raise :class:`SignatureError` when it is damaged or its signature does not fit.

    Without a key the signature cannot be checked: only where a new host has no secrets yet.
    """
    try:
        document = json.loads(data)
        signed = str(document[SIGNATURE])
        form = document["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise SignatureError(f"{what} is damaged ({error}). Do not restore from it; use another set.") from error
    if key is not None and not hmac.compare_digest(signed, signature(document, key)):
        raise SignatureError(
            f"{what} was changed after it was signed, or signed with another {SIGNING_KEY}. Do not restore from it; "
            "use another set, or bring back the key of the host that made it."
        )
    if form != FORMAT:
        raise SignatureError(f"{what} has format {form}, this program knows {FORMAT}. Use the newer collection.")
    return dict(document)


def fingerprint(encryption_key: str) -> str:
    """Return what tells n8n's encryption key from another one without giving it away."""
    return hmac.new(encryption_key.encode(), FINGERPRINT_MESSAGE, hashlib.sha256).hexdigest()[:32]


@dataclass(frozen=True)
class File:
    """One file of a set. ``s3`` is its address in the object store, empty when it is not there."""

    name: str
    part: str
    size: int
    sha256: str
    s3: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the entry of a manifest."""
        return {"name": self.name, "part": self.part, "size": self.size, "sha256": self.sha256, "s3": self.s3 or None}


def files(document: Mapping[str, Any]) -> list[File]:
    """Return the files a manifest lists; raise :class:`SignatureError` for one whose name is no plain name."""
    found = []
    for entry in document.get("files", ()):
        if not FILE_PATTERN.fullmatch(str(entry.get("name", ""))):
            raise SignatureError(f"the manifest of {document.get('id')} lists a file with an impossible name")
        found.append(File(entry["name"], entry["part"], int(entry["size"]), entry["sha256"], entry.get("s3") or ""))
    return found

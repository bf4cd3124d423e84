# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known about a set: every check adds a signed entry to its verification.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from n8n_platform.backup import manifest

NAME = "verification.json"
CHECKSUMS, ARCHIVE, DRILL = "checksums", "archive", "drill"
RESULT_OK, RESULT_FAILED = "ok", "failed"


@dataclass(frozen=True)
class State:
    """What all entries together say: ``ok`` or ``failed``, or empty when the set was never looked at."""

    result: str = ""
    at: str = ""
    by: str = ""
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Tell whether the set can be relied on, as far as we know."""
        return self.result == RESULT_OK


# What is worth most comes first when the newest good check is named.
WORTH = (DRILL, ARCHIVE, CHECKSUMS)


def state(entries: Sequence[Mapping[str, Any]]) -> State:
    """Return what the entries say: the last one of each kind counts, and one that failed outweighs the others."""
    last: dict[str, Mapping[str, Any]] = {}
    for entry in sorted(entries, key=lambda entry: str(entry["at"])):
        last[str(entry["by"])] = entry
    chosen = [entry for entry in last.values() if entry["result"] != RESULT_OK]
    if not chosen:
        chosen = [last[by] for by in WORTH if by in last][:1]
    if not chosen:
        return State()
    entry = chosen[0]
    return State(str(entry["result"]), str(entry["at"]), str(entry["by"]), str(entry.get("detail", "")))


def entry(
    by: str,
    problems: Sequence[str],
    rto_seconds: float | None = None,
    rpo_seconds: float | None = None,
    detail: str = "",
) -> dict[str, Any]:
    """Return a new entry; it failed when there are problems."""
    return {
        "at": manifest.stamp(datetime.now(UTC)),
        "by": by,
        "result": RESULT_FAILED if problems else RESULT_OK,
        "detail": "; ".join(problems) or detail,
        "rto_seconds": rto_seconds,
        "rpo_seconds": rpo_seconds,
    }


def document(set_id: str, entries: Sequence[Mapping[str, Any]], key: str) -> bytes:
    """Return the file."""
    return manifest.encode(manifest.sign({"format": manifest.FORMAT, "id": set_id, "entries": list(entries)}, key))


def parse(data: bytes | None, set_id: str, key: str | None) -> list[dict[str, Any]]:
    """Return the entries of a file; none when it is missing, was changed, or belongs to another set."""
    if data is None:
        return []
    try:
        found = manifest.decode(data, key, f"the verification of {set_id}")
    except manifest.SignatureError:
        return []
    return list(found.get("entries", ())) if found.get("id") == set_id else []

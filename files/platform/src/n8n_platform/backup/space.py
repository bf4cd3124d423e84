# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether there is room for another set; asked before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import PlaceError, SpaceError
from n8n_platform.backup.report import human_size

MB = 1024 * 1024


def estimate(last: Mapping[str, Any], database_size: int | None) -> int:
    """Return the bytes the next set may need: those of the last one, the dump grown as the database has.

    Without a last set the whole database counts, which is more than its dump will need.
    """
    known = {entry["name"]: (entry["part"], int(entry["size"])) for entry in last.get("files", ())}
    others = sum(size for part, size in known.values() if part != "database")
    dump = sum(size for part, size in known.values() if part == "database")
    if database_size is None:
        return others + dump
    before = int((last.get("database") or {}).get("size_bytes") or 0)
    if not dump or not before:
        return others + database_size
    return others + int(dump * max(1.0, database_size / before))


def check(config: Config, last: Mapping[str, Any], database_size: int | None) -> int:
    """Return the estimate; raise :class:`SpaceError` when the set would leave too little room."""
    needed = int(estimate(last, database_size) * config.space_factor)
    reserve = config.minimum_free_mb * MB
    try:
        free = shutil.disk_usage(config.sets_dir).free
    except OSError as error:
        raise PlaceError(f"cannot ask for the room in {config.sets_dir}: {error.strerror}") from error
    if needed + reserve > free:
        raise SpaceError(
            f"not begun: {config.sets_dir} has {human_size(free)} free. The set may need {human_size(needed)}, and "
            f"{human_size(reserve)} must stay free (minimum_free_mb). Nothing was deleted. Make room, for example: "
            "n8n-platform-backup list; shorten retention.local_days; or move the directory to a bigger disk."
        )
    return needed

# SPDX-License-Identifier: GPL-3.0-or-later
"""Which sets go and why each other one stays. Nothing here touches a set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from n8n_platform.backup.config import Gfs
from n8n_platform.backup.sets import Found

# A set may be this much younger than now: two clocks are never the same.
TOLERANCE = timedelta(minutes=10)
PERIODS: dict[str, Callable[[datetime], str]] = {
    "daily": lambda at: at.strftime("%Y-%m-%d"),
    "weekly": lambda at: at.strftime("%G week %V"),
    "monthly": lambda at: at.strftime("%Y-%m"),
}


@dataclass(frozen=True)
class Decision:
    """What becomes of a set, and why."""

    found: Found
    keep: bool
    reason: str


def plan(
    sets: Sequence[Found],
    now: datetime,
    host: str,
    days: int,
    minimum: int,
    gfs: Gfs | None = None,
    clock_problem: str = "",
) -> list[Decision]:
    """Decide on the sets of one place, oldest first. Deletes nothing of other hosts, and nothing when in doubt.

    ``days`` is how long sets stay, ``minimum`` how many complete ones stay whatever their age. The newest verified
    complete set always stays.
    """
    future = [found for found in sets if found.host == host and found.at > now + TOLERANCE]
    if future and not clock_problem:
        clock_problem = f"{future[-1].id} is from the future"
    mine = [found for found in sets if found.host == host and not found.problem and found not in future]
    # A set that failed a check is no reason to let a good one go.
    good = [found for found in mine if found.complete and found.verified.result != "failed"]
    reasons = protected(good, minimum, gfs)
    decisions = []
    for found in sorted(sets, key=lambda entry: (entry.at, entry.id)):
        age = now - found.at
        keep = True
        if found.host != host:
            reason = f"belongs to {found.host}"
        elif found in future:
            reason = "is from the future: check the clock of this host (timedatectl)"
        elif found.problem:
            reason = f"cannot be judged, look at it and delete it by hand: {found.problem}"
        elif age < timedelta(days=days):
            reason = f"is younger than {days} days"
        elif found.id in reasons:
            reason = reasons[found.id]
        elif clock_problem:
            reason = f"nothing is deleted while the clock is in doubt: {clock_problem}"
        else:
            keep, reason = False, f"is {age.days} days old, {days} days are kept"
        decisions.append(Decision(found, keep, reason))
    return decisions


def protected(good: Sequence[Found], minimum: int, gfs: Gfs | None) -> dict[str, str]:
    """Return the sets that stay whatever their age: ``id -> reason``."""
    newest_first = sorted(good, key=lambda found: (found.at, found.id), reverse=True)
    reasons: dict[str, str] = {}
    for name, label in PERIODS.items():
        kept: set[str] = set()
        wanted = getattr(gfs, name) if gfs else 0
        for found in newest_first:
            period = label(found.at.astimezone(UTC))
            if period not in kept and len(kept) < wanted:
                kept.add(period)
                reasons.setdefault(found.id, f"is the {name} one of {period}")
    for found in newest_first[:minimum]:
        reasons[found.id] = f"is one of the newest {minimum}"
    for found in newest_first:
        if found.verified.ok:
            reasons[found.id] = "is the newest verified one"
            break
    return reasons

# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this host is backed up. Only this host is asked, so that there is an answer when all else is down."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from n8n_platform.backup import lock, sets, state
from n8n_platform.backup.config import Config
from n8n_platform.backup.errors import PlaceError
from n8n_platform.backup.report import human_age, human_size

HOUR = 3600
DAY = 24 * HOUR


def collect(config: Config) -> dict[str, Any]:
    """Return the state as JSON shows it: ``ok``, ``problems`` with what to do, and the figures behind them."""
    remembered = state.read(config)
    now = datetime.now(UTC).timestamp()
    under_way = lock.is_held(config.lock_file)
    problems = [*runs(config, remembered, now), *killed(remembered, under_way), *drills(config, remembered, now)]
    newest: dict[str, Any] | None = None
    try:
        found = [
            entry
            for entry in sets.everything(sets.LocalShelf(config.sets_dir), sets.signing_key(config))
            if entry.host == config.host
        ]
    except PlaceError as error:
        problems.append(str(error))
        found = []
    problems += [f"{entry.id} must not be used: {entry.problem}" for entry in found if entry.problem]
    good = [entry for entry in found if not entry.problem]
    if good:
        last = good[-1]
        newest = {
            "id": last.id,
            "age_seconds": int(sets.age_seconds(last)),
            "size_bytes": last.size,
            "complete": last.complete,
            "verified": vars(last.verified),
            "in_s3": all(entry.get("s3") for entry in last.document["files"]),
        }
        if last.verified.result == "failed":
            problems.append(
                f"{last.id} failed its check ({last.verified.detail}). Make a new one: n8n-platform-backup run"
            )
        elif not last.verified.result and not under_way:
            problems.append(f"{last.id} was never verified: n8n-platform-backup verify {last.id}")
        if config.s3 and not newest["in_s3"] and not under_way:
            problems.append(f"{last.id} is not in the object store. The next run tries again: n8n-platform-backup run")
    return {
        "ok": not problems,
        "problems": problems,
        "host": config.host,
        "environment": config.environment,
        "under_way": under_way,
        "newest": newest,
        "sets": remembered.get("sets", {}),
        "set": remembered.get(state.SET, {}),
        "physical": remembered.get(state.PHYSICAL, {}) if config.physical else None,
        "drill": remembered.get("drill", {}),
    }


def runs(config: Config, remembered: dict[str, Any], now: float) -> list[str]:
    """Return what is wrong with the last runs."""
    problems = list(remembered.get("problems", ()))
    kinds = [kind for kind, on in ((state.SET, config.parts), (state.PHYSICAL, config.physical)) if on]
    for kind in kinds:
        noun = "backup set" if kind == state.SET else "physical backup"
        last = remembered.get(kind, {}).get("last_success")
        if last is None:
            problems.append(f"this host never had a complete {noun}. Make one: n8n-platform-backup run")
        elif config.maximum_age_hours and now - last > config.maximum_age_hours * HOUR:
            problems.append(
                f"the last complete {noun} is {human_age(now - last)} old, more than {config.maximum_age_hours} h. "
                "Why: journalctl -u n8n-backup -n 100. Make one: n8n-platform-backup run"
            )
    return problems


def killed(remembered: dict[str, Any], under_way: bool) -> list[str]:
    """Return a problem when the last run did not come to an end."""
    running = remembered.get("running", {})
    if not running.get("since") or under_way:
        return []
    return [
        f"the run that began at {running['since']} was killed or stopped. Why: journalctl -u n8n-backup -n 100; "
        "lack of memory: journalctl -k | grep -i oom. Make a new one: n8n-platform-backup run"
    ]


def drills(config: Config, remembered: dict[str, Any], now: float) -> list[str]:
    """Return what is wrong with the drills."""
    drill = remembered.get("drill", {})
    if drill.get("failed"):
        return [f"the last drill failed: {drill.get('detail', '')}. Repeat it: n8n-platform-backup drill"]
    days = config.maximum_drill_age_days
    # A new host has as long for its first drill.
    first = remembered.get(state.SET, {}).get("first_success", now)
    if days and now - drill.get("last_success", first) > days * DAY:
        since = f"for {days} days" if drill.get("last_success") else "yet"
        return [f"no backup was restored in a drill {since}. Do it: n8n-platform-backup drill"]
    return []


def lines(found: dict[str, Any]) -> list[str]:
    """Return the state for people."""
    newest = found["newest"]
    text = [f"{found['host']} ({found['environment']}): " + ("all is well" if found["ok"] else "look at this")]
    text += [f"  PROBLEM: {problem}" for problem in found["problems"]]
    if found["under_way"]:
        text.append("  a run is under way")
    if newest:
        verified = newest["verified"]["result"] or "not yet"
        text.append(
            f"  newest set: {newest['id']}, {human_age(newest['age_seconds'])} old, "
            f"{human_size(newest['size_bytes'])}, {'complete' if newest['complete'] else 'incomplete'}, "
            f"verified: {verified}"
        )
    for place, count in sorted(found["sets"].items()):
        text.append(f"  sets ({place}): {count}")
    if found["drill"].get("rto_seconds") is not None:
        text.append(f"  last drill: restored in {found['drill']['rto_seconds']:.0f} s")
    return text

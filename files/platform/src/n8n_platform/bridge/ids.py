# SPDX-License-Identifier: GPL-3.0-or-later
"""Ids of events (UUID version 7: the time of birth comes first) and names of topics."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

_VERSION = 0x7 << 76
_VARIANT = 0x2 << 62
_RANDOM_B = (1 << 62) - 1
_MILLISECONDS = (1 << 48) - 1
_SEVEN = 7
_NOISE = random.Random()  # noqa: S311  (seeded by the system)

DEAD_LETTER = "deadletter"


def new_id(seconds: float) -> UUID:
    """Return an id born at a Unix time; ids of different milliseconds sort by time."""
    # Ids need to differ, not to be secret: events are guarded by their tenant.
    noise = _NOISE.getrandbits(74)
    born = int(seconds * 1000) & _MILLISECONDS
    return UUID(int=born << 80 | _VERSION | (noise >> 62) << 64 | _VARIANT | noise & _RANDOM_B)


def is_event_id(value: UUID) -> bool:
    """Return whether an id can be one of ours; only then has it a day."""
    return value.version == _SEVEN


def born(value: UUID) -> datetime:
    """Return when an id was made, UTC, to the millisecond."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=value.int >> 80)


def day(value: UUID) -> date:
    """Return the day (UTC) an event is stored under."""
    return born(value).date()


def first_id(of_day: date) -> UUID:
    """Return the lowest id of a day: everything below it is older."""
    midnight = datetime(of_day.year, of_day.month, of_day.day, tzinfo=UTC)
    return UUID(int=int(midnight.timestamp()) * 1000 << 80 | _VERSION | _VARIANT)


def pulsar_topic(name: str) -> str:
    """Return Pulsar's full name of ``tenant.namespace.rest``; raise ValueError when it has no three parts.

    >>> pulsar_topic("dealscale.workflow.short")
    'persistent://dealscale/workflow/short'
    """
    tenant, _, rest = name.partition(".")
    namespace, _, topic = rest.partition(".")
    if not (tenant and namespace and topic):
        raise ValueError(f"{name!r} is no topic: it needs the form tenant.namespace.name")
    return f"persistent://{tenant}/{namespace}/{topic}"


def dead_letter_topic(name: str) -> str:
    """Return where messages of a topic go that nobody could deliver.

    >>> dead_letter_topic("dealscale.workflow.short")
    'dealscale.deadletter.workflow.short'
    """
    tenant, _, rest = name.partition(".")
    return f"{tenant}.{DEAD_LETTER}.{rest}"

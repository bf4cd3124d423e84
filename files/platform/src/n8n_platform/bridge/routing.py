# SPDX-License-Identifier: GPL-3.0-or-later
"""Routing: one file says which events go where; the first route that matches wins.

The file is read by :mod:`n8n_platform.bridge.routes_file`. A route says by which way an event travels (a Pulsar topic,
or straight from the database: ``queue``), which webhook of n8n it calls, and how patient the bridge is with it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from urllib.parse import quote

TOPIC = re.compile(r"[a-z0-9_-]+\.[a-z0-9_-]+(\.[a-z0-9_-]+)+")
PLACEHOLDER = re.compile(r"\{(\w+)\}")
PLACEHOLDERS = ("tenant", "type", "workflow")


class NoRouteError(LookupError):
    """No route takes an event; the text says what was looked for."""


class RoutesError(Exception):
    """The file of routes cannot be used. ``problems`` are (line, sentence), lines count from 1."""

    def __init__(self, path: str, problems: Sequence[tuple[int, str]]) -> None:
        super().__init__("\n".join(f"{path}:{line}: {text}" for line, text in problems))
        self.problems = list(problems)


def topic_name(address: str) -> str:
    """Return the short name of a topic from Pulsar's full one, with or without the number of a partition.

    >>> topic_name("persistent://dealscale/workflow/short-partition-3")
    'dealscale.workflow.short'
    """
    return re.sub(r"-partition-\d+$", "", address.removeprefix("persistent://")).replace("/", ".")


@dataclass(frozen=True)
class Backoff:
    """How long to wait before another attempt, seconds: exponential with full jitter."""

    first_s: float = 1.0
    factor: float = 2.0
    max_s: float = 600.0

    def ceiling(self, attempt: int) -> float:
        """Return the longest wait after this many attempts."""
        # The exponent is bounded because 2.0 ** 5000 overflows.
        return float(min(self.max_s, self.first_s * self.factor ** min(max(attempt, 1) - 1, 64)))

    def delay(self, attempt: int, chance: Callable[[], float] = random.random) -> float:
        """Return a wait between nothing and the ceiling; ``chance`` gives a number from 0 to 1."""
        return chance() * self.ceiling(attempt)


class Pattern:
    """Shell patterns, of which one has to match; none at all match everything."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self.patterns = tuple(patterns)
        self._expression = re.compile("|".join(map(translate, self.patterns))) if self.patterns else None

    def matches(self, text: str | None) -> bool:
        """Return whether a text matches; none is like an empty one."""
        return self._expression is None or self._expression.match(text or "") is not None

    @property
    def everything(self) -> bool:
        """Whether any text matches."""
        return self._expression is None or "*" in self.patterns

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and other.patterns == self.patterns

    def __hash__(self) -> int:
        return hash(self.patterns)


@dataclass(frozen=True)
class Route:
    """A way for events. Times are in seconds; ``concurrency`` counts calls under way for one tenant in one process."""

    name: str
    via: str
    topic: str | None = None
    webhook: str | None = None
    timeout_s: float = 30.0
    max_attempts: int = 12
    max_age_s: float = 86400.0
    concurrency: int = 8
    backoff: Backoff = Backoff()
    # Answers that are usually final (400-499) but are tried again on this route.
    retry_statuses: frozenset[int] = frozenset()
    type: Pattern = field(default_factory=Pattern)
    tenant: Pattern = field(default_factory=Pattern)
    workflow: Pattern = field(default_factory=Pattern)

    def takes(self, tenant: str, type: str, workflow: str | None) -> bool:  # noqa: A002
        """Return whether the route takes an event."""
        return self.tenant.matches(tenant) and self.type.matches(type) and self.workflow.matches(workflow)

    @property
    def placeholders(self) -> list[str]:
        """The names in braces in the path of the webhook."""
        return PLACEHOLDER.findall(self.webhook or "")

    def path(self, tenant: str, type: str, workflow: str | None) -> str:  # noqa: A002
        """Return the path of the webhook for an event; raise ValueError when a part of it would be empty or dots."""
        values = {"tenant": tenant, "type": type, "workflow": workflow or ""}
        for name in self.placeholders:
            # n8n would never see such a segment: programs in between resolve it.
            if not values[name].strip("."):
                raise ValueError(f"{name} {values[name]!r} cannot be part of the path {self.webhook}")
        return PLACEHOLDER.sub(lambda match: quote(values[match[1]], safe=""), self.webhook or "")


@dataclass(frozen=True)
class Routes:
    """All routes in the order of the file."""

    routes: tuple[Route, ...]
    by_name: Mapping[str, Route] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {route.name: route for route in self.routes})

    def decide(self, tenant: str, type: str, workflow: str | None = None) -> Route:  # noqa: A002
        """Return the first route that takes an event; raise :class:`NoRouteError` when none does or it lacks a name."""
        for route in self.routes:
            if route.takes(tenant, type, workflow):
                try:
                    route.path(tenant, type, workflow)
                except ValueError as error:
                    raise NoRouteError(f"route {route.name}: {error}") from error
                return route
        raise NoRouteError(f"no route takes type {type!r}, workflow {workflow!r} of tenant {tenant!r}")

    @property
    def topics(self) -> list[str]:
        """The short names of all topics, sorted."""
        return sorted({route.topic for route in self.routes if route.topic})

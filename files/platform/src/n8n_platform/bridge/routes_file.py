# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the file of routes (YAML) and say of every mistake in which line it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from n8n_platform.bridge import routing
from n8n_platform.bridge.routing import Backoff, Pattern, Route, Routes, RoutesError

VERSION = 1
LIMIT_BYTES = 1_000_000
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
VIAS = ("topic", "queue")
# Key in the file -> (attribute of Route, least, most). Times are seconds.
NUMBERS: dict[str, tuple[str, float, float]] = {
    "timeout_seconds": ("timeout_s", 0.1, 3600),
    "max_attempts": ("max_attempts", 1, 1000),
    "max_age_seconds": ("max_age_s", 1, 30 * 86400),
    "concurrency": ("concurrency", 1, 1000),
}
BACKOFF: dict[str, tuple[str, float, float]] = {
    "first_seconds": ("first_s", 0.05, 3600),
    "factor": ("factor", 1, 10),
    "max_seconds": ("max_s", 0.05, 86400),
}
WHOLE = frozenset({"max_attempts", "concurrency"})
TUNING = (*NUMBERS, "backoff", "retry_statuses")
ROUTE_KEYS = ("name", "match", "via", "topic", "webhook", *TUNING)
MATCH_KEYS = ("type", "tenant", "workflow")


class Reader:
    """Reads nodes of YAML and collects problems; what is wrong becomes None, so that all problems come at once."""

    def __init__(self) -> None:
        self.problems: list[tuple[int, str]] = []

    def wrong(self, node: yaml.Node, text: str) -> None:
        """Note a problem at a node."""
        self.problems.append((node.start_mark.line + 1, text))

    def mapping(self, node: yaml.Node, what: str, known: tuple[str, ...]) -> dict[str, yaml.Node]:
        """Return the entries of a mapping; unknown and repeated keys are problems."""
        if not isinstance(node, yaml.MappingNode):
            self.wrong(node, f"{what} must be a mapping of keys to values")
            return {}
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if name not in known:
                self.wrong(key, f"{name} is not a key of {what}; there are: {', '.join(known)}")
            elif name in found:
                self.wrong(key, f"{name} is there twice")
            else:
                found[name] = value
        return found

    def scalar(self, node: yaml.Node) -> Any:
        """Return a plain value, or the node itself when it is none."""
        if not isinstance(node, yaml.ScalarNode):
            return node
        try:
            return yaml.constructor.SafeConstructor().construct_object(node)
        except (yaml.YAMLError, ValueError):
            return node

    def text(self, node: yaml.Node, what: str) -> str | None:
        """Return a text that is not empty."""
        value = self.scalar(node)
        if isinstance(value, str) and value:
            return value
        self.wrong(node, f"{what} must be a text" + ("" if isinstance(value, yaml.Node) else f", not {value!r}"))
        return None

    def texts(self, node: yaml.Node, what: str) -> list[str]:
        """Return a text or a list of texts as a list."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not nodes:
            self.wrong(node, f"{what} is an empty list; leave it out to match everything")
        return [text for item in nodes if (text := self.text(item, what)) is not None]

    def number(self, node: yaml.Node, what: str, least: float, most: float, whole: bool = False) -> float | None:
        """Return a number within limits."""
        value = self.scalar(node)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            self.wrong(node, f"{what} must be a {'whole ' if whole else ''}number")
        elif not least <= value <= most:
            self.wrong(node, f"{what} must be from {least:g} to {most:g}, not {value:g}")
        else:
            return value if whole else float(value)
        return None

    def numbers(self, entries: dict[str, yaml.Node], table: dict[str, tuple[str, float, float]]) -> dict[str, Any]:
        """Return the numbers of a table that are among entries, by attribute."""
        found = {}
        for key, (attribute, least, most) in table.items():
            if key in entries:
                value = self.number(entries[key], key, least, most, key in WHOLE)
                if value is not None:
                    found[attribute] = value
        return found

    def statuses(self, node: yaml.Node) -> frozenset[int]:
        """Return a list of HTTP status codes."""
        if not isinstance(node, yaml.SequenceNode):
            self.wrong(node, "retry_statuses must be a list of status codes from 400 to 499")
            return frozenset()
        values = [self.number(item, "a status code", 400, 499, whole=True) for item in node.value]
        return frozenset(int(value) for value in values if value is not None)


def tuning(reader: Reader, entries: dict[str, yaml.Node], base: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes that say how patient a route is; what is not among entries comes from ``base``."""
    found = {**base, **reader.numbers(entries, NUMBERS)}
    if "backoff" in entries:
        node = entries["backoff"]
        old: Backoff = base.get("backoff", Backoff())
        values = reader.numbers(reader.mapping(node, "backoff", tuple(BACKOFF)), BACKOFF)
        found["backoff"] = Backoff(**{"first_s": old.first_s, "factor": old.factor, "max_s": old.max_s, **values})
        if found["backoff"].first_s > found["backoff"].max_s:
            reader.wrong(node, "first_seconds of backoff is longer than max_seconds")
    if "retry_statuses" in entries:
        found["retry_statuses"] = reader.statuses(entries["retry_statuses"])
    return found


def webhook(reader: Reader, node: yaml.Node) -> str | None:
    """Return the path of a webhook."""
    path = reader.text(node, "webhook")
    if path is None:
        return None
    if not path.startswith("/") or path.startswith("//") or any(sign in path for sign in "?#\\ ") or ".." in path:
        reader.wrong(node, "webhook must be a path as n8n shows it, such as /webhook/orders")
    for name in routing.PLACEHOLDER.findall(path):
        if name not in routing.PLACEHOLDERS:
            reader.wrong(node, f"{{{name}}} is not known; there are: {', '.join(routing.PLACEHOLDERS)}")
    return path


def one(reader: Reader, node: yaml.Node, base: dict[str, Any]) -> Route | None:
    """Return a route, or None when it has no name to speak of."""
    entries = reader.mapping(node, "a route", ROUTE_KEYS)
    if not entries:
        return None
    values = tuning(reader, entries, base)
    if "name" not in entries:
        reader.wrong(node, "the route has no name")
        return None
    name = reader.text(entries["name"], "name")
    if name is None:
        return None
    if not set(name) <= NAME_CHARACTERS:
        reader.wrong(entries["name"], f"name {name!r}: only a-z, 0-9, - and _ are allowed")
    via = reader.text(entries["via"], "via") if "via" in entries else ("topic" if "topic" in entries else "queue")
    if via not in VIAS:
        reader.wrong(entries["via"], f"via must be {' or '.join(VIAS)}")
    if "topic" in entries:
        values["topic"] = reader.text(entries["topic"], "topic")
        if values["topic"] is not None and not routing.TOPIC.fullmatch(values["topic"]):
            reader.wrong(entries["topic"], f"topic {values['topic']!r}: write tenant.namespace.name")
        if via == "queue":
            reader.wrong(entries["topic"], f"route {name} goes by the queue and cannot have a topic")
    elif via == "topic":
        reader.wrong(node, f"route {name} goes by a topic and names none")
    if "webhook" in entries:
        values["webhook"] = webhook(reader, entries["webhook"])
    elif via == "queue":
        reader.wrong(node, f"route {name} goes by the queue and needs a webhook; only a topic can do without")
    if "match" in entries:
        matches = reader.mapping(entries["match"], "match", MATCH_KEYS)
        values.update({key: Pattern(reader.texts(value, key)) for key, value in matches.items()})
    return Route(name=name, via=via or "", **values)


def catches_all(route: Route) -> bool:
    """Return whether a route takes every event."""
    return route.type.everything and route.tenant.everything and route.workflow.everything


def all_of(reader: Reader, node: yaml.Node, base: dict[str, Any]) -> tuple[Route, ...]:
    """Return the routes of a list; two of one name, and those no event can reach, are problems."""
    if not isinstance(node, yaml.SequenceNode):
        reader.wrong(node, "routes must be a list")
        return ()
    found: list[Route] = []
    greedy = ""
    for item in node.value:
        route = one(reader, item, base)
        if route is None:
            continue
        if greedy:
            reader.wrong(item, f"route {route.name} is never reached: {greedy} above it takes everything")
        elif catches_all(route):
            greedy = route.name
        if any(other.name == route.name for other in found):
            reader.wrong(item, f"there are two routes named {route.name}")
        found.append(route)
    return tuple(found)


def parse(text: str, path: str = "routes.yml") -> Routes:
    """Return the routes of a text; raise :class:`RoutesError` with all problems, in the order of their lines."""
    reader = Reader()
    try:
        top = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise RoutesError(path, [(mark.line + 1 if mark else 1, f"not YAML: {problem}")]) from error
    except RecursionError as error:
        raise RoutesError(path, [(1, "nested too deeply")]) from error
    if top is None:
        raise RoutesError(path, [(1, "the file is empty; it needs version and routes")])
    entries = reader.mapping(top, "the file", ("version", "defaults", "routes"))
    for key in ("version", "routes"):
        if key not in entries:
            reader.wrong(top, f"{key} is missing")
    if "version" in entries and reader.scalar(entries["version"]) != VERSION:
        reader.wrong(entries["version"], f"version must be {VERSION}")
    base = {}
    if "defaults" in entries:
        base = tuning(reader, reader.mapping(entries["defaults"], "defaults", TUNING), {})
    routes = all_of(reader, entries["routes"], base) if "routes" in entries else ()
    if reader.problems:
        raise RoutesError(path, sorted(reader.problems))
    return Routes(routes)


def load(path: Path, read: Callable[[Path], bytes] = Path.read_bytes) -> Routes:
    """Return the routes of a file; raise :class:`RoutesError` when it is not there, not text or not right."""
    try:
        content = read(path)
        if len(content) > LIMIT_BYTES:
            raise RoutesError(str(path), [(1, f"the file has more than {LIMIT_BYTES} bytes")])
        return parse(content.decode(), str(path))
    except OSError as error:
        raise RoutesError(str(path), [(1, f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise RoutesError(str(path), [(content[: error.start].count(b"\n") + 1, "not UTF-8")]) from error


class RouteFile:
    """The routes of a file that may change at any time: a good new version counts within a second, a bad one never.

    ``told`` is called after each reading: with None, or with the error that kept the old version in force.
    """

    def __init__(
        self,
        path: Path,
        told: Callable[[RoutesError | None], None] = lambda error: None,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = 1.0,
    ) -> None:
        self.path, self.told, self.clock, self.every_s = path, told, clock, every_s
        self._looked = clock()
        self._seen = self._stamp()
        self._routes = load(path)
        told(None)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    @property
    def current(self) -> Routes:
        """The routes in force; looks at the file's time when the last look is a second ago."""
        now = self.clock()
        if now - self._looked >= self.every_s:
            self._looked = now
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                self._read()
        return self._routes

    def _read(self) -> None:
        try:
            self._routes = load(self.path)
        except RoutesError as error:
            self.told(error)
        else:
            self.told(None)

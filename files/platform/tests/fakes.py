"""Stand-ins for PostgreSQL and Redis: what the services say to them is noted, what they answer is given by the test."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

Answer = list[dict[str, Any]] | Callable[[Mapping[str, Any]], list[dict[str, Any]]]


class FakeConnection:
    """A database that answers the first rule whose text is in the statement, and nothing otherwise."""

    def __init__(self, rules: dict[str, Answer] | None = None) -> None:
        self.rules = rules or {}
        self.statements: list[tuple[str, Mapping[str, Any]]] = []

    def execute(self, query: str, values: Mapping[str, Any] | None = None) -> Any:
        given = values or {}
        self.statements.append((re.sub(r"\s+", " ", query).strip(), given))
        for part, answer in self.rules.items():
            if part in self.statements[-1][0]:
                rows = list(answer(given) if callable(answer) else answer)
                return SimpleNamespace(description=["column"], fetchall=rows.copy)
        reads = query.lstrip().upper().startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"))
        return SimpleNamespace(description=["column"] if reads else None, fetchall=list)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        yield

    def said(self, part: str) -> list[Mapping[str, Any]]:
        """Return the values of all statements that contain a text."""
        return [values for query, values in self.statements if part in query]


class FakePipeline:
    """Commands that are answered together."""

    def __init__(self, client: FakeRedis) -> None:
        self.client = client
        self.answers: list[Any] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def command(*words: Any) -> None:
            self.answers.append(getattr(self.client, name)(*words))

        return command

    def execute(self) -> list[Any]:
        return self.answers


class FakeRedis:
    """A Redis with lists, hashes and keys."""

    def __init__(self, keys: dict[str, Any] | None = None, uptime: int = 1000, error: Exception | None = None) -> None:
        self.keys: dict[str, Any] = keys if keys is not None else {"n8n:{instance:}members": 1}
        self.uptime = uptime
        self.error = error

    def info(self, section: str) -> dict[str, Any]:
        if self.error:
            raise self.error
        return {"uptime_in_seconds": self.uptime}

    def exists(self, key: str) -> int:
        return int(key in self.keys)

    def lrange(self, key: str, first: int, last: int) -> list[str]:
        found: list[str] = self.keys.get(key, [])
        return found.copy()

    zrange = lrange

    def hget(self, key: str, field: str) -> str | None:
        found: dict[str, str] = self.keys.get(key, {})
        return found.get(field)

    def pipeline(self, transaction: bool) -> FakePipeline:
        return FakePipeline(self)

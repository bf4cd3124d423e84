# SPDX-License-Identifier: GPL-3.0-or-later
"""Read the format in which n8n stores the data of executions.

It is JSON in which every object, list and text is an item of one list, and refers to others by their position, written
as a text: ``[{"a": "1"}, "x"]`` is ``{"a": "x"}``. Numbers, booleans and null stand for themselves.
"""

from __future__ import annotations

import json
from typing import Any


class FlattedError(ValueError):
    """The text is not in the format."""


def parse(text: str) -> Any:
    """Return the value; raise :class:`FlattedError` for anything else, circular references included."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FlattedError(f"not JSON: {error}") from error
    if not isinstance(items, list) or not items:
        raise FlattedError("not a list of items")

    def resolve(reference: Any, path: tuple[int, ...]) -> Any:
        if not isinstance(reference, str):
            return reference
        if not reference.isdigit() or int(reference) >= len(items):
            raise FlattedError(f"no item {reference!r}")
        index = int(reference)
        if index in path:
            raise FlattedError(f"item {index} contains itself")
        return build(index, (*path, index))

    def build(index: int, path: tuple[int, ...]) -> Any:
        item = items[index]
        if isinstance(item, dict):
            return {key: resolve(value, path) for key, value in item.items()}
        if isinstance(item, list):
            return [resolve(value, path) for value in item]
        return item

    try:
        return build(0, (0,))
    except RecursionError as error:
        raise FlattedError("nested too deeply") from error


def payload(text: str) -> list[Any]:
    """Return the items the execution starts (or goes on) with: the JSON bodies of the first node on its stack.

    Empty when the data holds no stack, as after a crash has overwritten it.
    """
    try:
        data = parse(text)
        stack = data["executionData"]["nodeExecutionStack"]
        inputs = stack[0]["data"]["main"][0]
        return [item["json"] for item in inputs]
    except (FlattedError, LookupError, TypeError):
        return []


def error_message(text: str) -> str:
    """Return the message of the error the execution ended with, or an empty text."""
    try:
        message = parse(text)["resultData"]["error"]["message"]
    except (FlattedError, LookupError, TypeError):
        return ""
    return message if isinstance(message, str) else ""

"""The format of execution data."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from n8n_platform.flatted import FlattedError, error_message, parse, payload


def stringify(value: Any) -> str:
    """Write a value the way n8n does."""
    items: list[Any] = []

    def add(item: Any) -> Any:
        if not isinstance(item, dict | list | str):
            return item
        index = len(items)
        items.append(item)
        if isinstance(item, dict):
            items[index] = {key: add(part) for key, part in item.items()}
        elif isinstance(item, list):
            items[index] = [add(part) for part in item]
        return str(index)

    add(value)
    return json.dumps(items)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON))
def test_what_was_written_is_read(value: dict[str, Any]) -> None:
    assert parse(stringify(value)) == value


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "nonsense", '[{"a":"7"}]', '[{"a":"x"}]', '[{"a":"0"}]', '[{"a":"1"},["0"]]', "[[" * 5000],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(FlattedError):
        parse(text)


def test_chains_too_long_to_follow_are_refused() -> None:
    chain = [[str(index + 1)] for index in range(5000)] + [[]]
    with pytest.raises(FlattedError, match="deeply"):
        parse(json.dumps(chain))


def test_payload_is_what_the_first_node_of_the_stack_gets() -> None:
    stack = [{"node": {"name": "Webhook"}, "data": {"main": [[{"json": {"uid": "a"}}, {"json": {"uid": "b"}}]]}}]
    assert payload(stringify({"executionData": {"nodeExecutionStack": stack}})) == [{"uid": "a"}, {"uid": "b"}]


@pytest.mark.parametrize("data", [{}, {"executionData": {"nodeExecutionStack": []}}, {"executionData": None}])
def test_no_stack_is_no_payload(data: dict[str, Any]) -> None:
    assert payload(stringify(data)) == []


def test_error_messages() -> None:
    assert error_message(stringify({"resultData": {"error": {"message": "died"}}})) == "died"
    assert error_message(stringify({"resultData": {"error": {"message": 5}}})) == ""
    assert error_message("broken") == ""

"""Tests of the check of variables meant for n8n."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.filter.n8n_environment import FilterModule, n8n_environment_errors
from plugins.filter.systemd import environment_file

KNOWN = "N8N_LOG_LEVEL\nN8N_PORT\nN8N_ENCRYPTION_KEY\nN8N_ENCRYPTION_KEY_FILE\nEXECUTIONS_DATA_MAX_AGE\n"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"N8N_LOG_LEVEL": "debug"}, []),
        ({"N8N_LOG_LEVLE": "debug"}, ["N8N_LOG_LEVLE is not a variable of this n8n; did you mean N8N_LOG_LEVEL?"]),
        ({"QUITE_ANOTHER": 1}, ["QUITE_ANOTHER is not a variable of this n8n."]),
        (
            {"N8N_METRICS_PORT": 1},
            ["N8N_METRICS_PORT is not read by this n8n; use nothing: metrics are served on the ports"],
        ),
        ({"N8N_PORT": 1}, ["N8N_PORT is set by the platform; use platform_ports instead."]),
        (
            {"N8N_ENCRYPTION_KEY_FILE": "x"},
            ["N8N_ENCRYPTION_KEY_FILE is set by the platform; use secrets_values instead."],
        ),
        ({"NODE_OPTIONS": "x", "HTTPS_PROXY": "y", "TZ": "z"}, []),
        ({"TZX": "z"}, ["TZX is not a variable of this n8n."]),
        ({"N8N_LOG_LEVEL": ["a"]}, ["N8N_LOG_LEVEL must be a text or a number; give lists and maps as JSON text."]),
    ],
)
def test_each_mistake_is_named(variables: dict[str, Any], expected: list[str]) -> None:
    managed = {"N8N_PORT": "platform_ports", "N8N_ENCRYPTION_KEY": "secrets_values"}
    errors = n8n_environment_errors(variables, KNOWN, managed)
    assert len(errors) == len(expected)
    for error, start in zip(errors, expected, strict=True):
        assert error.startswith(start)


def test_names_may_come_as_a_list() -> None:
    assert n8n_environment_errors({"A": 1}, ["A"]) == []


def test_the_filter_is_registered() -> None:
    assert FilterModule().filters() == {"n8n_environment_errors": n8n_environment_errors}


def test_environment_file_keeps_any_value() -> None:
    variables = {"B": 'a "quoted" $x \\ y', "A": True, "C": "", "D": None, "E": 5}
    assert environment_file(variables).splitlines() == ['A="true"', 'B="a \\"quoted\\" $x \\\\ y"', 'E="5"']

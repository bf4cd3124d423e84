"""What the scenario's test files share."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from subprocess import CompletedProcess
from typing import Any

import pytest


@pytest.fixture
def run_role(play: Callable[..., CompletedProcess[str]]) -> Callable[..., CompletedProcess[str]]:
    """Return a function that runs the role once more, with other variables."""
    return partial(play, "run_role.yml")


@pytest.fixture
def limits(host: Any) -> dict[str, Any]:
    """Return the report the role leaves on a host."""
    return dict(json.loads(host.file("/var/lib/n8n-platform/limits.json").content_string))

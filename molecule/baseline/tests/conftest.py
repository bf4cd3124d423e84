"""What the scenario's test files share."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCENARIO = Path(__file__).parents[1]


@pytest.fixture
def run_role() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs the role once more, with other variables."""

    def run(**variables: Any) -> subprocess.CompletedProcess[str]:
        command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], str(SCENARIO / "run_role.yml")]
        return subprocess.run(
            [*command, "-e", json.dumps(variables)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"},
        )

    return run


@pytest.fixture
def limits(host: Any) -> dict[str, Any]:
    """Return the report the role leaves on a host."""
    return dict(json.loads(host.file("/var/lib/n8n-platform/limits.json").content_string))

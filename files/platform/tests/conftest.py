"""What all tests of the services share."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
from n8n_platform.settings import Database, Guard, Queue, Settings, Watchdog

# A loaded machine is no bug: examples have no time limit of their own.
hypothesis.settings.register_profile("platform", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("platform")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return settings whose secrets and state are below a temporary directory."""
    for name in ("secrets", "guard", "watchdog"):
        (tmp_path / name).mkdir()
    for name in ("postgres_n8n_password", "redis_n8n_password", "n8n_owner_password"):
        (tmp_path / "secrets" / name).write_text(f"{name}-value\n")
    return Settings(
        database=Database("/run/postgresql", 5432, "n8n", "n8n"),
        queue=Queue("127.0.0.1", 6379, "n8n", "n8n"),
        api_url="http://127.0.0.1:1",
        api_ca_file="",
        secrets_dir=tmp_path / "secrets",
        state_dir=tmp_path,
        guard=Guard(),
        watchdog=Watchdog(
            units={
                "n8n-main.service": "http://m/",
                "n8n-webhook@1.service": "http://w1/",
                "n8n-webhook@2.service": "http://w2/",
                "n8n-worker@1.service": "http://k1/",
                "n8n-worker@2.service": "http://k2/",
            }
        ),
    )

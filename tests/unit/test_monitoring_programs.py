# SPDX-License-Identifier: GPL-3.0-or-later
"""The small programs beside Prometheus: what tells releases, what writes a web configuration."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROLES = Path(__file__).parents[2] / "roles"
sys.path[:0] = [str(ROLES / "exporters/files"), str(ROLES / "_common/files")]
info: Any = importlib.import_module("n8n_platform_info")
web: Any = importlib.import_module("web_config")


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs the program and returns whether something changed, and the file's text."""
    output = tmp_path / "deploy.prom"

    def run(now: int, *options: str) -> tuple[bool, str]:
        command = ["--install", str(tmp_path), "--output", str(output), *options, "platform=0.1.0"]
        monkeypatch.setattr(sys, "argv", ["n8n-platform-info", *command])
        monkeypatch.setattr(info.time, "time", lambda: now)
        assert info.main() == 0
        said = capsys.readouterr().out
        return said == "changed\n", output.read_text(encoding="utf-8") if output.exists() else ""

    return run


def release(tmp_path: Path, version: str) -> None:
    """Install a release of n8n."""
    folder = tmp_path / "n8n"
    (folder / version).mkdir(parents=True)
    (folder / "current").unlink(missing_ok=True)
    (folder / "current").symlink_to(version)


def test_the_time_of_a_deployment_stays_until_the_next(tmp_path: Path, tell: Any) -> None:
    release(tmp_path, "2.41.1")
    assert tell(90, "--check") == (True, "")
    changed, text = tell(100)
    assert changed
    assert 'n8n_platform_info{program="n8n",version="2.41.1"} 1\n' in text
    assert 'n8n_platform_info{program="platform",version="0.1.0"} 1\n' in text
    assert text.endswith("n8n_platform_deploy_timestamp_seconds 100\n")
    assert tell(200) == (False, text)
    release(tmp_path, "2.42.0")
    assert tell(300, "--check") == (True, text)
    changed, newer = tell(300)
    assert changed
    assert newer.endswith(" 300\n")
    assert "2.41.1" not in newer


def test_a_broken_file_is_written_anew(tmp_path: Path, tell: Any) -> None:
    _, text = tell(100)
    (tmp_path / "deploy.prom").write_text(text.rpartition(" ")[0], encoding="utf-8")
    assert tell(200)[0]


def test_the_web_configuration_holds_a_hash_and_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics_password").write_text("secret\n", encoding="utf-8")
    output = tmp_path / "web.yml"
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["web-config", "metrics", str(output)])
    assert web.main() == 0
    document = json.loads(output.read_text(encoding="utf-8"))
    assert document["basic_auth_users"]["metrics"].startswith("$2b$05$")
    assert len(document["basic_auth_users"]["metrics"]) == 60
    assert document["tls_server_config"]["cert_file"] == f"{tmp_path}/host.crt"
    assert "secret" not in output.read_text(encoding="utf-8")
    assert output.stat().st_mode & 0o777 == 0o600

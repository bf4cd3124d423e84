"""Settings, secrets, state and metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from n8n_platform import files, settings
from n8n_platform.settings import Settings, SettingsError

COMPLETE = {
    "database": {"host": "/run/postgresql", "port": 5432, "name": "n8n", "user": "n8n"},
    "queue": {"host": "127.0.0.1", "port": 6379, "user": "n8n", "prefix": "n8n", "names": ["jobs", "jobs-big"]},
    "api": {"url": "http://127.0.0.1:5678"},
    "secrets_dir": "/etc/secrets",
    "state_dir": "/var/lib/state",
    "guard": {"grace_seconds": 5},
    "watchdog": {"units": {"n8n-main.service": "http://127.0.0.1/"}},
}


def test_settings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(COMPLETE))
    found = settings.load(path)
    assert found.queue.names == ("jobs", "jobs-big")
    assert found.guard.grace_seconds == 5
    assert found.guard.payload_copy
    assert found.watchdog.units == {"n8n-main.service": "http://127.0.0.1/"}


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({**COMPLETE, "guard": {"no_such_name": 1}})])
def test_unusable_settings_say_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(settings.SettingsError, match="Run the role guard again"):
        settings.load(path)
    with pytest.raises(settings.SettingsError, match="The role guard writes it"):
        settings.load(tmp_path / "missing.json")


def test_secrets_come_from_credentials_first(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert settings.secret("redis_n8n_password") == "redis_n8n_password-value"
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "redis_n8n_password").write_text("from-systemd\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    assert settings.secret("redis_n8n_password") == "from-systemd"


def test_a_missing_secret_says_what_to_do(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="Run this as root"):
        settings.secret("no_such_secret")


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    assert files.read_json(path) == {}
    files.write_json(path, {"a": 1})
    assert files.read_json(path) == {"a": 1}
    assert path.stat().st_mode & 0o777 == 0o644
    path.write_text("[1]")
    assert files.read_json(path) == {}
    path.write_text("half a fi")
    assert files.read_json(path) == {}


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        files.replace(tmp_path, "text")
    with pytest.raises(OSError, match="No such file"):
        files.replace(tmp_path / "missing" / "file", "text")
    assert list(tmp_path.parent.glob(f".{tmp_path.name}.*")) == []


def test_exposition_format() -> None:
    text = files.exposition(
        [
            files.Metric("a_total", "All of them.", [({"unit": 'x"\\\n', "b": "c"}, 2)], "counter"),
            files.Metric("b", "One.", [({}, 1795371358.278959)]),
        ]
    )
    assert text == (
        "# HELP a_total All of them.\n# TYPE a_total counter\n"
        'a_total{b="c",unit="x\\"\\\\\\n"} 2\n'
        "# HELP b One.\n# TYPE b gauge\nb 1795371358.27896\n"
    )

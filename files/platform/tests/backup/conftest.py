"""What the tests of backups share."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from n8n_platform.backup import cli, database, pipeline, redis_dump, s3
from n8n_platform.backup import config as backup_config
from n8n_platform.backup.config import Config, Redis

from files.platform.tests.backup.backup_fakes import FakeRedis, FakeS3, complete_config, fake_session, store_of


@pytest.fixture
def bucket() -> FakeS3:
    """Return an empty bucket."""
    return FakeS3()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: FakeS3) -> Config:
    """Return a host that has every part; its services are stand-ins, its files and archives are real."""
    found = complete_config(tmp_path)
    path = f"{tmp_path / 'bin'}:{pipeline.ENVIRONMENT['PATH']}"
    monkeypatch.setattr(pipeline, "ENVIRONMENT", {**pipeline.ENVIRONMENT, "PATH": path})
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    monkeypatch.setenv("PATH", path)
    monkeypatch.setattr(database, "session", fake_session)

    def redis(config: Config, settings: Redis) -> Any:
        saved = {"rdb_bgsave_in_progress": 0, "rdb_last_bgsave_status": "ok", "rdb_last_save_time": 5}
        states = [{**saved, "rdb_saves": 1}, {**saved, "rdb_saves": 1}, {**saved, "rdb_saves": 2}]
        return redis_dump.Dumper(FakeRedis(states), settings)

    monkeypatch.setattr(redis_dump, "connect", redis)
    monkeypatch.setattr(s3, "connect", lambda config: store_of(bucket) if config.s3 else None)
    return found


@pytest.fixture
def call(config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs a command and returns exit code, output and errors."""

    def run(*words: str, using: Config = config) -> tuple[int, str, str]:
        monkeypatch.setattr(backup_config, "load", lambda path: using)
        monkeypatch.setattr(signal, "signal", lambda number, action: None)
        code = cli.main(words)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run

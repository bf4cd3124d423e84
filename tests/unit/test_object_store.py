# SPDX-License-Identifier: GPL-3.0-or-later
"""The object store's program: everything that needs no store. The scenario does the rest."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "roles/object_store/files"))
store: Any = importlib.import_module("object_store")
base: Any = importlib.import_module("object_store_base")
keeper: Any = importlib.import_module("object_store_keep")

DAY = 86400.0
NOW = 1_800_000_000.0


def ulid(seconds: float, tail: str = "0" * 16) -> str:
    """Return an identifier made at a time."""
    number, text = int(seconds * 1000), ""
    for _ in range(10):
        text = keeper.CROCKFORD[number % 32] + text
        number //= 32
    return text + tail


def entry(days_ago: float, marker: bool = False, latest: bool = False) -> Any:
    """Return one entry of a key's history."""
    return keeper.Version("key", ulid(NOW - days_ago * DAY), marker, latest)


@given(st.integers(0, 2**48 - 1))
def test_identifiers_tell_their_time(milliseconds: int) -> None:
    assert keeper.ulid_time(ulid(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, abs=0.0011)


@pytest.mark.parametrize("text", ["", "null", "01M82JE26EFV8XQ2PVEWKH6Y8", "01m82je26efv8xq2pvewkh6y8y", "!" * 26])
def test_other_identifiers_have_no_time(text: str) -> None:
    assert keeper.ulid_time(text) is None


def test_age_counts_from_the_replacement() -> None:
    latest, replaced, older = entry(1, latest=True), entry(40), entry(50)
    # The one of 40 days was replaced a day ago, the one of 50 days 40 days ago.
    assert keeper.purgeable([older, latest, replaced], NOW, 14) == [older]
    assert keeper.purgeable([latest], NOW, 0) == []


def test_what_was_deleted_just_now_stays_however_old() -> None:
    assert keeper.purgeable([entry(0, marker=True, latest=True), entry(400)], NOW, 14) == []


def test_a_mark_goes_only_when_it_hides_nothing() -> None:
    mark = entry(20, marker=True, latest=True)
    hidden = entry(30)
    assert keeper.purgeable([mark, hidden], NOW, 14) == [hidden]
    assert keeper.purgeable([mark], NOW, 14) == [mark]
    assert keeper.purgeable([entry(2, marker=True, latest=True)], NOW, 14) == []


def test_a_history_that_cannot_be_dated_is_left_alone() -> None:
    assert (
        keeper.purgeable([entry(1, latest=True), keeper.Version("key", "null", False, False), entry(90)], NOW, 14) == []
    )


def test_the_writer_gets_no_right_to_destroy() -> None:
    text = json.dumps(store.policy("b", "w", uploads=True))
    for right in ("DeleteObjectVersion", "Retention:Put", "PutObjectRetention", "Bypass", "PutBucket", "s3:*", "Acl"):
        assert right not in text
    stopped = store.policy("b", "w", uploads=False)["Statement"][-1]
    assert (stopped["Effect"], stopped["Action"]) == ("Deny", ["s3:PutObject"])


@given(st.text())
def test_accounts_hold_any_secret(secret: str) -> None:
    table = json.loads(json.dumps(store.accounts("w", secret)))
    assert table["accessAccounts"]["w"]["secret"] == secret
    assert table["accessAccounts"]["w"]["role"] == "user"


def settings(directory: Path, **other: Any) -> Any:
    """Return settings as the role writes them."""
    texts = ("url", "region", "bucket", "ca_file", "secrets_dir", "state_dir", "writer", "data_dir", "metrics_file")
    given_settings = {
        **dict.fromkeys(texts, "x"),
        "root": "r",
        "lock_mode": "GOVERNANCE",
        "lock_days": "30",
        "purge_days": "14",
        "upload_days": "2",
        "minimum_free_mb": "100",
        "checked_file": str(directory / "checked.json"),
        "state_dir": str(directory),
        "data_dir": str(directory),
        "metrics_file": str(directory / "m.prom"),
        **other,
    }
    path = directory / "settings.json"
    path.write_text(json.dumps(given_settings), encoding="utf-8")
    return base.Settings.load(path)


def test_settings_are_read_with_their_types(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert (found.lock_days, found.lock_mode) == (30, "GOVERNANCE")
    assert base.wanted_lock(found)["Rule"]["DefaultRetention"] == {"Mode": "GOVERNANCE", "Days": 30}
    assert base.wanted_lock(settings(tmp_path, lock_mode=None)) == {"ObjectLockEnabled": "Enabled"}


def test_broken_settings_end_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert store.main([str(tmp_path / "missing.json"), "guard"]) == 2
    (tmp_path / "wrong.json").write_text("{}", encoding="utf-8")
    assert store.main([str(tmp_path / "wrong.json"), "guard"]) == 2
    assert "wrong.json" in capsys.readouterr().err


def test_uploads_stop_and_go_on_with_room_to_spare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = SimpleNamespace(mib=1000)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free.mib, f_frsize=base.MIB))
    calls: list[bool] = []
    monkeypatch.setattr(store, "administrator", lambda _: None)
    monkeypatch.setattr(store, "set_policy", lambda *_, uploads: calls.append(uploads))
    found = settings(tmp_path)
    for free.mib, low in ((1000, False), (99, True), (105, True), (111, False), (105, False)):
        assert store.guard(found)["low"] is low, free.mib
    assert calls == [False, True]
    assert "object_store_uploads_stopped 0" in (tmp_path / "m.prom").read_text(encoding="utf-8")


def test_only_locked_versions_are_forgiven() -> None:
    errors = [
        {"Key": "a", "Code": "AccessDenied", "Message": "Access Denied because object protected by object lock."},
        {"Key": "b", "Code": "InternalError", "Message": "We encountered an internal error."},
    ]
    client = SimpleNamespace(delete_objects=lambda **_: {"Errors": errors})
    removed, locked, others = keeper.remove(client, "b", [entry(1), entry(2), entry(3)])
    assert (removed, locked, others) == (1, 1, ["b: InternalError We encountered an internal error."])


def test_pages_are_put_together_by_key() -> None:
    def one(key: str, days: float) -> dict[str, Any]:
        return {"Key": key, "VersionId": ulid(NOW - days * DAY), "IsLatest": days == 0}

    pages = [
        {"Versions": [one("a", 0), one("b", 1)], "DeleteMarkers": [one("b", 0)]},
        {"Versions": [one("b", 2), one("c", 0)]},
    ]
    client = SimpleNamespace(get_paginator=lambda _: SimpleNamespace(paginate=lambda **_: pages))
    assert [(h[0].key, len(h)) for h in keeper.histories(client, "bucket")] == [("a", 1), ("b", 3), ("c", 1)]

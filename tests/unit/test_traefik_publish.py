# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that publishes Traefik's configuration: everything that needs no Traefik. The scenario does the rest."""

from __future__ import annotations

import grp
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "roles/traefik/files"))
trial: Any = importlib.import_module("traefik_trial")
publisher: Any = importlib.import_module("traefik_publish")


@pytest.fixture
def password(tmp_path: Path) -> Path:
    """Return a file with the editor's password."""
    path = tmp_path / "password"
    path.write_text("correct horse\n", encoding="utf-8")
    return path


def pair(directory: Path, name: str) -> dict[str, str]:
    """Make a certificate and its key."""
    paths = {"certificate": str(directory / f"{name}.crt"), "key": str(directory / f"{name}.key")}
    subprocess.run(
        [
            *[
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "1",
            ],
            *["-subj", f"/CN={name}", "-keyout", paths["key"], "-out", paths["certificate"]],
        ],
        check=True,
        capture_output=True,
    )
    return paths


def test_the_users_file_changes_only_with_the_password(password: Path) -> None:
    editor = {"user": "admin", "cost": 5, "password_file": str(password)}
    first = publisher.editor_users(editor, "")
    assert '"admin:$2b$05$' in first
    assert "correct horse" not in first
    assert publisher.editor_users(editor, first) == first
    assert publisher.editor_users({**editor, "cost": 4}, first) != first
    assert publisher.editor_users({**editor, "user": "root"}, first) != first
    password.write_text("another", encoding="utf-8")
    assert publisher.editor_users(editor, first) != first


@pytest.mark.parametrize(("content", "complaint"), [("", "is empty"), (None, "No such file")])
def test_a_missing_password_is_refused(tmp_path: Path, content: str | None, complaint: str) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(trial.RefusedError, match=complaint):
        publisher.editor_users({"user": "admin", "cost": 5, "password_file": str(path)}, "")


@pytest.mark.parametrize("cost", [3, 32])
def test_a_cost_bcrypt_does_not_know_is_refused(password: Path, cost: int) -> None:
    with pytest.raises(trial.RefusedError, match="4 to 31"):
        publisher.editor_users({"user": "admin", "cost": cost, "password_file": str(password)}, "")


def test_certificate_and_key_go_into_one_file(tmp_path: Path) -> None:
    paths = pair(tmp_path, "n8n.test")
    text = publisher.certificate(paths)
    for path in paths.values():
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            assert f"        {line}\n" in text


def test_a_pair_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "PAIR_SECONDS", 0)
    mixed = {**pair(tmp_path, "one"), "key": pair(tmp_path, "two")["key"]}
    with pytest.raises(trial.RefusedError, match="do not fit together"):
        publisher.certificate(mixed)


def test_complaints_of_log_and_api_are_sentences() -> None:
    lines = [
        "plain text of a library",
        json.dumps({"level": "info", "message": "fine"}),
        json.dumps({"level": "error", "routerName": "n8n@file", "error": "unknown matcher"}),
        json.dumps({"level": "error", "providerName": "le.acme", "error": "no network in the trial"}),
        "command traefik error: field not found, node: entrypoint",
    ]
    report = {"routers": {"a@file": {"error": ["bad rule"]}, "b@file": {}}, "services": {"c@file": {"error": "no url"}}}
    assert list(trial.complaints(lines, report)) == [
        "router a@file: bad rule",
        "service c@file: no url",
        "n8n@file: unknown matcher",
        "command traefik error: field not found, node: entrypoint",
    ]


@pytest.fixture
def settings(tmp_path: Path, password: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return settings of a host whose Traefik accepts everything and does not run."""
    source = tmp_path / "source"
    (source / "dynamic").mkdir(parents=True)
    (source / "traefik.yml").write_text("log: {}\n", encoding="utf-8")
    (source / "dynamic" / "platform.yml").write_text("http: {}\n", encoding="utf-8")
    (tmp_path / "live").mkdir()
    monkeypatch.setattr(publisher, "check", lambda *_: None)
    monkeypatch.setattr(publisher, "start_of", lambda _: None)
    monkeypatch.setattr(trial.os, "chown", lambda *_: None)
    return {
        "source": str(source),
        "live": str(tmp_path / "live"),
        "user": grp.getgrgid(os.getgid()).gr_name,
        "editor": {"user": "admin", "cost": 4, "password_file": str(password)},
        "certificate": None,
        "binary": "/opt/traefik/bin/traefik",
    }


def test_a_generation_replaces_the_one_before(settings: dict[str, Any]) -> None:
    live = Path(settings["live"])
    names = []
    for text in ("http: {}\n", "http: {routers: {}}\n", "http: {services: {}}\n"):
        (Path(settings["source"]) / "dynamic" / "platform.yml").write_text(text, encoding="utf-8")
        assert publisher.publish(settings) is True
        assert publisher.publish(settings) is False
        assert (live / "live" / "dynamic" / "platform.yml").read_text(encoding="utf-8") == text
        names.append((live / "live").readlink().name)
    # The one before stays for a look; older ones go.
    assert {path.name for path in live.glob("generation-*")} == set(names[1:])


def test_a_refused_generation_changes_nothing(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    publisher.publish(settings)
    before = (Path(settings["live"]) / "live").readlink()

    def refuse(*_: Any) -> None:
        raise trial.RefusedError("router n8n: bad rule")

    monkeypatch.setattr(publisher, "check", refuse)
    (Path(settings["source"]) / "dynamic" / "platform.yml").write_text("http: {x: 1}\n", encoding="utf-8")
    with pytest.raises(trial.RefusedError):
        publisher.publish(settings)
    assert (Path(settings["live"]) / "live").readlink() == before


def test_a_missing_source_is_named(settings: dict[str, Any]) -> None:
    shutil.rmtree(settings["source"])
    with pytest.raises(trial.RefusedError, match=r"traefik\.yml"):
        publisher.build(settings, Path(settings["live"]) / "live")

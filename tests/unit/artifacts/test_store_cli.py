# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: output, exit codes, two processes at once."""

from __future__ import annotations

import io
import json
import os
import platform
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from artifacts.store import artifact as places
from artifacts.store.cli import CATALOGUE, main
from artifacts.store.progress import Reporter, human_size
from tests.unit.artifacts.shop import Shop

ROOT = Path(__file__).resolve().parents[3]


def arguments(shop: Shop, *rest: str) -> list[str]:
    return ["--store", str(shop.directory), "--catalogue", str(shop.catalogue), *rest]


def start(shop: Shop, *rest: str) -> subprocess.Popen[str]:
    # A shell that runs the tests in the background has Ctrl-C ignored, and children inherit that.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "artifacts.store", *arguments(shop, *rest)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_share_one_download(shop: Shop) -> None:
    """The second starts while the first is held in its download, says that it waits, and fetches nothing."""
    asked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        assert go_on.wait(60)

    shop.vendor.before_answer = hold
    first = start(shop, "ensure", "tool", "--arch", "amd64", "--json")
    assert asked.wait(60)
    second = start(shop, "ensure", "tool", "--arch", "amd64", "--json")
    assert second.stderr is not None
    assert "another process is working on it" in second.stderr.readline()
    go_on.set()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert json.loads(outputs[0]) == json.loads(outputs[1])
    assert len(shop.vendor.requests) == 1


def test_a_killed_process_leaves_no_lock_and_the_next_one_finishes(shop: Shop) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        assert go_on.wait(60)

    shop.vendor.before_answer = hold
    first = start(shop, "ensure", "tool", "--arch", "amd64")
    assert asked.wait(60)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    go_on.set()
    assert main(arguments(shop, "ensure", "tool", "--arch", "amd64")) == 0


def test_an_interrupted_process_says_how_to_continue(shop: Shop) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        assert go_on.wait(60)

    shop.vendor.before_answer = hold
    process = start(shop, "ensure", "tool", "--arch", "amd64")
    assert asked.wait(60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    go_on.set()
    assert process.returncode == 130
    assert "run the same command again to continue" in errors
    assert "Traceback" not in errors


def test_json_is_all_that_goes_to_stdout(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(shop, "ensure", "tool@1.0", "--arch", "amd64", "--json")) == 0
    output = capsys.readouterr()
    (artifact,) = json.loads(output.out)
    assert set(artifact) == {"tool", "version", "arch", "path", "sha256", "size"}
    assert "tool 1.0 (amd64): " in output.err


@pytest.mark.parametrize(
    ("rest", "code", "message"),
    [
        (["ensure", "nothing"], 2, "known: tool"),
        (["ensure", "tool", "--arch", "amd64", "--offline"], 3, "not in the store"),
        (["ensure", "tool", "--arch", "amd64", "--source", "mirror"], 5, "no pinned hash"),
    ],
)
def test_each_failure_has_its_exit_code_and_one_message(
    shop: Shop, capsys: pytest.CaptureFixture[str], rest: list[str], code: int, message: str
) -> None:
    assert main(arguments(shop, *rest)) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("artifacts: ")
    assert message in output.err


def test_wrong_hash_and_unreachable_source_exit_codes(shop: Shop) -> None:
    shop.vendor.put("tool-1.0-x64.tar.gz", b"tampered with")
    assert main(arguments(shop, "ensure", "tool", "--arch", "amd64")) == 4
    shop.vendor.files.clear()
    assert main(arguments(shop, "ensure", "tool", "--arch", "amd64")) == 6


def test_list_verify_path_and_prune(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments(shop, "--quiet", "ensure", "tool", "--arch", "amd64"))
    stray = shop.store().path("gone", "0.1", "amd64")
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"xy")
    places.manifest_path(stray).write_text('{"size": 2, "sha256": "00"}')
    capsys.readouterr()

    assert main(arguments(shop, "list")) == 0
    listing = capsys.readouterr().out
    assert f"store: {shop.directory}" in listing
    assert "default" in listing
    assert "not in the catalogue" in listing
    assert main(arguments(shop, "list", "--json")) == 0
    assert [(row["tool"], row["in_store"]) for row in json.loads(capsys.readouterr().out)] == [
        ("tool", True),
        ("gone", True),
    ]

    assert main(arguments(shop, "verify")) == 4
    output = capsys.readouterr()
    assert "tool 1.0 (amd64): good" in output.out
    assert "WRONG HASH in the store" in output.err

    assert main(arguments(shop, "path")) == 0
    assert capsys.readouterr().out.strip() == str(shop.directory)
    assert main(arguments(shop, "path", "tool", "--arch", "amd64")) == 0
    assert capsys.readouterr().out.strip().endswith("tool/1.0/tool-1.0-linux-amd64.tar.zst")
    shop.write(
        (shop.catalogue / "tool.yml").read_text().replace("{", "{{").replace("}", "}}").replace('"1.0"', '"2.0"')
    )
    assert main(arguments(shop, "prune")) == 0
    assert "tool-1.0-linux-amd64.tar.zst" in capsys.readouterr().out


def test_pin_prints_what_it_wrote(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    mirror = shop.vendor.put("mirror/tool-2.0.tar.gz", b"anything")
    assert main(arguments(shop, "pin", "tool", "2.0")) == 0
    assert f"tool 2.0 amd64 mirror: {mirror}" in capsys.readouterr().out


def test_the_store_lies_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("N8N_PLATFORM_ARTIFACTS", str(tmp_path / "here"))
    assert places.default_directory() == tmp_path / "here"
    monkeypatch.delenv("N8N_PLATFORM_ARTIFACTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert places.default_directory() == tmp_path / "n8n-platform/artifacts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.default_directory() == tmp_path / ".cache/n8n-platform/artifacts"


def test_an_unknown_machine_must_name_an_architecture(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert places.machine_arch() == "arm64"
    monkeypatch.setattr(platform, "machine", lambda: "s390x")
    assert main(arguments(shop, "ensure", "tool")) == 2


def test_a_directory_without_catalogue_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--catalogue", str(tmp_path), "list"]) == 2
    assert "no catalogue files" in capsys.readouterr().err


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_moves_on_a_terminal_and_is_sparse_elsewhere() -> None:
    now = [0.0]
    screen, log = Screen(), io.StringIO()
    on_screen, in_log = Reporter(screen, clock=lambda: now[0]), Reporter(log, clock=lambda: now[0])
    for second in range(25):
        now[0] = float(second)
        on_screen.tick(f"at {second}")
        in_log.tick(f"at {second}")
    on_screen.say("done")
    assert screen.getvalue().count("\r") == 25
    assert screen.getvalue().endswith("\r\033[Kdone\n")
    assert log.getvalue() == "  at 10\n  at 20\n"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (181_172_962, "181.2 MB"), (2.5e9, "2.50 GB")]
)
def test_sizes_read_well(size: float, text: str) -> None:
    assert human_size(size) == text


def test_the_module_runs_from_the_root_of_the_repository() -> None:
    command = [sys.executable, "-m", "artifacts.store", "path", "n8n"]
    environment = {**os.environ, "N8N_PLATFORM_ARTIFACTS": "/nowhere"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("/nowhere/n8n/")
    assert (CATALOGUE / "n8n.yml").is_file()

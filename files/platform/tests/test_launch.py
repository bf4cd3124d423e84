"""How words on the command line find their part of the program."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from n8n_platform import __main__, cli
from n8n_platform.bridge import cli as bridge_cli
from n8n_platform.bridge import settings

SETTINGS = SimpleNamespace(name="the settings")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace the parts of the bridge by stand-ins that note how they are called."""
    called: list[Any] = []

    def noting(name: str, result: int = 0) -> Any:
        def call(*arguments: Any) -> int:
            called.append((name, *arguments))
            return result

        return call

    def check_accounts(path: Path) -> None:
        called.append(("accounts", path))
        if path.name == "bad.yml":
            raise settings.SettingsError("accounts[0] has no tenant")

    def register(groups: Any) -> None:
        groups.add_parser("events").set_defaults(action=lambda arguments: noting("events", 3)(arguments.settings))

    commands: Any = ModuleType("commands")
    commands.api, commands.migrate, commands.maintain = noting("api"), noting("migrate"), noting("maintain")
    commands.check_accounts = check_accounts
    process: Any = ModuleType("process")
    process.run = noting("consumer")
    events: Any = ModuleType("events_cli")
    events.register = register
    package: Any = ModuleType("consumer")
    package.process = process
    bridge = sys.modules["n8n_platform.bridge"]
    for name, module in {"commands": commands, "events_cli": events, "consumer": package}.items():
        monkeypatch.setitem(sys.modules, f"n8n_platform.bridge.{name}", module)
        monkeypatch.setattr(bridge, name, module, raising=False)
    monkeypatch.setitem(sys.modules, "n8n_platform.bridge.consumer.process", process)
    monkeypatch.setattr(settings, "load", lambda path: SETTINGS)
    return called


@pytest.fixture
def path() -> Iterator[list[str]]:
    """Give the interpreter's path back."""
    before = list(sys.path)
    yield sys.path
    sys.path[:] = before


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["bridge", "api", "--instance", "2"], ("api", SETTINGS, 2)),
        (["bridge", "consumer", "--instance", "1"], ("consumer", SETTINGS, 1)),
        (["bridge", "migrate"], ("migrate", SETTINGS)),
        (["bridge", "maintain"], ("maintain", SETTINGS)),
        (["bridge", "check-accounts", "good.yml"], ("accounts", Path("good.yml"))),
    ],
)
def test_each_command_runs_its_part(parts: list[Any], words: list[str], call: tuple[Any, ...]) -> None:
    assert bridge_cli.main(words) == 0
    assert parts == [call]


def test_events_are_told_where_the_settings_are(parts: list[Any]) -> None:
    assert bridge_cli.main(["--settings", "/x.json", "events"]) == 3
    assert parts == [("events", Path("/x.json"))]


@pytest.mark.usefixtures("parts")
def test_settings_can_be_checked_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert bridge_cli.main(["bridge", "check"]) == 0

    def refuse(path: Path) -> None:
        raise settings.SettingsError(f"{path} has an unknown key `colour`")

    monkeypatch.setattr(settings, "load", refuse)
    assert bridge_cli.main(["--settings", "new.json", "bridge", "check"]) == 69
    assert capsys.readouterr().err == "n8n-platform: new.json has an unknown key `colour`\n"


@pytest.mark.usefixtures("parts")
def test_refused_accounts_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert bridge_cli.main(["bridge", "check-accounts", "bad.yml"]) == 69
    assert "accounts[0] has no tenant" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "group"),
    [
        (["bridge", "api"], "bridge"),
        (["--settings", "bridge", "executions", "lost"], "executions"),
        (["--help"], ""),
        ([], ""),
    ],
)
def test_the_first_word_that_is_no_option_decides(words: list[str], group: str) -> None:
    assert __main__.group_of(words) == group


def test_words_of_the_bridge_go_to_it_with_its_libraries_first(
    parts: list[Any], path: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(__main__.LIBRARIES, str(tmp_path))
    assert __main__.run(["bridge", "migrate"]) == 0
    assert path[0] == str(tmp_path)
    assert parts == [("migrate", SETTINGS)]


def test_a_host_without_the_bridge_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(__main__.LIBRARIES, "/nowhere")
    assert __main__.run(["events", "list"]) == 69
    assert "the bridge is not installed on this host" in capsys.readouterr().err


def test_other_words_go_to_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "main", len)
    assert __main__.run(["executions", "lost"]) == 2


def test_help_names_the_bridge(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert all(group in said for group in __main__.BRIDGE)

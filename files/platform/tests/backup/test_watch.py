"""What the watcher of the archive concludes from the answers of psql and pgbackrest."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from n8n_platform import files
from n8n_platform.backup import watch

MIB16 = 16 * 2**20
NOW = 1_000_000.0


def name(number: int, timeline: int = 1) -> str:
    """Return the file name of a segment."""
    return watch.Segment(timeline, number).name(MIB16)


class World:
    """A server and two repositories, as far as their programs tell of them."""

    def __init__(self) -> None:
        self.current = 0x105
        self.timeline = 1
        self.waiting: dict[int, float] = {}
        self.archives: dict[int, set[int]] = {1: set(), 2: set()}
        self.backups: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        self.status: dict[int, tuple[int, str]] = {}
        self.asked: list[str] = []

    def backup(self, repository: int, start: int, kind: str = "full", timeline: int = 1) -> None:
        self.backups[repository].append(
            {
                "label": f"label-{start:x}",
                "type": kind,
                "timestamp": {"start": start, "stop": start + 1},
                "archive": {"start": name(start, timeline), "stop": name(start, timeline)},
                "database": {"id": 2, "repo-key": repository},
            }
        )

    def archive(self, *numbers: int, repositories: tuple[int, ...] = (1, 2)) -> None:
        for repository in repositories:
            self.archives[repository] |= set(numbers)

    def output(self, *words: str) -> str:
        self.asked.append(" ".join(words))
        if words[0] == "psql":
            said = {
                "current": name(self.current, self.timeline),
                "segment_bytes": MIB16,
                "archive_mode": "on",
            }
            queue = {name(number, self.timeline): since for number, since in self.waiting.items()}
            return f"{json.dumps(said)}\n{json.dumps(queue)}\n"
        repository = int(words[1].removeprefix("--repo="))
        code, message = self.status.get(repository, (0, "ok"))
        if "info" in words:
            clusters = [{"id": number, "repo-key": repository, "version": "17"} for number in (1, 2)]
            stanza = {
                "name": "n8n",
                "status": {"code": code, "message": message},
                "repo": [{"key": repository, "status": {"code": code, "message": message}}],
                "db": clusters if code != 99 else [],
                "backup": self.backups[repository],
            }
            return json.dumps([stanza])
        directory = words[-1].removeprefix("archive/n8n/17-2/")
        there = [name(number, self.timeline) for number in self.archives[repository]]
        names: dict[str, Any] = {f"{one}-{'0' * 40}.zst": {} for one in there if one.startswith(directory)}
        return json.dumps({**names, "00000002.history": {}, f"{directory}00000001.00000028.backup": {}})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()
    monkeypatch.setattr(watch, "output", found.output)
    return found


@pytest.fixture
def settings(tmp_path: Path) -> watch.Settings:
    return watch.Settings("n8n", (1, 2), "/run/postgresql", 5432, tmp_path)


@pytest.fixture
def look(world: World, settings: watch.Settings) -> Callable[..., tuple[dict[str, Any], list[str]]]:
    """Return a function that does one pass and gives the repositories and what was said."""

    def run(now: float = NOW) -> tuple[dict[str, Any], list[str]]:
        report, sentences = watch.pass_over(settings, now)
        files.write_json(settings.state_dir / watch.REPORT, report)
        watch.wish(settings, report)
        return report["repositories"], sentences

    return run


Look = Callable[..., tuple[dict[str, Any], list[str]]]


def test_names_of_segments() -> None:
    assert watch.Segment.parse("0000000200000001000000FF", MIB16) == watch.Segment(2, 0x1FF)
    assert watch.Segment(2, 0x1FF).name(MIB16) == "0000000200000001000000FF"
    assert watch.Segment(1, 5).name(64 * 2**20) == "000000010000000000000005"
    assert watch.Segment.parse("000000010000000200000001", 64 * 2**20).number == 2 * 64 + 1


def test_an_archive_that_is_whole(world: World, look: Look, settings: watch.Settings) -> None:
    world.backup(1, 0xFD)
    world.backup(2, 0xFE, "diff")
    world.archive(*range(0xFD, 0x105))
    seen, said = look()
    assert said == []
    assert seen["1"]["checked"] == name(0x104)
    assert (seen["2"]["backup_label"], seen["2"]["backup_type"]) == ("label-fe", "diff")
    assert [one["missing_count"] for one in seen.values()] == [0, 0]
    assert not (settings.state_dir / watch.WANTED).exists()
    # The range crosses from one directory of the archive to the next.
    assert [line.rsplit("/", 1)[1] for line in world.asked if "--repo=1" in line and "repo-ls" in line] == [
        "0000000100000000",
        "0000000100000001",
    ]
    world.asked.clear()
    look()
    assert not [line for line in world.asked if "repo-ls" in line]


def test_without_a_backup_it_begins_now(world: World, look: Look) -> None:
    world.status[1] = (2, "no valid backups")
    seen, said = look()
    assert (seen["1"]["checked"], seen["1"]["reachable"], said) == (name(0x104), True, [])


def test_a_hole_is_believed_when_seen_twice_and_ends_with_a_new_backup(
    world: World, look: Look, settings: watch.Settings
) -> None:
    world.backup(1, 0x100)
    world.backup(2, 0x100)
    world.archive(0x100, 0x101, 0x104)
    world.archive(0x102, 0x103, repositories=(1,))
    seen, said = look()
    assert (seen["2"]["missing_count"], seen["2"]["checked"], said) == (0, name(0x101), [])
    seen, said = look()
    assert (seen["2"]["missing_first"], seen["2"]["missing_last"]) == (name(0x102), name(0x103))
    assert (seen["2"]["missing_count"], seen["2"]["gaps"], seen["2"]["checked"]) == (2, 1, name(0x104))
    assert len(said) == 1
    assert said[0].startswith("<3>repository 2 lacks 2 segments")
    assert seen["1"]["missing_count"] == 0
    assert (settings.state_dir / watch.WANTED).read_text() == "2\n"
    # Said once, wished for until it is done; one that began before the hole does not help.
    world.backup(2, 0x101)
    assert look()[1] == []
    assert (settings.state_dir / watch.WANTED).exists()
    world.backup(2, 0x104)
    seen, said = look()
    assert said == ["<5>repository 2 is whole again from backup label-104 on"]
    assert (seen["2"]["missing_count"], seen["2"]["missing_last"], seen["2"]["gaps"]) == (0, "", 1)
    assert not (settings.state_dir / watch.WANTED).exists()


def test_what_waits_is_late_not_missing(world: World, look: Look) -> None:
    world.backup(1, 0x100)
    world.backup(2, 0x100)
    world.archive(0x100, 0x101)
    world.archive(0x102, 0x103, 0x104, repositories=(1,))
    world.waiting = {0x102: NOW - 300, 0x103: NOW - 200, 0x104: NOW - 100}
    seen, said = look()
    assert (seen["1"]["behind_seconds"], seen["2"]["behind_seconds"], said) == (0, 300, [])
    assert seen["2"]["checked"] == name(0x101)
    # The oldest one still waits; a later one is not judged before it.
    world.waiting = {0x102: NOW - 300}
    look()
    seen, _ = look()
    assert (seen["2"]["missing_count"], seen["2"]["suspects"]) == (0, [name(0x103), name(0x104)])


def test_a_repository_that_cannot_be_read(world: World, look: Look, settings: watch.Settings) -> None:
    world.backup(1, 0x104)
    world.backup(2, 0x104)
    world.archive(0x104)
    look()
    world.status[2] = (99, "[HostConnectError]\nno route")
    seen, said = look(NOW + 60)
    assert said == ["<4>repository 2 cannot be read: [HostConnectError] no route"]
    assert (seen["2"]["reachable"], seen["2"]["behind_seconds"]) == (False, 60)
    assert look(NOW + 120)[1] == []
    # A hole found before stays one; no backup is wished for where none can be made.
    report = files.read_json(settings.state_dir / watch.REPORT)
    report["repositories"]["2"] |= {"missing_count": 1, "missing_first": name(0x105), "missing_last": name(0x105)}
    files.write_json(settings.state_dir / watch.REPORT, report)
    look(NOW + 180)
    assert not (settings.state_dir / watch.WANTED).exists()
    world.status.clear()
    seen, said = look(NOW + 240)
    assert said == ["<5>repository 2 can be read again"]
    assert (settings.state_dir / watch.WANTED).read_text() == "2\n"


def test_a_store_that_does_not_answer_is_not_waited_for(world: World, settings: watch.Settings) -> None:
    world.backup(1, 0x105)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        stores = {2: ("127.0.0.1", port)}
        assert watch.pass_over(replace(settings, stores=stores), NOW)[1] == []
    report, said = watch.pass_over(replace(settings, stores=stores), NOW)
    assert said == [f"<4>repository 2 cannot be read: 127.0.0.1:{port} does not answer: Connection refused"]
    assert report["repositories"]["1"]["reachable"]


def test_a_new_timeline_begins_anew(world: World, look: Look) -> None:
    world.backup(1, 0x100)
    world.backup(2, 0x100)
    world.archive(*range(0x100, 0x105))
    look()
    world.timeline, world.current = 2, 0x103
    world.archives = {1: set(), 2: {0x102}}
    world.backup(2, 0x102, timeline=2)
    seen, said = look()
    assert (seen["1"]["checked"], seen["2"]["checked"], said) == (name(0x102, 2), name(0x102, 2), [])


def test_a_report_of_another_version_is_left_behind(world: World, look: Look, settings: watch.Settings) -> None:
    files.write_json(settings.state_dir / watch.REPORT, {"repositories": {"1": {"colour": "red"}}})
    assert look()[0]["1"]["reachable"]


def test_metrics(world: World, settings: watch.Settings, capsys: pytest.CaptureFixture[str]) -> None:
    world.backup(1, 0x104)
    world.status[2] = (1, "missing stanza path")
    world.archive(0x104)
    world.waiting = {0x105: NOW}
    assert watch.do_look(settings) == 0
    assert "repository 2 cannot be read: missing stanza path" in capsys.readouterr().out
    text = (settings.state_dir / watch.METRICS).read_text()
    assert 'n8n_backup_archive_missing{repo="1"} 0\n' in text
    assert 'n8n_backup_archive_reachable{repo="2"} 0\n' in text
    assert 'n8n_backup_archive_newest_backup_timestamp_seconds{repo="1"} 261\n' in text
    assert f"n8n_backup_archive_queue_bytes {MIB16}\n" in text


@pytest.fixture
def file(settings: watch.Settings) -> Path:
    """Return a settings file."""
    path = settings.state_dir / "watch-settings.json"
    values = {
        "stanza": "n8n",
        "repositories": [1, 2],
        "host": "/run/postgresql",
        "port": 5432,
        "stores": {"2": ["s3", 443]},
    }
    path.write_text(json.dumps({**values, "state_dir": str(settings.state_dir)}))
    return path


def test_full_backups_are_made_for_the_repositories_that_need_one(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "bin/pgbackrest"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nexit $(cat {tmp_path}/code)\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    assert watch.main(["--settings", str(file), "repair"]) == 0
    assert not (tmp_path / "asked").exists()
    (tmp_path / watch.WANTED).write_text("1 2\n")
    (tmp_path / "code").write_text("0")
    assert watch.main(["--settings", str(file), "repair"]) == 0
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[1] == "--stanza=n8n --repo=2 --type=full --log-level-console=warn backup"
    (tmp_path / "code").write_text("50")
    assert watch.main(["--settings", str(file), "repair"]) == 0
    assert "another backup is under way" in capsys.readouterr().out
    (tmp_path / "code").write_text("103")
    assert watch.main(["--settings", str(file), "repair"]) == 1


def test_programs_that_fail(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "bin/psql"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", str(program.parent))
    assert watch.main(["--settings", str(file), "look"]) == 1
    assert "psql" in capsys.readouterr().err
    program.write_text("#!/bin/sh\necho one >&2; echo 'recovery is in progress' >&2; exit 2\n")
    program.chmod(0o755)
    assert watch.main(["--settings", str(file), "look"]) == 1
    assert capsys.readouterr().err == "<3>psql failed (exit code 2): recovery is in progress\n"
    program.write_text('#!/bin/sh\necho "{\\"x\\": 1}"\n')
    assert watch.output("psql") == '{"x": 1}\n'
    program.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(watch.WatchError, match="it said nothing"):
        watch.output("psql")


def test_settings_that_cannot_be_used(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("{}")
    assert watch.main(["--settings", str(file), "look"]) == 1
    assert "Run the role backup again" in capsys.readouterr().err
    file.unlink()
    assert watch.main(["--settings", str(file), "look"]) == 1
    assert "The role backup writes it" in capsys.readouterr().err

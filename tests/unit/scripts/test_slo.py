# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the generator of service level rules; what the rules do is tested in tests/alerts/slo.yml."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scripts import slo


def test_each_goal_is_recorded() -> None:
    base = slo.recordings()[0]["rules"]
    for name in ("slo:objective:ratio", "slo:sli_total:rate5m", "slo:sli_errors:rate5m"):
        assert [rule["labels"]["slo"] for rule in base if rule["record"] == name] == [goal.name for goal in slo.GOALS]


def test_every_window_of_an_alert_is_recorded() -> None:
    records = {rule["record"] for group in slo.recordings() for rule in group["rules"]}
    for speed in slo.SPEEDS:
        for long, short, _ in speed.windows:
            assert {f"slo:sli_error:ratio_rate{long}", f"slo:sli_error:ratio_rate{short}"} <= records


def test_a_budget_burns_in_two_windows_with_enough_events() -> None:
    goal = slo.Goal("x", 0.99, "e", "sum(rate(t[5m]))", "of it", "Means.", alert="N8nX", minimum=10)
    assert slo._burns(goal, "1h", "5m", 14.4).splitlines() == [
        'slo:sli_error:ratio_rate1h{slo="x"} > 14.4 * 0.01',
        'and slo:sli_error:ratio_rate5m{slo="x"} > 14.4 * 0.01',
        "and on () sum(increase(t[1h])) > 10",
    ]


def test_goals_without_alerts_are_watched_by_others() -> None:
    names = {rule["alert"] for rule in slo.alerts()["rules"]}
    assert len(names) == 2 * sum(bool(goal.alert) for goal in slo.GOALS)
    assert not any("Backup" in name for name in names)


def test_the_file_can_be_read_back() -> None:
    groups = yaml.safe_load(slo.render())["groups"]
    assert [group["name"] for group in groups] == ["n8n-slo", "n8n-slo-long", "n8n-slo-alerts"]


def test_the_program_writes_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slo, "ROOT", tmp_path)
    monkeypatch.setattr(slo, "TARGET", tmp_path / "slo.yml")
    slo.TARGET.write_text("old", encoding="utf-8")
    assert slo.main(["--check"]) == 1
    assert "slo.yml is out of date" in capsys.readouterr().err
    assert slo.main([]) == 0
    assert slo.main(["--check"]) == 0

# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the recorder of metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import expositions

TEXT = """\
# HELP up Whether.
# TYPE up gauge
up 1
go_goroutines 7
requests_total{code="200",path="/a\\"b,c=\\"d"} 3
requests_total{method="GET"} 3 1700000000
"""


def test_names_and_labels_are_kept_and_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expositions, "TARGET", tmp_path / "new")
    (tmp_path / "one").write_text(TEXT, encoding="utf-8")
    (tmp_path / "two").write_text('up{job="x"} 0\n', encoding="utf-8")
    assert expositions.main(["job", str(tmp_path / "one")]) == 0
    assert expositions.main(["job", str(tmp_path / "two")]) == 0
    found = expositions.read(tmp_path / "new" / "job.txt")
    assert found == {"up": {"job"}, "requests_total": {"code", "path", "method"}}


def test_it_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert expositions.main([]) == 2
    assert "expositions.py JOB" in capsys.readouterr().err

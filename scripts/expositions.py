# SPDX-License-Identifier: GPL-3.0-or-later
"""Record which metrics and labels a real program exposes, so that tests can tell a wrong name in a query.

python scripts/expositions.py JOB [FILE]...      adds what files or standard input hold to tests/expositions/JOB.txt

A line is the name of a metric and its labels. Values are not kept, nor what every program in Go says of its runtime.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

TARGET = Path(__file__).resolve().parents[1] / "tests" / "expositions"
SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s")
LABEL = re.compile(r'(\w+)="(?:[^"\\]|\\.)*"')


def read(path: Path) -> dict[str, set[str]]:
    """Return what was recorded: labels by metric."""
    if not path.exists():
        return {}
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line[:1] not in ("", "#")]
    return {name: set(labels) for name, *labels in rows}


def add(known: dict[str, set[str]], lines: Iterable[str]) -> None:
    """Add the metrics and labels of an exposition in Prometheus' text format."""
    for line in lines:
        if not line.startswith(("#", "go_")) and (sample := SAMPLE.match(line)):
            known.setdefault(sample[1], set()).update(LABEL.findall(sample[2] or ""))


def main(arguments: Sequence[str]) -> int:
    """Record what the arguments say."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    job, *files = arguments
    path = TARGET / f"{job}.txt"
    known = read(path)
    for text in [Path(name).read_text(encoding="utf-8") for name in files] or [sys.stdin.read()]:
        add(known, text.splitlines())
    TARGET.mkdir(exist_ok=True)
    rows = [" ".join([name, *sorted(labels)]) for name, labels in sorted(known.items())]
    path.write_text(
        "\n".join([f"# Metrics of {job}: name and labels, recorded from the real program.", *rows, ""]),
        encoding="utf-8",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: GPL-3.0-or-later
"""Write files/dashboards/: one file for each dashboard, the same bytes for the same code.

python -m scripts.dashboards [--check]      --check writes nothing and fails if a file is out of date
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.dashboards import (
    automation,
    backups,
    bridge,
    executions,
    home,
    host,
    logs,
    postgres,
    pulsar,
    redis,
    traces,
    traefik,
    workers_queue,
)
from scripts.dashboards.model import Dashboard

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "files" / "dashboards"
ALL: tuple[Dashboard, ...] = tuple(
    module.DASHBOARD
    for module in (
        *(home, executions, workers_queue, automation, bridge, pulsar),
        *(postgres, redis, traefik, host, logs, traces, backups),
    )
)


def render() -> dict[str, str]:
    """Return the text of each file."""
    return {f"{board.name}.json": json.dumps(board.render(), indent=1, sort_keys=True) + "\n" for board in ALL}


def main(arguments: Sequence[str]) -> int:
    """Write the files, or compare them."""
    wanted = render()
    there = {path.name: path.read_text(encoding="utf-8") for path in TARGET.glob("*.json")}
    if "--check" not in arguments:
        TARGET.mkdir(exist_ok=True)
        for name in there.keys() - wanted.keys():
            (TARGET / name).unlink()
        for name, text in wanted.items():
            (TARGET / name).write_text(text, encoding="utf-8")
        return 0
    stale = sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))
    for name in stale:
        print(f"files/dashboards/{name} is out of date; run: make dashboards", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

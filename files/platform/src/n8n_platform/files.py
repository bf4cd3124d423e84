# SPDX-License-Identifier: GPL-3.0-or-later
"""Files other programs read while we write them: state as JSON, metrics for Prometheus' text file collector."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def replace(path: Path, text: str) -> None:
    """Write a file so that readers see the old or the new one, never a part; mode 0644."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            os.fchmod(stream.fileno(), 0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """Return what was written last; empty when there is nothing, or nothing readable (state is only a memory)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write state."""
    replace(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Metric:
    """One metric: samples are pairs of labels and value."""

    name: str
    help: str
    samples: Sequence[tuple[Mapping[str, str], float]] = field(default_factory=tuple)
    kind: str = "gauge"


def escape(value: str) -> str:
    """Return a label value as the exposition format wants it."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def exposition(metrics: Sequence[Metric]) -> str:
    """Return metrics in Prometheus' text format."""
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
        for labels, value in metric.samples:
            inner = ",".join(f'{name}="{escape(text)}"' for name, text in sorted(labels.items()))
            lines.append(f"{metric.name}{{{inner}}} {value:.15g}" if inner else f"{metric.name} {value:.15g}")
    return "\n".join(lines) + "\n"

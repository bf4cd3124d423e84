# SPDX-License-Identifier: GPL-3.0-or-later
"""Every alert says how bad it is, what it is about, with numbers, and leads to a page that names it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.policy.repository import ROOT, load, report

RULES = sorted((ROOT / "files" / "alerts").glob("*.yml"))
SITE = "https://github.com/dealscale/n8n_platform/blob/main/"


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_alerts_lead_to_runbooks(path: Path) -> None:
    problems = []
    for group in load(path)["groups"]:
        for rule in group["rules"]:
            name = rule["alert"]
            labels, annotations = rule.get("labels", {}), rule.get("annotations", {})
            if not re.match(r"N8n[A-Z]\w+$", name):
                problems.append(f"{name}: a name begins with N8n")
            if labels.get("severity") not in ("critical", "warning") or not labels.get("service"):
                problems.append(f"{name}: needs the labels severity (critical or warning) and service")
            if "$value" not in annotations.get("summary", ""):
                problems.append(f"{name}: its summary has no number")
            url = annotations.get("runbook_url", "")
            page = ROOT / url.removeprefix(SITE).partition("#")[0]
            if not url.startswith(SITE) or not page.is_file():
                problems.append(f"{name}: its runbook {url} does not exist")
            elif name not in page.read_text(encoding="utf-8"):
                problems.append(f"{name}: {page.relative_to(ROOT)} does not name it")
    report(problems)

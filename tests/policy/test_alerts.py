# SPDX-License-Identifier: GPL-3.0-or-later
"""Every alert says how bad it is, with numbers, leads to a page that tells what to do, and is tested."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from plugins.filter.monitoring import workflow_rules
from tests.policy.repository import ROOT, load, report, repository_files, text
from tests.policy.test_repository import anchors

RULES = sorted((ROOT / "files" / "alerts").glob("*.yml"))
TESTS = ROOT / "tests" / "alerts"
SITE = "https://github.com/dealscale/n8n_platform/blob/main/"
SEVERITIES = ("page", "ticket")
SERVICES = (
    *("n8n", "queue", "bridge", "pulsar", "postgres", "redis", "traefik", "host", "backup"),
    *("monitoring", "logs", "traces"),
)
# It fires all the time, so that somebody notices when it does not.
SIGN_OF_LIFE = "N8nWatchdog"


def alerts(path: Path) -> list[dict[str, Any]]:
    """Return the alerts of a file of rules."""
    return [rule for group in load(path)["groups"] for rule in group["rules"] if "alert" in rule]


def words(rule: dict[str, Any]) -> list[str]:
    """Return what is wrong with the labels and texts of an alert."""
    labels, notes = rule.get("labels", {}), rule.get("annotations", {})
    problems = []
    if not re.match(r"N8n[A-Z]\w+$", rule["alert"]):
        problems.append("a name begins with N8n")
    if labels.get("severity") not in (("none",) if rule["alert"] == SIGN_OF_LIFE else SEVERITIES):
        problems.append(f"severity is one of {', '.join(SEVERITIES)}")
    if labels.get("service") not in SERVICES:
        problems.append(f"service is one of {', '.join(SERVICES)}")
    if "$value" not in notes.get("summary", ""):
        problems.append("its summary has no number")
    if not notes.get("description", "").endswith("."):
        problems.append("its description is no sentence")
    dashboard = notes.get("dashboard", "")
    if not (ROOT / "files" / "dashboards" / f"{dashboard.removeprefix('n8n-platform-')}.json").is_file():
        problems.append(f"there is no dashboard {dashboard!r}")
    return problems


def runbook(rule: dict[str, Any]) -> list[str]:
    """Return what is wrong with the page an alert leads to."""
    name, url = rule["alert"], rule.get("annotations", {}).get("runbook_url", "")
    address, _, anchor = url.removeprefix(SITE).partition("#")
    page = ROOT / address
    if not url.startswith(SITE + "docs/runbooks/") or not page.is_file():
        return [f"its runbook {url} does not exist"]
    content = page.read_text(encoding="utf-8")
    if name not in content:
        return [f"{address} does not name it"]
    if not anchor:
        return []
    if anchor not in anchors(content):
        return [f"{address} has no section {anchor}"]
    section = re.split(r"^## ", content.partition(f"## {name}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return [
        f"{address}#{anchor} does not say **{part}**" for part in ("Means", "Confirm") if f"**{part}**" not in section
    ]


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_alerts_tell_what_to_do(path: Path) -> None:
    report([f"{rule['alert']}: {problem}" for rule in alerts(path) for problem in (*words(rule), *runbook(rule))])


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_alerts_are_tested(path: Path) -> None:
    """Each alert has a test in which it is quiet, then fires, then resolves; Prometheus' scenario runs them."""
    tested: dict[str, list[list[bool]]] = {}
    for case in load(TESTS / path.name)["tests"]:
        seen: dict[str, list[bool]] = {}
        for moment in case.get("alert_rule_test", []):
            seen.setdefault(moment["alertname"], []).append(bool(moment["exp_alerts"]))
        for name, fires in seen.items():
            tested.setdefault(name, []).append(fires)
    wanted = {rule["alert"]: [True] if rule["alert"] == SIGN_OF_LIFE else [False, True, False] for rule in alerts(path)}
    problems = [
        f"{name}: no test shows {moments}" for name, moments in wanted.items() if moments not in tested.get(name, [])
    ]
    problems += [f"{name}: is tested and does not exist" for name in set(tested) - set(wanted)]
    report(problems)


def test_the_alert_of_expectations_is_tested() -> None:
    """What promtool tests is what the filter makes of expectations."""
    made = workflow_rules(
        [{"workflow": "Invoices", "every": "1h"}, {"workflow": "wf02", "every": "1d", "severity": "ticket"}]
    )
    assert load(TESTS / "rules" / "workflow-expectations.yml") == made
    assert runbook(made["groups"][0]["rules"][0]) == []


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for path in RULES for rule in alerts(path)]
    assert sorted(names) == sorted(set(names))


def test_every_runbook_is_listed() -> None:
    pages = {page.name for page in (ROOT / "docs" / "runbooks").glob("*.md")} - {"README.md"}
    assert pages == set(
        re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "runbooks" / "README.md").read_text(encoding="utf-8"))
    )


def test_alerts_that_are_named_exist() -> None:
    """An alert that was renamed leaves no trace in pages and inhibitions; that of expectations is made by a filter."""
    names = {rule["alert"] for path in RULES for rule in alerts(path)} | {"N8nWorkflowOverdue"}
    problems = []
    for file in repository_files():
        if re.match(r"docs/|plugins/|roles/|playbooks/", file):
            found = re.findall(r"\bN8n[A-Z][a-z]+[A-Z]\w+", text(file))
            problems += [f"{file}: there is no alert {name}" for name in set(found) - names]
    report(problems)


def test_runbooks_name_variables_that_exist() -> None:
    """Names of variables, groups, secrets and metrics in the pages occur in what they are about."""
    roles = "|".join(path.name for path in (ROOT / "roles").iterdir() if path.is_dir() and path.name[0] != "_")
    folders = ("roles/", "playbooks/", "files/", "plugins/", "tests/expositions/")
    known = {word for name in repository_files() if name.startswith(folders) for word in re.findall(r"\w+", text(name))}
    problems = []
    for page in sorted((ROOT / "docs" / "runbooks").glob("*.md")):
        for name in set(re.findall(rf"`((?:{roles}|platform)_[a-z0-9_]+)`", page.read_text(encoding="utf-8"))) - known:
            problems.append(f"{page.name}: there is no {name}")
    report(problems)

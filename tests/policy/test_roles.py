# SPDX-License-Identifier: GPL-3.0-or-later
"""Every role has the same anatomy, says what its variables mean, and keeps to its own."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.policy.repository import (
    ALL_ROLES,
    PUBLIC_ROLES,
    ROOT,
    load,
    report,
    repository_files,
    tasks,
    text,
    variables_of,
    without_comments,
)

PARTS = ("README.md", "defaults/main.yml", "meta/argument_specs.yml", "meta/main.yml", "tasks/main.yml")
GROUPS = {
    *("platform", "postgres", "redis", "n8n_main", "n8n_webhook", "n8n_worker", "traefik", "object_store", "backup"),
    *("exporters", "prometheus", "alertmanager", "loki", "otel_collector", "jaeger", "grafana"),
    *("pulsar_zookeeper", "pulsar_bookie", "pulsar_broker", "bridge"),
}


def defaults(role: str) -> dict[str, Any]:
    return load(ROOT / "roles" / role / "defaults" / "main.yml") or {}


def options(role: str) -> dict[str, Any]:
    specs = load(ROOT / "roles" / role / "meta" / "argument_specs.yml") or {}
    return specs.get("argument_specs", {}).get("main", {}).get("options") or {}


@pytest.mark.parametrize("role", PUBLIC_ROLES)
def test_a_role_has_all_parts(role: str) -> None:
    problems = [f"roles/{role}/{part} is missing" for part in PARTS if not (ROOT / "roles" / role / part).is_file()]
    if not (ROOT / "molecule" / role / "molecule.yml").is_file():
        problems.append(f"molecule/{role}/ is missing: no scenario tests the role {role}")
    elif not list((ROOT / "molecule" / role / "tests").glob("test_*.py")):
        problems.append(f"molecule/{role}/tests holds no test")
    report(problems)


@pytest.mark.parametrize("role", ALL_ROLES)
def test_meta_names_the_role_and_the_contract(role: str) -> None:
    meta = load(ROOT / "roles" / role / "meta" / "main.yml")
    assert meta["galaxy_info"]["license"] == "GPL-3.0-or-later"
    wanted = [] if role == "_platform" else [{"role": "dealscale.n8n_platform._platform"}]
    assert meta["dependencies"] == wanted


@pytest.mark.parametrize("role", ALL_ROLES)
def test_defaults_and_argument_specs_have_the_same_keys(role: str) -> None:
    given, specified = set(defaults(role)), set(options(role))
    report(
        [f"{name} is in defaults, not in argument_specs" for name in given - specified]
        + [
            f"{name} is in argument_specs, not in defaults"
            for name in specified - given
            if not options(role)[name].get("required")
        ]
    )


def described(name: str, option: dict[str, Any]) -> list[str]:
    """Return the options, inner ones too, that say nothing about themselves."""
    problems = [] if option.get("description") else [f"{name} has no description"]
    for inner, more in (option.get("options") or {}).items():
        problems += described(f"{name}.{inner}", more)
    return problems


@pytest.mark.parametrize("role", ALL_ROLES)
def test_every_option_is_described(role: str) -> None:
    report([problem for name, option in options(role).items() for problem in described(name, option)])


@pytest.mark.parametrize("role", ALL_ROLES)
def test_literal_defaults_agree(role: str) -> None:
    given = defaults(role)
    report(
        [
            f"{name}: default {option['default']!r} in argument_specs, {given.get(name)!r} in defaults"
            for name, option in options(role).items()
            if "default" in option and option["default"] != given.get(name)
        ]
    )


@pytest.mark.parametrize("role", PUBLIC_ROLES)
def test_names_have_the_roles_prefix(role: str) -> None:
    internal = (load(ROOT / "roles" / role / "vars" / "main.yml") or {}).keys()
    report(
        [
            f"{name}: a public variable of {role} starts with {role}_"
            for name in defaults(role)
            if not name.startswith(f"{role}_")
        ]
        + [
            f"{name}: an internal variable of {role} starts with _{role}_"
            for name in internal
            if not name.startswith(f"_{role}_")
        ]
    )


@pytest.mark.parametrize("role", ALL_ROLES)
def test_no_role_reads_variables_of_another(role: str) -> None:
    foreign = {name: other for other in PUBLIC_ROLES if other != role for name in variables_of(other)}
    problems = []
    for name in repository_files():
        if name.startswith(f"roles/{role}/") and name.endswith((".yml", ".j2")) and "/meta/" not in name:
            # A table may name a variable for a message (SOME_SETTING: its_variable) without reading it.
            content = re.sub(r"^ *[A-Z0-9_]+: \w+$", "", without_comments(text(name)), flags=re.MULTILINE)
            # A role that includes another one may give it variables; the name before the colon is written, not read.
            content = re.sub(r"^ {4,}[a-z][a-z0-9_]*:", "", content, flags=re.MULTILINE)
            words = set(re.findall(r"\b_?[a-z][a-z0-9_]+\b", content))
            problems += [
                f"{name} reads {word}, a variable of the role {foreign[word]}" for word in words & set(foreign)
            ]
    report(problems)


@pytest.mark.parametrize("role", PUBLIC_ROLES)
def test_the_readme_has_an_example_and_says_what_a_second_run_does(role: str) -> None:
    name = f"roles/{role}/README.md"
    content = text(name) if (ROOT / name).is_file() else ""
    problems = []
    if not re.search(r"^```ya?ml$", content, re.MULTILINE):
        problems.append(f"{name} has no example in YAML")
    if "second run" not in content.lower():
        problems.append(f"{name} does not say what a second run does not do")
    report(problems)


def template_text(name: str, seen: frozenset[str] = frozenset()) -> str:
    """Return a template with the templates it includes or imports."""
    content = text(name)
    folder = name.rsplit("/", 1)[0]
    for included in re.findall(r"\{%-?\s*(?:include|import|extends|from)\s+['\"]([^'\"]+)['\"]", content):
        path = f"{folder}/{included}"
        if path not in seen and (ROOT / path).is_file():
            content += template_text(path, seen | {path})
    return content


def test_every_service_is_sandboxed_and_bounded() -> None:
    problems = []
    for name in repository_files():
        if name.startswith("roles/") and name.endswith(".service.j2"):
            content = template_text(name)
            problems += [f"{name}: no {need}" for need in ("unit_sandbox", "MemoryMax=") if need not in content]
        elif name.startswith(("roles/", "files/")) and name.endswith(".service"):
            problems.append(f"{name}: a unit is a template, so that it gets the sandbox of all units")
    report(problems)


def test_ports_come_from_the_table() -> None:
    ports = load(ROOT / "roles" / "_platform" / "defaults" / "main.yml")["platform_ports"]
    numbers = {str(port): name for name, port in ports.items() if port > 1023}
    problems = []
    for name in repository_files():
        if re.match(r"roles/(?!_platform/).*/(tasks|templates|handlers|vars|defaults)/", name) or (
            name.startswith("playbooks/") and name.endswith(".yml")
        ):
            found = set(re.findall(r"(?<![\w.])\d{4,5}(?![\w.])", without_comments(text(name)))) & set(numbers)
            problems += [f"{name}: {number} is platform_ports.{numbers[number]}" for number in found]
    report(problems)


def test_each_group_of_the_contract_is_known_to_the_inventories() -> None:
    problems = []
    for path in sorted((ROOT / "inventories").glob("*/hosts.yml")):
        children = set(load(path)["platform"]["children"])
        problems += [f"{path.relative_to(ROOT)}: no group {group}" for group in GROUPS - {"platform"} - children]
    report(problems)


# Modules that only look; a task with another one that says it never changes anything hides a change.
READERS = re.compile(
    r"ansible\.builtin\.(command|shell|uri|stat|slurp|find|getent|wait_for|assert|fail|debug|set_fact|setup|ping|systemd_service"
    r"|package_facts|service_facts|mount_facts|include_\w+|import_\w+|add_host|group_by|meta|validate_argument_spec|tempfile)$"
    r"|.*_(info|facts|query|ping)$|dealscale\.n8n_platform\.(preflight|doctor\w*|host_limits)$"
)
DIRECT = ("ansible.builtin.systemd_service", "ansible.builtin.service", "ansible.builtin.systemd")


def test_tasks_hide_nothing() -> None:
    problems = []
    for task in tasks():
        if task.body.get("ignore_errors") or task.body.get("ignore_unreachable"):
            problems.append(f"{task}: ignores errors")
        looks_only = task.body.get("check_mode") is True or task.body.get("delegate_to") == "localhost"
        if task.body.get("changed_when") is False and not looks_only and not READERS.match(task.module):
            problems.append(f"{task}: {task.module} with changed_when: false")
        if task.module in ("ansible.builtin.pause", "ansible.builtin.raw"):
            problems.append(f"{task}: {task.module}")
        if re.search(r"\bsleep \d", str(task.arguments)):
            problems.append(f"{task}: sleeps; wait with until, or for the thing itself")
    report(problems)


def test_restarts_are_for_handlers() -> None:
    report(
        [
            f"{task}: restarts at each run; that is for handlers"
            for task in tasks()
            if re.match(r"roles/[^/]+/tasks/", task.file)
            and isinstance(task.arguments, dict)
            and task.arguments.get("state") in ("restarted", "reloaded")
            and "when" not in task.body
            and task.module in (*DIRECT, "dealscale.n8n_platform.systemd_units")
        ]
    )


def test_tasks_have_names_and_full_module_names() -> None:
    problems = []
    for task in tasks():
        if not task.body.get("name"):
            problems.append(f"{task}: no name")
        elif not task.body["name"][0].isupper():
            problems.append(f"{task}: a name is a sentence that starts in upper case")
        if task.module and task.module.count(".") < 2:
            problems.append(f"{task}: {task.module} is no full name")
    report(problems)

# SPDX-License-Identifier: GPL-3.0-or-later
"""What the policy tests read: the repository's files, roles and tasks."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
# Roles that start with _ are the contract and the engine; nothing runs them alone.
PUBLIC_ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir() and path.name[0] != "_")
ALL_ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
KEYWORDS = {
    *("name", "when", "register", "changed_when", "failed_when", "loop", "loop_control", "vars", "args", "become"),
    *("become_user", "check_mode", "delegate_to", "diff", "environment", "ignore_errors", "ignore_unreachable"),
    *("listen", "no_log", "notify", "retries", "delay", "until", "run_once", "tags", "block", "rescue", "always"),
    *("async", "poll", "throttle", "timeout", "delegate_facts", "any_errors_fatal", "module_defaults", "connection"),
}


class Loader(yaml.SafeLoader):
    """A loader that accepts Ansible's tags (!vault, !unsafe) as plain values."""


def _plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node)
    return loader.construct_mapping(node) if isinstance(node, yaml.MappingNode) else None


Loader.add_multi_constructor("!", _plain)


def load(path: Path) -> Any:
    """Return the content of a YAML file; None if there is no such file."""
    if not path.exists():
        return None
    return yaml.load(path.read_text(encoding="utf-8"), Loader)  # noqa: S506 (a SafeLoader)


@functools.cache
def repository_files() -> tuple[str, ...]:
    """Return the paths of the repository's files: tracked, or new and not ignored; without links."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    names = {name for name in listed.split("\0") if name}
    return tuple(sorted(name for name in names if (ROOT / name).is_file() and not (ROOT / name).is_symlink()))


@functools.cache
def text(name: str) -> str:
    """Return the text of a repository file; empty for one that is not text."""
    try:
        return (ROOT / name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


@dataclass(frozen=True)
class Task:
    """A task of a role or playbook."""

    file: str
    body: dict[str, Any]

    @property
    def module(self) -> str:
        """The name of the module the task calls; empty for a block."""
        return next((key for key in self.body if key not in KEYWORDS and not key.startswith("with_")), "")

    @property
    def arguments(self) -> Any:
        """What the module is given."""
        return self.body.get(self.module)

    def __str__(self) -> str:
        """Where it is."""
        return f"{self.file}: {self.body.get('name', self.module)}"


def _walk(name: str, entries: Any) -> Iterator[Task]:
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        parts = ("block", "rescue", "always", "pre_tasks", "tasks", "post_tasks", "handlers")
        nested = [entry[part] for part in parts if part in entry]
        if "hosts" not in entry:
            yield Task(name, entry)
        for inner in nested:
            yield from _walk(name, inner)


@functools.cache
def tasks() -> tuple[Task, ...]:
    """Return every task of roles, playbooks and scenarios."""
    wanted = re.compile(
        r"(roles/[^/]+/(tasks|handlers)/|playbooks/|molecule/[^/]+/)(?!.*(vars|defaults|molecule\.yml)).*\.yml$"
    )
    return tuple(task for name in repository_files() if wanted.match(name) for task in _walk(name, load(ROOT / name)))


def variables_of(role: str) -> set[str]:
    """Return the variables a role defines: defaults, vars, and what its tasks register or set."""
    found: set[str] = set()
    for name in repository_files():
        if re.match(rf"roles/{role}/(defaults|vars)/.*\.yml$", name):
            found |= set(load(ROOT / name) or {})
    for task in tasks():
        if task.file.startswith(f"roles/{role}/"):
            if "register" in task.body:
                found.add(task.body["register"])
            if task.module == "ansible.builtin.set_fact":
                found |= set(task.arguments) - {"cacheable"}
    return found


def without_comments(content: str) -> str:
    """Return YAML or a template without the comments that stand on lines of their own and those of Jinja."""
    content = re.sub(r"\{#.*?#\}", "", content, flags=re.DOTALL)
    return "\n".join(line for line in content.splitlines() if not line.lstrip().startswith("#"))


def report(problems: list[str]) -> None:
    """Fail with all problems at once."""
    if problems:
        pytest.fail("\n".join(["", *sorted(problems)]), pytrace=False)

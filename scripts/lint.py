# SPDX-License-Identifier: GPL-3.0-or-later
"""Check style with all linters, two at a time; print a line for each and the output of those that fail.

python scripts/lint.py [NAME...]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".cache" / "lint"
PYTHON_FOLDERS = ("plugins", "artifacts", "scripts", "tests", "files/platform/src", "files/platform/tests")


@dataclass(frozen=True)
class Tool:
    """A linter: the words of its command, and what it is given to read (nothing: it finds its files itself)."""

    command: tuple[str, ...]
    targets: Callable[[], list[str]] | None = None


@dataclass(frozen=True)
class Outcome:
    """How a linter ended; ``code`` is None when it had nothing to read."""

    name: str
    code: int | None
    seconds: float
    output: str


def repository_files() -> list[Path]:
    """Return the files of the repository: tracked, or new and not ignored; without links."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    paths = [Path(name) for name in listed.split("\0") if name]
    return sorted(path for path in set(paths) if (ROOT / path).is_file() and not (ROOT / path).is_symlink())


def python_folders() -> list[str]:
    """Return the folders that hold Python, those of the roles' programs included."""
    roles = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "roles").glob("*/files"))]
    return [folder for folder in (*PYTHON_FOLDERS, *roles) if any((ROOT / folder).rglob("*.py"))]


def shell_files() -> list[str]:
    """Return the shell programs; templates are rendered and checked by their roles' own tests."""
    found = []
    for path in repository_files():
        with (ROOT / path).open("rb") as stream:
            first = stream.readline(80)
        if first.startswith(b"#!") and first.split(b"/")[-1].split()[-1] in (b"sh", b"bash") and path.suffix != ".j2":
            found.append(str(path))
    return found


# Slowest first, so that the others run beside it.
TOOLS: dict[str, Tool] = {
    "ansible-lint": Tool(("ansible-lint", "--offline", "--format", "pep8", "--nocolor")),
    "mypy": Tool(("mypy", "--strict", "--no-error-summary"), python_folders),
    "yamllint": Tool(("yamllint", "--strict", "--format", "parsable", ".")),
    "ruff check": Tool(("ruff", "check", "--quiet", "--output-format", "concise", ".")),
    "ruff format": Tool(("ruff", "format", "--check", "--quiet", "--output-format", "concise", ".")),
    "shellcheck": Tool(("shellcheck", "--format", "gcc"), shell_files),
    "codespell": Tool(("codespell",)),
}


def prepare_home() -> None:
    """Make a home for ansible-lint in which the collection is a link to this checkout.

    Without it ansible-lint builds the collection and installs a copy below ~/.ansible at each run.
    """
    link = HOME / "collections" / "ansible_collections" / "dealscale" / "n8n_platform"
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.readlink() != ROOT:
        link.unlink()
    if not link.is_symlink():
        link.symlink_to(ROOT)


def run(name: str) -> Outcome:
    """Run one linter."""
    tool, begin = TOOLS[name], time.monotonic()
    targets = tool.targets() if tool.targets else []
    if tool.targets and not targets:
        return Outcome(name, None, 0, "")
    programs = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_HOME": str(HOME),
        "NO_COLOR": "1",
    }
    program = shutil.which(tool.command[0], path=environment["PATH"])
    if program is None:
        return Outcome(name, 127, 0, f"{tool.command[0]} is not installed; run: make setup\n")
    done = subprocess.run(
        [program, *tool.command[1:], *targets],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return Outcome(name, done.returncode, time.monotonic() - begin, done.stdout)


def main(names: list[str]) -> int:
    """Run the named linters (all without names) and return the exit code."""
    unknown = [name for name in names if name not in TOOLS]
    if unknown:
        print(f"No such linter: {', '.join(unknown)}. There are: {', '.join(TOOLS)}", file=sys.stderr)
        return 2
    prepare_home()
    failed = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        for future in as_completed([pool.submit(run, name) for name in names or TOOLS]):
            outcome = future.result()
            word = "--  " if outcome.code is None else "FAIL" if outcome.code else "ok  "
            print(f"{word} {outcome.name:<13} {outcome.seconds:5.1f} s", flush=True)
            if outcome.code:
                failed.append(outcome)
    for outcome in failed:
        print(f"\n--- {outcome.name} ---\n{outcome.output.rstrip()}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for every file: nothing private, nothing unpinned, nothing unfinished, no dead link, no monster."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import unquote, urlsplit

import ansible_collections
import pytest
import yaml

from scripts import docs
from tests.policy.repository import ROOT, load, report, repository_files, text

# Files written by programs; people neither read nor shorten them.
GENERATED = re.compile(
    r"(.*/)?(package-lock\.json|go\.sum|environment-variables\.txt)$|requirements/.*\.txt$|(.*/)?requirements\.txt$|files/platform/bridge\.txt$|LICENSE$|docs/reference/|.*/fixtures/"
)
# Put together here, so that this file does not hold what it looks for.
REGISTRIES = [
    "".join(parts)
    for parts in (
        ("py", "pi.org"),
        ("files.python", "hosted.org"),
        ("registry.np", "mjs.org"),
        ("registry.yarn", "pkg.com"),
        ("deb.deb", "ian.org"),
        ("security.deb", "ian.org"),
        ("archive.ubu", "ntu.com"),
        ("security.ubu", "ntu.com"),
        ("repo1.mav", "en.org"),
        ("repo.maven.apa", "che.org"),
        ("proxy.gol", "ang.org"),
        ("sum.gol", "ang.org"),
        ("static.crat", "es.io"),
        ("index.crat", "es.io"),
    )
]
# Public sites a package manager's configuration may name; documents may too.
VENDORS = ("github.com", "nodejs.org", "localhost")


def configured_hosts() -> set[str]:
    """Return the hosts this machine's package managers ask: company mirrors have names nobody else should read."""
    texts = [os.environ.get(name, "") for name in ("PIP_INDEX_URL", "UV_INDEX_URL", "GOPROXY", "NPM_CONFIG_REGISTRY")]
    for command in (["pip", "config", "get", "global.index-url"], ["npm", "config", "get", "registry"]):
        try:
            texts.append(subprocess.run(command, capture_output=True, check=False, text=True, timeout=20).stdout)
        except FileNotFoundError:
            continue
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*.*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
    hosts = {urlsplit(address).hostname or "" for line in texts for address in re.findall(r"https?://[^\s|,]+", line)}
    return {host for host in hosts if "." in host and not host[0].isdigit() and not host.endswith(VENDORS)}


def test_no_registry_is_named() -> None:
    hosts = {*REGISTRIES, *configured_hosts()}
    pattern = re.compile(rf"(?<![\w.-])({'|'.join(re.escape(host) for host in sorted(hosts))})(?![\w-])", re.IGNORECASE)
    problems = []
    for name in repository_files():
        for number, line in enumerate(text(name).splitlines(), 1):
            if pattern.search(line):
                problems.append(f"{name}:{number} names the host of a package registry")
    report(problems)


SECRETS = {
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s*\n[A-Za-z0-9+/=]{20}",
    "a cloud access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{40,})",
    "a chat token": r"\bxox[abpr]-[A-Za-z0-9-]{10,}",
    "an API key": r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}",
    "a web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "an address with a password": r"\b[a-z][a-z0-9+]*://[^\s/:@{}$<>%*]+:(?!\*|x+@|password@|secret@)[^\s/:@{}$<>%*\\\"']{6,}@[\w]",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_no_secret_is_committed(kind: str) -> None:
    pattern = re.compile(SECRETS[kind])
    # Tests may hold made-up addresses with passwords, to show that they are not logged.
    made_up = "tests/" if kind == "an address with a password" else "no such folder"
    read = [name for name in repository_files() if not GENERATED.match(name) and made_up not in name]
    report([f"{name} holds {kind}" for name in read if pattern.search(text(name))])


def test_no_path_of_a_private_machine() -> None:
    private = [f"{ROOT}/"]
    if ROOT.parent.parent != ROOT.parent and ROOT.parent.parts[1] not in ("opt", "srv", "usr", "var", "tmp"):
        private.append(f"{ROOT.parent}/")
    if Path.home() != Path("/root"):
        private.append(f"{Path.home()}/")
    pattern = re.compile(rf"(?<![\w.}}*-])({'|'.join(re.escape(path) for path in private)})")
    report([f"{name} names a path of this machine" for name in repository_files() if pattern.search(text(name))])


def test_nothing_is_unfinished() -> None:
    marks = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK")) + r")\b(?!_)")
    report(
        [
            f"{name}:{number}: {line.strip()[:80]}"
            for name in repository_files()
            if not GENERATED.match(name)
            for number, line in enumerate(text(name).splitlines(), 1)
            if marks.search(line)
        ]
    )


def test_tests_neither_skip_nor_sleep() -> None:
    forbidden = re.compile(
        r"pytest\.(?:"
        + "|".join(("sk" + "ip", "mark\\.sk" + "ip", "mark\\.xf" + "ail", "xf" + "ail", "importors" + "kip"))
        + r")"
        r"|\btime\.sl" + r"eep\("
    )
    report(
        [
            f"{name}:{number}: {line.strip()[:80]}"
            for name in repository_files()
            if re.match(r"(tests/(unit|policy)|molecule/[^/]+/tests|files/platform/tests)/.*\.py$", name)
            for number, line in enumerate(text(name).splitlines(), 1)
            if forbidden.search(line)
        ]
    )


def code_lines(name: str) -> int:
    """Return the lines of a file that must be understood: for Python without blank lines, comments and docstrings."""
    content = text(name)
    if not name.endswith(".py"):
        return len(content.splitlines())
    prose: set[int] = set()
    for node in ast.walk(ast.parse(content)):
        value = getattr(node, "value", None)
        if isinstance(node, ast.Expr | ast.Assign) and isinstance(value, ast.Constant) and isinstance(value.value, str):
            prose |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return sum(
        1
        for number, line in enumerate(content.splitlines(), 1)
        if number not in prose and line.strip() and not line.lstrip().startswith("#")
    )


def test_files_stay_small() -> None:
    problems = []
    for name in repository_files():
        if GENERATED.match(name) or name.endswith((".json", ".svg", ".png", ".md")):
            continue
        limit = 60 if re.match(r"roles/[^/]+/tasks/", name) else 450 if "tests/" in name else 350
        if (lines := code_lines(name)) > limit:
            problems.append(f"{name}: {lines} lines, more than {limit}")
    report(problems)


PYTHON_LOCKS = sorted([*ROOT.glob("requirements/*.txt"), ROOT / "files/platform/bridge.txt"])


@pytest.mark.parametrize("lock", PYTHON_LOCKS, ids=lambda path: path.name)
def test_python_locks_are_hashed_and_have_no_address(lock: Path) -> None:
    content = lock.read_text(encoding="utf-8").replace("\\\n", " ")
    problems = []
    for line in content.splitlines():
        requirement = line.split("#")[0].strip()
        if requirement and not re.match(
            r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==\S+ .*--hash=sha256:[0-9a-f]{64}", requirement
        ):
            problems.append(f"{lock.name}: {requirement[:80]} is not pinned with a hash")
        if "://" in line or re.match(r"\s*--(index|extra-index|find-links|trusted)", line):
            problems.append(f"{lock.name}: an address: {line[:80]}")
    report(problems)


def test_python_locks_hold_what_is_asked_for() -> None:
    problems = []
    for source in (path.with_suffix(".in") for path in PYTHON_LOCKS):
        locked = source.with_suffix(".txt").read_text(encoding="utf-8")
        for line in source.read_text(encoding="utf-8").splitlines():
            if line and line[0].isalpha():
                name, _, version = re.sub(r"\[.*\]", "", line).partition("==")
                if not re.search(rf"^{re.escape(name.lower())}=={re.escape(version)}", locked, re.MULTILINE):
                    problems.append(f"{source.name}: {line} is not in {source.stem}.txt; run: make lock")
    report(problems)


def test_the_libraries_of_the_bridge_are_those_of_their_lock() -> None:
    default = load(ROOT / "artifacts" / "bridge.yml")["default"]
    shipped = (ROOT / "artifacts" / "bridge" / default / "requirements.txt").read_text(encoding="utf-8")
    if shipped != (ROOT / "files" / "platform" / "bridge.txt").read_text(encoding="utf-8"):
        report(
            [f"artifacts/bridge/{default} is not files/platform/bridge.txt: pin the next version and make it default"]
        )


def test_npm_locks_have_hashes_and_no_address() -> None:
    problems = []
    for name in repository_files():
        if not name.endswith("package-lock.json"):
            continue
        packages = json.loads(text(name))["packages"]
        problems += [
            f"{name}: {path} has no integrity hash"
            for path, package in packages.items()
            if path and not package.get("link") and not str(package.get("integrity", "")).startswith("sha512-")
        ]
        problems += [f"{name}: {path} has an address" for path, package in packages.items() if "resolved" in package]
    report(problems)


def test_the_catalogue_is_pinned() -> None:
    problems = []
    for path in sorted((ROOT / "artifacts").glob("*.yml")):
        tool = load(path)
        if not re.fullmatch(r"\d+\.\d+[\w.+-]*", str(tool["default"])) or tool["default"] not in tool["versions"]:
            problems.append(f"{path.name}: the default {tool['default']} is no version of the catalogue")
        for version, architectures in tool["versions"].items():
            for arch, pins in architectures.items():
                hashes = [pin if isinstance(pin, str) else str(pin.get("sha256", pin)) for pin in pins.values()]
                locked = any(
                    (path.with_suffix("") / version / lock).is_file()
                    for lock in ("package-lock.json", "go.sum", "requirements.txt")
                )
                problems += [
                    f"{path.name}: {version} {arch}: {pin} is no SHA-256 and no lock file is there"
                    for pin in hashes
                    if not re.fullmatch(r"[0-9a-f]{64}", pin) and not (pin == "locked" and locked)
                ]
    report(problems)


def test_collections_are_those_of_the_pinned_ansible() -> None:
    problems = []
    required = {
        entry["name"]: str(entry["version"]) for entry in load(ROOT / "collections" / "requirements.yml")["collections"]
    }
    for name, version in required.items():
        for folder in ansible_collections.__path__:
            manifest = Path(folder, *name.split("."), "MANIFEST.json")
            if manifest.is_file():
                bundled = json.loads(manifest.read_text(encoding="utf-8"))["collection_info"]["version"]
                if bundled != version:
                    problems.append(
                        f"{name}: {version} in collections/requirements.yml, {bundled} in the package ansible"
                    )
                break
        else:
            problems.append(f"{name}: not in the package ansible")
    used: set[str] = set()
    for path in repository_files():
        if re.match(r"(roles|playbooks|molecule)/.*\.yml$|site\.yml$", path):
            used |= set(
                re.findall(
                    r"^\s*(?:- )?((?:community|ansible)\.(?!builtin)[a-z_]+)\.[a-z_]+:", text(path), re.MULTILINE
                )
            )
    problems += [f"{name} is used but not in collections/requirements.yml" for name in used - set(required)]
    report(problems)


def test_one_version() -> None:
    galaxy = load(ROOT / "galaxy.yml")["version"]
    project = tomllib.loads(text("pyproject.toml"))["project"]["version"]
    heads = re.findall(r"^## \[?v?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads, "CHANGELOG.md has no heading such as `## 0.1.0`"
    assert (galaxy, project) == (heads[0], heads[0])


def anchors(content: str) -> set[str]:
    """Return the anchors that a Markdown file's headings get."""
    found: dict[str, int] = {}
    result = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", re.sub(r"```.*?```", "", content, flags=re.DOTALL), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        result.add(slug if count == 0 else f"{slug}-{count}")
    return result | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", content))


def test_links_lead_somewhere() -> None:
    problems = []
    files = set(repository_files())
    folders = {str(parent) for name in files for parent in Path(name).parents}
    for name in files:
        if not name.endswith(".md"):
            continue
        content = re.sub(r"```.*?```", "", text(name), flags=re.DOTALL)
        targets = re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", content) + re.findall(
            r"^\[[^\]]+\]: (\S+)", content, re.MULTILINE
        )
        for target in targets:
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = unquote(target).partition("#")
            resolved = os.path.normpath(Path(name).parent / path) if path else name
            if resolved not in files and resolved not in folders:
                problems.append(f"{name}: {target} leads nowhere")
            elif anchor and resolved.endswith(".md") and anchor not in anchors(text(resolved)):
                problems.append(f"{name}: {target}: no such heading")
    report(problems)


def test_every_decision_is_listed() -> None:
    index = "docs/decisions/README.md"
    decisions = [name for name in repository_files() if re.match(r"docs/decisions/\d.*\.md$", name)]
    listed = text(index) if (ROOT / index).is_file() else ""
    report([f"{name} is not in {index}" for name in decisions if f"({Path(name).name})" not in listed])


def test_the_reference_is_what_the_sources_say() -> None:
    reference = "docs/reference"
    committed = {Path(name).name: text(name) for name in repository_files() if name.startswith(f"{reference}/")}
    wanted = docs.pages()
    stale = [name for name in wanted.keys() | committed.keys() if wanted.get(name) != committed.get(name)]
    report([f"{reference}/{name} is out of date; run: make docs" for name in stale])


def test_programs_can_be_started() -> None:
    programs = [
        name for name in repository_files() if name.startswith(("scripts/", ".ci/")) and text(name).startswith("#!")
    ]
    report([f"{name} is not executable" for name in programs if not os.access(ROOT / name, os.X_OK)])


def test_the_makefile_explains_itself() -> None:
    makefile = text("Makefile")
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    explained = re.findall(r"^([a-z-]+):.*## \S", makefile, re.MULTILINE)
    phony = re.findall(r"^\.PHONY: ([a-z-]+)$", makefile, re.MULTILINE)
    assert targets == explained == phony


def test_ci_runs_the_test_command_and_nothing_else() -> None:
    commands = [line for line in text(".ci/run").splitlines() if line and not line.startswith(("#", "set ", "cd "))]
    assert commands == ["exec make test"]


def test_yaml_files_end_in_yml() -> None:
    report([f"{name}: end it in .yml" for name in repository_files() if name.endswith(".yaml") and name[0] != "."])


def test_the_molecule_base_needs_no_galaxy() -> None:
    base = yaml.safe_load(text(".config/molecule/config.yml"))
    assert base["prerun"] is False
    assert base["dependency"]["enabled"] is False

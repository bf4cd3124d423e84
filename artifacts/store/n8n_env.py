# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists the environment variables a release of n8n really reads, by looking into its code.

The list is committed, so that a playbook can refuse a misspelt variable before it touches a host.
"""

from __future__ import annotations

import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from artifacts.store.errors import BuildError
from artifacts.store.run import need_program

FILE_NAME = "environment-variables.txt"
# Packages of n8n itself; what other libraries read from the environment is not n8n's configuration.
OWN_CODE = re.compile(r"node_modules/(?:n8n|n8n-core|n8n-workflow|n8n-nodes-base|@n8n/[^/]+)/(?:dist|bin)/.*\.[cm]?js")
FOREIGN_CODE = re.compile(r"/(?:editor-ui|design-system|typeorm|i18n)/")
DECORATED = re.compile(r"\bEnv\)?\(\s*['\"]([A-Z][A-Z0-9_]*)['\"]")
DECORATED_BY_CONSTANT = re.compile(r"\bEnv\)?\(\s*(?:\w+\.)*([A-Z][A-Z0-9_]*)\.\w+")
READ = re.compile(r"process\.env(?:\.([A-Za-z_]\w*)|\[\s*['\"]([A-Za-z_]\w*)['\"]\s*\])")
ACCEPTED = re.compile(r"[A-Z][A-Z0-9_]*|https?_proxy|no_proxy|all_proxy")
# Read by n8n's code but not settings of it: the shell's, a build's, a test run's.
NOT_SETTINGS = re.compile(
    r"PATH|HOME|USERPROFILE|LOCALAPPDATA|VITEST\w*|GITHUB_OUTPUT|N8N_EVAL_\w+|ENABLE_INTEGRATION\w+"
)
SMALLEST_PLAUSIBLE = 300


def variables(files: Iterator[str]) -> list[str]:
    """Return every accepted name, sorted; a variable of a configuration class brings its ``<name>_FILE`` along.

    ``files`` are the texts of the release's own code.
    """
    decorated: set[str] = set()
    read: set[str] = set()
    constants: set[str] = set()
    texts = list(files)
    for text in texts:
        decorated.update(DECORATED.findall(text))
        constants.update(DECORATED_BY_CONSTANT.findall(text))
        read.update(dotted or quoted for dotted, quoted in READ.findall(text))
    for constant in constants:  # names that the code keeps in an object: { enabled: 'N8N_OTEL_ENABLED', ... }
        body = re.compile(rf"\b{constant} = (?:Object\.freeze\()?\{{([^}}]*)\}}")
        for text in texts:
            for match in body.finditer(text):
                decorated.update(re.findall(r"['\"]([A-Z][A-Z0-9_]*)['\"]", match[1]))
    names = decorated | {f"{name}_FILE" for name in decorated} | read
    return sorted(name for name in names if ACCEPTED.fullmatch(name) and not NOT_SETTINGS.fullmatch(name))


def release_code(archive: Path) -> Iterator[str]:
    """Return the texts of n8n's own code in a packed release."""
    zstd = need_program("zstd", "to read releases", "apt install zstd")
    with (
        subprocess.Popen([zstd, "-dcq", str(archive)], stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as tar,
    ):
        for member in tar:
            if member.isreg() and OWN_CODE.fullmatch(member.name) and not FOREIGN_CODE.search(member.name):
                handle = tar.extractfile(member)
                if handle is not None:
                    yield handle.read().decode("utf-8", errors="replace")


def write(archive: Path, target: Path) -> int:
    """Write the list for a packed release; returns the number of names."""
    names = variables(release_code(archive))
    if len(names) < SMALLEST_PLAUSIBLE:
        raise BuildError(
            f"only {len(names)} variables found in {archive.name}: n8n's code looks different from what "
            "artifacts/store/n8n_env.py expects; nothing was written"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n".join(names) + "\n", encoding="utf-8")
    return len(names)

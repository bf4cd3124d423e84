# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the package managers' own clients with a heartbeat and with errors that hide credentials."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from artifacts.store.errors import BuildError, FetchError
from artifacts.store.progress import Reporter

POLL_SECONDS = 0.2
_CREDENTIALS = re.compile(r"(://)[^/@\s]+@")
_TOKENS = re.compile(r"((?:_authToken|_auth|_password|password|token)\s*[=:]\s*)\S+", re.IGNORECASE)


def redact(text: str) -> str:
    """Remove user:password from addresses and values of token settings, as client output may quote them."""
    return _TOKENS.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", text))


def need_program(name: str, why: str, install: str) -> str:
    """Path of the program ``name``, or an error that says why it is needed and how to get it."""
    found = shutil.which(name)
    if found is None:
        raise BuildError(f"{name} is needed {why} and is not on this machine; install it with: {install}")
    return found


def run(
    command: Sequence[str],
    *,
    label: str,
    reporter: Reporter,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    error: type[BuildError] | type[FetchError] = FetchError,
) -> str:
    """Run ``command`` and return its output.

    ``env`` is added to the caller's environment (proxies and mirror settings of the clients stay in force).
    Raises ``error`` with the last lines of the output if the exit status is not zero.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                try:
                    status = process.wait(POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    reporter.tick(f"{label}: {time.monotonic() - started:.0f} s")
        except BaseException:
            process.kill()
            process.wait()
            raise
        log.seek(0)
        output = log.read()
    if status != 0:
        lines = [line for line in output.splitlines() if line.strip()]
        tail = redact("\n    ".join(lines[-12:]))
        raise error(f"{label} failed (exit status {status} of {Path(command[0]).name}):\n    {tail}")
    return output

# SPDX-License-Identifier: GPL-3.0-or-later
r"""What the unit tests share: run a module's main() in this process, with fake programs in PATH.

Import plugins by their path; what they import from ``ansible_collections.dealscale.n8n_platform`` is the same object::

    from plugins.modules import release

    def test_it(run_module, fake_command):
        systemctl = fake_command("systemctl", stdout="active\n")
        result = run_module(release, {"version": "1"}, check=True)
        assert result["changed"]
        assert systemctl.calls == [["start", "x.service"]]
"""

from __future__ import annotations

import contextlib
import importlib.abc
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils import _internal, basic
from ansible.module_utils.common import warnings
from ansible.module_utils.testing import patch_module_args
from hypothesis import HealthCheck, settings

# A loaded machine is no bug: examples have no time limit of their own.
settings.register_profile("platform", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("platform")


class CollectionImports(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Resolves ``ansible_collections.dealscale.n8n_platform.plugins.x`` to ``plugins.x``: one module object."""

    prefix = "ansible_collections.dealscale.n8n_platform."

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Claim the names below the collection."""
        return ModuleSpec(name, self) if name.startswith(self.prefix) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module under its short name."""
        module = importlib.import_module(spec.name.removeprefix(self.prefix))
        self.original = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Undo what the import system wrote into the module; it has been executed already."""
        module.__spec__ = self.original


def _register_collection() -> None:
    for name in ("ansible_collections.dealscale", "ansible_collections.dealscale.n8n_platform"):
        package = ModuleType(name)
        package.__path__ = []
        sys.modules[name] = package
    sys.meta_path.insert(0, CollectionImports())


_register_collection()


class ModuleResult(dict[str, Any]):
    """What a module returned, as its JSON; ``output`` holds what it printed besides."""

    output: str = ""


@dataclass
class FakeCommand:
    """A program in PATH that writes down how it was called."""

    path: Path
    log: Path

    @property
    def calls(self) -> list[list[str]]:
        """Return the arguments of each call so far, in order."""
        if not self.log.exists():
            return []
        return [shlex.split(line) for line in self.log.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def run_module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleResult]:
    """Return ``run_module(module, arguments, check=False, diff=False)``, which gives the module's JSON.

    The arguments go through the module's own argument_spec and the result through Ansible's own output, ``no_log``
    scrubbing included; warnings are plain texts. A module that fails returns ``{"failed": True, "msg": ...}`` like any
    other result; one that raises lets the exception through.
    """

    def run(
        module: ModuleType, arguments: Mapping[str, Any] | None = None, *, check: bool = False, diff: bool = False
    ) -> ModuleResult:
        sent = {**(arguments or {}), "_ansible_check_mode": check, "_ansible_diff": diff}
        # Ansible keeps warnings per process; a real module has a process of its own.
        warnings._global_warnings.clear()
        warnings._global_deprecations.clear()
        output = io.StringIO()
        with patch_module_args(sent), contextlib.redirect_stdout(output), pytest.raises(SystemExit) as ended:
            module.main()
        *printed, last = output.getvalue().strip().splitlines()
        result = ModuleResult(json.loads(last))
        for key in ("warnings", "deprecations"):
            if key in result:
                result[key] = [summary["event"]["msg"] for summary in result[key]]
        result.output = "\n".join(printed)
        assert (ended.value.code != 0) == bool(result.get("failed")), result
        return result

    # On a controller, which other tests make of this process, warnings would go to the terminal instead.
    monkeypatch.setattr(_internal, "is_controller", False)
    # A module finds programs by PATH and changes its working directory; neither may leak into the next test.
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", None)
    monkeypatch.chdir(Path.cwd())
    return run


@pytest.fixture
def fake_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeCommand]:
    """Return ``fake_command(name, stdout="", stderr="", code=0, script=None)``, which puts a program first in PATH.

    ``script`` is bash run instead of the fixed answer; it sees the real arguments as ``"$@"``.
    """
    directory = tmp_path / "fake-bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")

    def make(name: str, stdout: str = "", stderr: str = "", code: int = 0, script: str | None = None) -> FakeCommand:
        command = FakeCommand(directory / name, directory / f".{name}.calls")
        fixed = f"printf %s {shlex.quote(stdout)}\nprintf %s {shlex.quote(stderr)} >&2\nexit {code}\n"
        head = f"#!/bin/bash\n{{ [ $# = 0 ] || printf '%q ' \"$@\"; echo; }} >>{shlex.quote(str(command.log))}\n"
        command.path.write_text(head + (fixed if script is None else script), encoding="utf-8")
        command.path.chmod(0o755)
        return command

    return make

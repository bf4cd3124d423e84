# SPDX-License-Identifier: GPL-3.0-or-later
"""The test helpers themselves."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ansible.module_utils.basic import AnsibleModule

RunModule = Callable[..., dict[str, Any]]


def make(body: Callable[[AnsibleModule], None]) -> ModuleType:
    module = ModuleType("under_test")

    def main() -> None:
        body(AnsibleModule({"name": {"type": "str"}, "key": {"no_log": True}}, supports_check_mode=True))

    module.main = main  # type: ignore[attr-defined]
    return module


def test_success_is_returned(run_module: RunModule) -> None:
    module = make(lambda m: m.exit_json(changed=True, check=m.check_mode, name=m.params["name"]))
    result = run_module(module, {"name": "x"}, check=True)
    assert (result["changed"], result["check"], result["name"]) == (True, True, "x")


def test_failure_is_returned_like_any_result(run_module: RunModule) -> None:
    result = run_module(make(lambda m: m.fail_json(msg="no")), {})
    assert result["failed"]
    assert result["msg"] == "no"


def test_arguments_are_validated_and_secrets_scrubbed(run_module: RunModule) -> None:
    assert "Unsupported parameters" in run_module(make(lambda m: m.exit_json()), {"misspelt": 1})["msg"]
    assert "hunter2" not in str(run_module(make(lambda m: m.exit_json(echo=m.params["key"])), {"key": "hunter2"}))


def test_warnings_do_not_leak_into_the_next_run(run_module: RunModule) -> None:
    def warn(module: AnsibleModule) -> None:
        module.warn("careful")
        module.exit_json()

    assert run_module(make(warn), {})["warnings"] == ["careful"]
    assert "warnings" not in run_module(make(lambda m: m.exit_json()), {})


def test_a_fake_command_answers_and_remembers(run_module: RunModule, fake_command: Callable[..., Any]) -> None:
    def call(module: AnsibleModule) -> None:
        code, out, err = module.run_command(["tool", "two words", "$x"])
        module.exit_json(answer=[code, out, err])

    tool = fake_command("tool", stdout="it's\n", stderr="%s", code=3)
    assert tool.calls == []
    assert run_module(make(call), {})["answer"] == [3, "it's\n", "%s"]
    subprocess.run(["tool"], check=False)
    assert tool.calls == [["two words", "$x"], []]
    scripted = fake_command("tool", script='echo "got $2"')
    assert run_module(make(call), {})["answer"] == [0, "got $x\n", ""]
    assert len(scripted.calls) == 3


def test_both_import_names_give_one_module() -> None:
    long = importlib.import_module("ansible_collections.dealscale.n8n_platform.plugins.filter.systemd")
    short = importlib.import_module("plugins.filter.systemd")
    assert long is short
    assert short.__spec__ is not None
    assert short.__spec__.name == "plugins.filter.systemd"

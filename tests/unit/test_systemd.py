# SPDX-License-Identifier: GPL-3.0-or-later
"""The unit sandbox and environment files."""

from __future__ import annotations

import subprocess

from hypothesis import given
from hypothesis import strategies as st

from plugins.filter.systemd import SANDBOX, FilterModule, environment_file, unit_sandbox


def test_the_bare_sandbox() -> None:
    lines = unit_sandbox().splitlines()
    assert "NoNewPrivileges=yes" in lines
    assert "CapabilityBoundingSet=" in lines
    assert lines.count("SystemCallFilter=@system-service") == 1
    assert lines.count("SystemCallFilter=~@privileged") == 1
    assert len(lines) == len(SANDBOX) + 1


def test_overrides_replace_add_and_drop() -> None:
    text = unit_sandbox(
        {"ProtectHome": "read-only", "MemoryDenyWriteExecute": None, "ReadWritePaths": ["/a", "/b"], "Nice": 5}
    )
    lines = text.splitlines()
    assert "ProtectHome=read-only" in lines
    assert "ProtectHome=yes" not in lines
    assert "MemoryDenyWriteExecute" not in text
    assert [line for line in lines if line.startswith("ReadWritePaths")] == ["ReadWritePaths=/a", "ReadWritePaths=/b"]
    assert "Nice=5" in lines
    assert "ProtectHome" in SANDBOX


def test_booleans_are_systemds() -> None:
    lines = unit_sandbox({"PrivateNetwork": True, "PrivateTmp": False, "X": [True, "y"]}).splitlines()
    assert {"PrivateNetwork=yes", "PrivateTmp=no", "X=yes", "X=y"} <= set(lines)


def test_environment_files() -> None:
    variables = {"Z": 1, "A": 'b "c" $d \\e', "YES": True, "NO": False, "EMPTY": "", "NONE": None}
    assert environment_file(variables).splitlines() == [
        'A="b \\"c\\" $d \\\\e"',
        'NO="false"',
        'YES="true"',
        'Z="1"',
    ]


# systemd reads these files like a shell without expansion; bash does too if $ and ` do not occur.
printable = st.text(st.characters(codec="ascii", exclude_characters="\n\r\0$`!", min_codepoint=32), min_size=1)


@given(printable)
def test_any_value_survives(value: str) -> None:
    line = environment_file({"V": value})
    read = subprocess.run(["bash", "-c", f'{line}; printf %s "$V"'], capture_output=True, check=True, text=True).stdout
    assert read == value


def test_the_filters_have_their_names() -> None:
    assert FilterModule().filters() == {"unit_sandbox": unit_sandbox, "environment_file": environment_file}

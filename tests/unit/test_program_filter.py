# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Python package needs on a host."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.dealscale.n8n_platform.plugins.filter.program import program_entries


def test_a_package_with_a_sub_package(tmp_path: Path) -> None:
    package = tmp_path / "shop"
    (package / "till/__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "till/__init__.py").write_text('"""é"""\n', encoding="utf-8")
    (package / "till/tables.sql").write_text("SELECT 1;\n")
    (package / "till/notes.txt").write_text("no")
    (package / "till/__pycache__/__init__.cpython-313.pyc").write_bytes(b"\0")
    assert program_entries(f"{tmp_path}/x/../shop", "/opt/code") == [
        {"path": "/opt/code", "state": "directory"},
        {"path": "/opt/code/shop", "state": "directory", "purge": "*.py"},
        {"path": "/opt/code/shop/till", "state": "directory", "purge": "*.py"},
        {"path": "/opt/code/shop/__init__.py", "content": ""},
        {"path": "/opt/code/shop/till/__init__.py", "content": '"""é"""\n'},
        {"path": "/opt/code/shop/till/tables.sql", "content": "SELECT 1;\n"},
    ]


def test_no_package_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AnsibleFilterError, match="holds no Python package"):
        program_entries(str(tmp_path), "/opt/code")

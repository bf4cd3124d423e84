# SPDX-License-Identifier: GPL-3.0-or-later
"""The generator of docs/reference/."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import docs

DEFAULTS = """\
---
# --- size -----
# Megabytes.
web_memory_mb: 512
web_name: "{{ platform_domain }}"

# --- what it serves ---
# A list.
web_sites:
  - name: a
    port: 80
web_empty:
"""
SPECS = """\
argument_specs:
  main:
    short_description: Serve C(pages).
    description: [One., "Two, see O(web_name)."]
    options:
      web_memory_mb: {type: int, description: MiB it may use.}
      web_name: {type: str, description: Its name.}
      web_token: {type: str, required: true, description: Given by you.}
      web_empty: {type: str, choices: [a, b], description: Nothing.}
      web_sites:
        type: list
        elements: dict
        description: Sites.
        options:
          name: {type: str, required: true, description: Name of it.}
          port: {type: int, default: 80, description: Port of it.}
"""
MODULE = '''\
"""A module."""
DOCUMENTATION = r"""
short_description: Do it
options:
  path: {type: path, required: true, description: "Where, V(/etc) for one."}
"""
EXAMPLES = """
- name: Do it
  x.y.z: {path: /etc}
"""
'''
FILTER = '''\
def half(value):
    """Return half of ``value``."""

class FilterModule:
    def filters(self):
        return {"half_of": half}
'''


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "REFERENCE", tmp_path / "docs" / "reference")
    files = {
        "roles/web/defaults/main.yml": DEFAULTS,
        "roles/web/meta/argument_specs.yml": SPECS,
        "roles/web/README.md": "# web",
        "plugins/modules/doit.py": MODULE,
        "plugins/filter/halves.py": FILTER,
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return tmp_path


def test_a_role_page() -> None:
    page = docs.role_page("web")
    assert "Serve `pages`.\n\nOne. Two, see `web_name`.\n" in page
    assert "## Required\n\n- **`web_token`** (str; required): Given by you.\n" in page
    assert "## Size\n\n- **`web_memory_mb`** (int; default `512`): MiB it may use.\n" in page
    assert "- **`web_name`** (str; default `{{ platform_domain }}`): Its name.\n" in page
    assert "## What it serves\n\n- **`web_sites`** (list of dict; default below): Sites.\n" in page
    assert "  - `name` (str, required): Name of it.\n  - `port` (int, default `80`): Port of it.\n" in page
    assert "  ```yaml\n  web_sites:\n    - name: a\n      port: 80\n  ```\n" in page
    assert "- **`web_empty`** (str: `a`, `b`; default none): Nothing.\n" in page
    assert "../../roles/web/README.md" in page


def test_modules_and_filters() -> None:
    page = docs.plugins_page()
    assert "### doit\n\nDo it\n\n- `path` (path, required): Where, `/etc` for one.\n" in page
    assert "```yaml\n- name: Do it\n" in page
    assert "### half_of\n\nReturn half of `value`.\n" in page


def test_pages_are_written_compared_and_removed(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main(["--check"]) == 1
    assert docs.main([]) == 0
    gone = repository / "docs" / "reference" / "gone.md"
    gone.touch()
    assert docs.main(["--check"]) == 1
    assert "gone.md is out of date" in capsys.readouterr().out
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    assert not gone.exists()
    assert "- [web](web.md): Serve `pages`.\n" in (repository / "docs" / "reference" / "README.md").read_text()

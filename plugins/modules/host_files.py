#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring many small files, directories and links to the wanted state in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_files
short_description: Bring many small files, directories and links to the wanted state in one call
description:
  - Does for a list what M(ansible.builtin.copy) and M(ansible.builtin.file) do for one path each. Contents come from
    the caller, usually through P(ansible.builtin.template#lookup).
  - Entries are worked off in order, so a directory comes before what lies in it. All contents are checked by their
    O(entries[].validate) before the first file is written.
  - Not for secrets, the contents are part of the call and of the difference that C(--diff) shows.
options:
  entries:
    description: What the host must have.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      state:
        description: >-
          V(file) has O(entries[].content); V(link) is a symbolic link to O(entries[].target); V(absent) removes a file
          or link.
        type: str
        choices: [file, directory, link, absent]
        default: file
      content: {description: Text of the file., type: str}
      target: {description: Where the link points to; it must exist., type: path}
      owner: {description: User., type: str, default: root}
      group: {description: Group., type: str, default: root}
      mode: {description: 'Mode; 0644 for files and 0755 for directories when not given.', type: str}
      purge: {description: Glob of files in this directory to remove unless they are entries themselves., type: str}
      validate: {description: Command that accepts the new file; C(%s) stands for its temporary path., type: str}
author:
  - The dealscale.n8n_platform authors (@dealscale)
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Write the settings
  dealscale.n8n_platform.host_files:
    entries:
      - {path: /etc/systemd/journald.conf.d, state: directory}
      - path: /etc/systemd/journald.conf.d/90-n8n-platform.conf
        content: "{{ lookup('ansible.builtin.template', 'journald.conf.j2') }}"
"""

RETURN = r"""
changed_paths:
  description: Paths that were written or removed; use it in the C(when) of a handler.
  type: list
  elements: str
  returned: always
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule


class Host:
    """The entries as they are on this host, and the changes made to them."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.changed: list[str] = []
        self.differences: list[dict[str, str]] = []

    def note(self, path: Path, before: str, after: str) -> None:
        """Remember that a path changed."""
        self.changed.append(str(path))
        header = str(path)
        self.differences.append({"before_header": header, "after_header": header, "before": before, "after": after})

    def validated(self, entry: dict[str, Any]) -> None:
        """End the module unless the entry's own program accepts the content."""
        with tempfile.TemporaryDirectory(dir=self.module.tmpdir) as directory:
            candidate = Path(directory) / Path(entry["path"]).name
            candidate.write_text(entry["content"], encoding="utf-8")
            command = [str(candidate) if word == "%s" else word for word in entry["validate"].split()]
            code, out, err = self.module.run_command(command)
        if code:
            self.module.fail_json(
                # Some say what is wrong on one stream and that something is wrong on the other.
                msg=f"{entry['path']} was refused by `{entry['validate']}`, nothing was changed: {(err + out).strip()}"
            )

    def attributes(self, path: Path, entry: dict[str, Any], default_mode: str) -> None:
        """Set owner, group and mode."""
        if not path.exists():
            return
        set_one = (
            (self.module.set_owner_if_different, entry["owner"]),
            (self.module.set_group_if_different, entry["group"]),
            (self.module.set_mode_if_different, entry["mode"] or default_mode),
        )
        difference: dict[str, Any] = {"before": {}, "after": {}}
        # A list, not a generator: every one of them must run.
        if any([setter(str(path), value, False, difference) for setter, value in set_one]):  # noqa: C419
            self.note(path, f"{difference['before']}\n", f"{difference['after']}\n")

    def directory(self, path: Path, entry: dict[str, Any], kept: set[str]) -> None:
        """Make a directory and remove what must not be in it."""
        if path.exists() and not path.is_dir():
            self.module.fail_json(msg=f"{path} exists and is not a directory. Move it away and run again.")
        if not path.exists():
            self.note(path, "", "directory\n")
            if not self.module.check_mode:
                path.mkdir(parents=True)
        self.attributes(path, entry, "0755")
        for surplus in sorted(path.glob(entry["purge"])) if entry["purge"] and path.exists() else []:
            if str(surplus) not in kept and not surplus.is_dir():
                self.absent(surplus)

    def file(self, path: Path, entry: dict[str, Any]) -> None:
        """Write a file in one rename."""
        before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
        if before != entry["content"]:
            self.note(path, before or "", entry["content"])
            if not self.module.check_mode:
                path.parent.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(dir=self.module.tmpdir)
                with os.fdopen(handle, "w", encoding="utf-8") as stream:
                    stream.write(entry["content"])
                self.module.atomic_move(name, str(path))
        self.attributes(path, entry, "0644")

    def link(self, path: Path, entry: dict[str, Any]) -> None:
        """Point a symbolic link to its target in one rename."""
        target = Path(entry["target"])
        before = str(path.readlink()) if path.is_symlink() else ""
        if before == str(target):
            return
        self.note(path, f"{before}\n", f"{target}\n")
        if not self.module.check_mode:
            new = path.with_name(f".{path.name}.new")
            new.unlink(missing_ok=True)
            new.symlink_to(target)
            new.replace(path)

    def absent(self, path: Path) -> None:
        """Remove a file or link."""
        if not path.is_symlink() and not path.exists():
            return
        self.note(path, "present\n", "")
        if not self.module.check_mode:
            path.unlink()

    def problems(self, entries: list[dict[str, Any]]) -> None:
        """End the module, before anything is written, if an entry cannot be had."""
        for entry in entries:
            if entry["state"] == "file" and entry["content"] is None:
                self.module.fail_json(msg=f"{entry['path']}: a file needs content.")
            if entry["state"] == "link" and (not entry["target"] or not Path(entry["target"]).exists()):
                self.module.fail_json(msg=f"{entry['path']}: the link's target {entry['target']} does not exist.")
            # Check mode may run on a host that does not have the program yet.
            if entry["validate"] and not (self.module.check_mode and not self.known(entry["validate"])):
                self.validated(entry)

    def known(self, command: str) -> bool:
        """Tell whether the program of a command is installed."""
        return self.module.get_bin_path(command.split(maxsplit=1)[0]) is not None

    def bring(self, entries: list[dict[str, Any]]) -> None:
        """Work off the entries in order."""
        kept = {entry["path"] for entry in entries}
        for entry in entries:
            path = Path(entry["path"])
            if entry["state"] == "directory":
                self.directory(path, entry, kept)
            elif entry["state"] == "link":
                self.link(path, entry)
            elif entry["state"] == "absent":
                self.absent(path)
            else:
                self.file(path, entry)


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "entries": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "state": {"type": "str", "choices": ["file", "directory", "link", "absent"], "default": "file"},
                    "content": {"type": "str"},
                    "target": {"type": "path"},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "str"},
                    "purge": {"type": "str"},
                    "validate": {"type": "str"},
                },
            }
        },
        supports_check_mode=True,
    )
    host = Host(module)
    host.problems(module.params["entries"])
    host.bring(module.params["entries"])
    changed_paths = list(dict.fromkeys(host.changed))
    module.exit_json(changed=bool(changed_paths), changed_paths=changed_paths, diff=host.differences)


if __name__ == "__main__":
    main()

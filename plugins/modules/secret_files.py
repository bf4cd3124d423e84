#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the secrets of a host: one file each, made once, never lost in silence."""

from __future__ import annotations

DOCUMENTATION = r"""
module: secret_files
short_description: Keep the secrets of a host, one file each, made once and never replaced in silence
description:
  - Each secret gets its value from O(values), else keeps the value on the host, else (with O(generate)) is generated.
  - Everything that must not happen is refused before anything is written, and told in RV(refused) rather than by a
    failure, because a task with C(no_log) hides the message of a failure. The caller fails with that text.
  - Files are replaced by rename after C(fsync), so an interrupted run leaves the old value or the new one.
options:
  directory:
    description: Directory of the secrets, made with mode 0700; the files have mode 0400 and no trailing newline.
    type: path
    required: true
  registry:
    description: >-
      File that remembers which secrets were ever made here, with a keyed hash of each and without values. It is how a
      lost secret is told from a new one.
    type: path
    required: true
  secrets:
    description: >-
      The secrets of this host, name to properties. C(permanent) says that data is unreadable without it; C(evidence)
      lists paths (globs) that exist, and are not empty, when there is such data. C(kind) is V(random), with C(length),
      the number of random bytes (32), C(alphabet) (V(urlsafe), V(hex) or V(base64)) and C(prefix); V(rsa_key); or
      V(token), a JSON Web Token for the role C(subject), signed by the secret that C(key) names and made anew when that
      has another value. C(groups) is for the caller.
    type: dict
    required: true
  generate:
    description: Whether secrets without a value are generated here. One host of a platform does.
    type: bool
    default: false
  values:
    description: Values that are given, by name.
    type: dict
    default: {}
  rotate:
    description: Names to generate anew. Permanent secrets are refused.
    type: list
    elements: str
    default: []
  in_use_elsewhere:
    description: Names that other hosts hold or have data of; they are not generated.
    type: list
    elements: str
    default: []
  reveal:
    description: Names whose values are returned. Use it only with C(no_log) and only to hand them to other hosts.
    type: list
    elements: str
    default: []
author:
  - The dealscale.n8n_platform authors (@dealscale)
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Keep the secrets of this host
  dealscale.n8n_platform.secret_files:
    directory: /etc/n8n-platform/secrets
    registry: /var/lib/n8n-platform/secrets.json
    secrets:
      n8n_encryption_key: {permanent: true, evidence: [/var/lib/n8n/*]}
      redis_password: {}
    generate: true
  no_log: true
  register: result
"""

RETURN = r"""
refused: {description: Why nothing was written; empty if all is well., type: list, elements: str, returned: always}
created: {description: Secrets that got their first value on this host., type: list, elements: str, returned: always}
rotated: {description: Secrets whose value was replaced., type: list, elements: str, returned: always}
in_use: {description: Secrets this host holds or has data of., type: list, elements: str, returned: always}
revealed: {description: "Base64 of the values asked for by O(reveal), by name.", type: dict, returned: always}
"""

import base64
import contextlib
import datetime
import hashlib
import hmac
import json
import os
import secrets as randomness
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.dealscale.n8n_platform.plugins.module_utils.secret_table import (
    Secret,
    generate,
    outdated,
    parse_table,
    unfit,
)

MODE = 0o400


@dataclass(frozen=True)
class Request:
    """What the caller asks for, see the options of the same names."""

    values: dict[str, Any] = field(default_factory=dict)
    generate: bool = False
    rotate: list[str] = field(default_factory=list)
    in_use_elsewhere: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """What a run would do; nothing is written while ``refused`` has an entry."""

    write: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)
    rotated: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    in_use: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class Registry:
    """The record of the secrets a host was ever given: creation time and keyed hash, no values."""

    def __init__(self, path: Path) -> None:
        """Read the record, or begin one.

        Raises:
            ValueError: the file is there and cannot be understood.
        """
        self.path = path
        self.key, self.entries, self.text = randomness.token_hex(32), {}, ""
        if path.exists():
            self.text = path.read_text(encoding="utf-8")
            try:
                content = json.loads(self.text)
                self.key = str(content["key"])
                self.entries = {str(name): dict(entry) for name, entry in content["secrets"].items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"{path}, the record of secrets, cannot be read ({error}): restore it from the backup."
                ) from None

    def fingerprint(self, name: str, value: str) -> str:
        """Return the keyed hash by which a value is recognised."""
        return hmac.new(bytes.fromhex(self.key), f"{name}={value}".encode(), hashlib.sha256).hexdigest()

    def knows(self, name: str, value: str) -> bool:
        """Tell whether this is the value on record."""
        recorded = str(self.entries.get(name, {}).get("fingerprint", ""))
        return hmac.compare_digest(recorded, self.fingerprint(name, value))

    def record(self, values: dict[str, str]) -> str:
        """Take the values of this host into the record and return it as text."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        for name, value in values.items():
            if not self.knows(name, value):
                self.entries[name] = {"created": now, "fingerprint": self.fingerprint(name, value)}
        content = {"about": "Which secrets exist. No values.", "key": self.key, "secrets": self.entries}
        return json.dumps(content, indent=2, sort_keys=True) + "\n"


def read_values(directory: Path, names: list[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the values on the host, the names whose file needs repair, and what must be refused."""
    values, repair, refused = {}, [], []
    for name in names:
        path = directory / name
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(status.st_mode):
            refused.append(f"{path} is not a plain file: put the secret itself there, or remove it.")
            continue
        try:
            raw = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            refused.append(f"{path} is not text: restore it from the backup.")
            continue
        value = raw.rstrip("\r\n")
        if not value:
            refused.append(f"{path} is empty: restore it from the backup, or remove the file if it was never used.")
            continue
        values[name] = value
        if value != raw or stat.S_IMODE(status.st_mode) != MODE or status.st_uid != os.geteuid():
            repair.append(name)
    return values, repair, refused


def lost(secret: Secret, path: Path, registry: Registry, elsewhere: bool) -> str:
    """Say why a secret without a value must not simply be generated; empty if it may."""
    data = secret.data() if secret.permanent else []
    entry = registry.entries.get(secret.name)
    if entry is None and not data and not elsewhere:
        return ""
    reasons = [f"made here on {entry.get('created', 'an earlier day')}"] if entry is not None else []
    reasons += [f"data in {', '.join(data)}"] if data else []
    reasons += ["in use on another host of the platform"] if elsewhere else []
    text = f"{path} is missing although it seems to be in use ({'; '.join(reasons)}): restore the file from the backup"
    text += " or copy it from that other host" if elsewhere else ""
    text += f" or give the value in secrets_values.{secret.name}"
    if not secret.permanent:
        return f'{text}, or let a new one be made with -e \'{{"secrets_rotate": ["{secret.name}"]}}\'.'
    steps = [f"remove {', '.join(data)}"] if data else []
    steps += ["remove the secret from that other host"] if elsewhere else []
    steps += [f"delete its entry in {registry.path}"] if entry is not None else []
    return f"{text}; only if nothing encrypted with it is worth keeping, {' and '.join(steps)}, then run again."


def make_plan(directory: Path, table: dict[str, Secret], registry: Registry, request: Request) -> Plan:
    """Decide on each secret of this host without touching anything."""
    plan = Plan()
    for option, names in (("secrets_values", request.values), ("secrets_rotate", request.rotate)):
        strange = [name for name in names if name not in table]
        plan.refused += [f"{option}: there is no secret {name!r} in platform_secrets." for name in strange]
    present, repair, refused = read_values(directory, list(table))
    plan.refused += refused
    for name, secret in table.items():
        path = directory / name
        if name in present or (secret.permanent and secret.data()):
            plan.in_use.append(name)
        if name not in present and os.path.lexists(path):
            continue
        try:
            key = {**plan.kept, **plan.write}.get(secret.key)
            value, replaced = decide(secret, path, registry, (present.get(name), key), request)
        except ValueError as refusal:
            plan.refused.append(str(refusal))
            continue
        if value is None:
            continue
        if replaced:
            plan.rotated.append(name)
        elif name not in present:
            plan.created.append(name)
        (plan.kept if value == present.get(name) else plan.write)[name] = value
    plan.repaired = [name for name in repair if name in plan.kept]
    return plan


def decide(
    secret: Secret, path: Path, registry: Registry, present: tuple[str | None, str | None], request: Request
) -> tuple[str | None, bool]:
    """Return the value a secret must have (None: not this host's to make) and whether that replaces an earlier one.

    ``present`` is its value on this host and that of the key which signs it.

    Raises:
        ValueError: nothing may be done, and why.
    """
    name, entry = secret.name, registry.entries.get(secret.name)
    current, key = present
    if secret.permanent and current is not None and entry is not None and not registry.knows(name, current):
        raise ValueError(
            f"{path} does not hold the value that its data was encrypted with: restore the right file from the backup;"
            f" only if everything encrypted with the old one is gone, delete its entry in {registry.path}."
        )
    if name in request.rotate:
        if secret.permanent:
            raise ValueError(f"secrets_rotate: {name} must stay, because data is unreadable without it.")
        if name in request.values:
            raise ValueError(f"secrets_rotate: {name} has its value from secrets_values; change it there.")
    if name in request.values:
        value = request.values[name]
        if problem := unfit(value, secret):
            raise ValueError(f"secrets_values.{name} {problem}.")
        replaced = (current is not None and current != value) or (entry is not None and not registry.knows(name, value))
        if secret.permanent and replaced:
            raise ValueError(
                f"secrets_values.{name} is not the value in use, without which data is unreadable:"
                f" give the value of {path} or leave it out."
            )
        return str(value), replaced
    if request.generate and (name in request.rotate or (current is not None and outdated(secret, current, key))):
        return generate(secret, key), current is not None or entry is not None
    if current is not None:
        # A file edited by hand, or a run that was interrupted between the file and the record, is a rotation too.
        return current, entry is not None and not registry.knows(name, current)
    if not request.generate:
        return None, False
    if problem := lost(secret, path, registry, name in request.in_use_elsewhere):
        raise ValueError(problem)
    return generate(secret, key), False


def write_files(contents: dict[Path, tuple[str, int]]) -> None:
    """Replace files so that each has the old content or the new one, whatever happens; (text, mode) by path."""
    staged: list[tuple[str, Path]] = []
    try:
        for path, (text, mode) in contents.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            staged.append((temporary, path))
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fchmod(stream.fileno(), mode)
                os.fsync(stream.fileno())
        for temporary, path in staged:
            Path(temporary).replace(path)
    except OSError:
        for temporary, _path in staged:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
        raise
    for folder in {path.parent for path in contents}:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def ensure_directory(path: Path, mode: int, apply: bool) -> bool:
    """Make sure of a directory with this owner and mode; tell whether that is (or would be) a change."""
    if not path.is_dir():
        if apply:
            path.mkdir(parents=True, mode=0o755)
            path.chmod(mode)
        return True
    status = path.stat()
    if stat.S_IMODE(status.st_mode) == mode and status.st_uid == os.geteuid():
        return False
    if apply:
        os.chown(path, os.geteuid(), os.getegid())
        path.chmod(mode)
    return True


def apply_plan(plan: Plan, directory: Path, registry: Registry, check: bool) -> bool:
    """Write what the plan says (nothing in check mode) and tell whether anything changes."""
    values = {**plan.kept, **plan.write}
    record = registry.record(values) if values else registry.text
    changed = ensure_directory(directory, 0o700, not check)
    # Secrets first: a record without its file would look like a loss, a file without its record is simply taken in.
    files = {directory / name: (values[name], MODE) for name in [*plan.write, *plan.repaired]}
    if files and not check:
        write_files(files)
    if record != registry.text and not check:
        registry.path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        write_files({registry.path: (record, 0o600)})
    return changed or bool(files) or record != registry.text


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "registry": {"type": "path", "required": True},
            "secrets": {"type": "dict", "required": True, "no_log": False},
            "generate": {"type": "bool", "default": False},
            "values": {"type": "dict", "default": {}, "no_log": True},
            "rotate": {"type": "list", "elements": "str", "default": []},
            "in_use_elsewhere": {"type": "list", "elements": "str", "default": []},
            "reveal": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    given = module.params
    result: dict[str, Any] = {"changed": False, "created": [], "rotated": [], "in_use": [], "revealed": {}}
    try:
        registry = Registry(Path(given["registry"]))
        request = Request(given["values"], given["generate"], given["rotate"], given["in_use_elsewhere"])
        plan = make_plan(Path(given["directory"]), parse_table(given["secrets"]), registry, request)
        result.update(refused=plan.refused, in_use=plan.in_use)
        if not plan.refused:
            result["changed"] = apply_plan(plan, Path(given["directory"]), registry, module.check_mode)
            result.update(created=plan.created, rotated=plan.rotated)
            # Base64, because Ansible blanks the values it was given out of every result.
            result["revealed"] = {
                name: base64.b64encode(value.encode()).decode()
                for name, value in {**plan.kept, **plan.write}.items()
                if name in given["reveal"]
            }
    except (ValueError, OSError) as error:
        result["refused"] = [str(error)]
    module.exit_json(**result)


if __name__ == "__main__":
    main()

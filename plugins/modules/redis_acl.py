#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the users of Redis to an ACL file and load it, without a password leaving the host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_acl
short_description: Write the users of Redis to an ACL file and load it into running servers
description:
  - Reads each password from a file on the host and writes only its SHA-256 to the ACL file. No password and no hash is
    returned, logged or shown as a difference.
  - Servers that run and have not loaded the file's present contents are told to, by C(ACL LOAD) and without a restart.
    Clients whose user did not change stay connected.
  - When a server refuses the file, the previous one is put back and the module fails.
options:
  path:
    description: The ACL file.
    type: path
    required: true
  users:
    description: The users; everybody else, the default user included, is refused.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name of the user., type: str, required: true}
      secret: {description: File in O(secrets_dir) whose trimmed contents are the password., type: str, required: true}
      rules: {description: "What the user may do, as in C(ACL SETUSER).", type: str, required: true}
  secrets_dir:
    description: Directory of the passwords.
    type: path
    default: /etc/n8n-platform/secrets
  group:
    description: Group that may read the file; root owns it.
    type: str
    default: redis
  sockets:
    description: UNIX sockets of the servers that use the file; those that do not run are passed over.
    type: list
    elements: path
    default: []
  admin:
    description: The user of O(users) that loads the file.
    type: str
    default: admin
author:
  - The dealscale.n8n_platform authors (@dealscale)
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Write the users
  dealscale.n8n_platform.redis_acl:
    path: /etc/n8n-platform/redis/users.acl
    users:
      - {name: admin, secret: redis_admin_password, rules: "~* &* +@all"}
    sockets: [/run/redis-queue/redis.sock]
"""

RETURN = r"""
loaded:
  description: Sockets of the servers that loaded the file in this run.
  type: list
  elements: str
  returned: always
restart:
  description: >-
    Sockets of running servers that must be restarted to see the file, because the password of the admin user itself has
    changed.
  type: list
  elements: str
  returned: always
"""

import grp
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.dealscale.n8n_platform.plugins.module_utils.resp import Redis, RedisError

MODE = 0o640
ROOT = 0
# Nobody can sign in as default. It keeps all rights: Redis reads its append-only file back as this user and drops
# every transaction the user may not run: all that scripts, and so job queues, have written.
HEADER = "user default off resetpass ~* &* +@all"


def render(users: list[dict[str, Any]], passwords: dict[str, str]) -> tuple[str, str]:
    """Return the ACL file's text and the name of the user that marks this revision of it.

    The marker is a user that is off and may do nothing. A running server that lists it has loaded exactly this text;
    Redis offers no other way to ask, since it rewrites the rules it reports.
    """
    lines = [HEADER]
    for user in users:
        digest = hashlib.sha256(passwords[user["name"]].encode()).hexdigest()
        lines.append(f"user {user['name']} on #{digest} {user['rules']}")
    marker = "revision-" + hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    return "\n".join([*lines, f"user {marker} off resetkeys resetchannels -@all", ""]), marker


def read_passwords(users: list[dict[str, Any]], directory: Path) -> dict[str, str]:
    """Return the passwords by user. Raises ValueError for an empty file and OSError for one that cannot be read."""
    passwords = {}
    for user in users:
        path = directory / user["secret"]
        value = path.read_text(encoding="utf-8").strip()
        if not value:
            raise ValueError(f"{path} is empty")
        passwords[user["name"]] = value
    return passwords


def write(path: Path, text: str, group: str) -> None:
    """Replace the file in one step, readable by root and the group. Raises OSError and KeyError (no such group)."""
    gid = grp.getgrnam(group).gr_gid
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchown(file.fileno(), ROOT, gid)
            os.fchmod(file.fileno(), MODE)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(socket: str, admin: str, password: str, marker: str, act: bool) -> str:
    """Make one server load its ACL file unless it has.

    Returns ``current``, ``loaded``, ``restart`` (it does not know the administrator's password) or ``absent`` (it does
    not run, or reads its files at this moment). Raises RedisError when the server refuses the file.
    """
    try:
        with Redis(socket) as server:
            try:
                server.call("AUTH", admin, password)
            except RedisError as error:
                if error.kind == "WRONGPASS":
                    return "restart"
                if error.kind == "LOADING":
                    return "absent"
                raise
            users = server.call("ACL", "USERS")
            if isinstance(users, list) and marker in users:
                return "current"
            if act:
                server.call("ACL", "LOAD")
            return "loaded"
    except OSError:
        return "absent"


def run(module: AnsibleModule) -> None:
    """Do what the options say and end the module."""
    path, users, admin = Path(module.params["path"]), module.params["users"], module.params["admin"]
    if admin not in [user["name"] for user in users]:
        module.fail_json(msg=f"The user {admin} that loads the file is not among the users.")
    try:
        passwords = read_passwords(users, Path(module.params["secrets_dir"]))
    except FileNotFoundError as error:
        if module.check_mode:
            module.exit_json(changed=True, loaded=[], restart=[])
        module.fail_json(msg=f"The secret {error.filename} does not exist: run the secrets role first.")
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"Cannot read a password: {error}")
    text, marker = render(users, passwords)
    before = path.read_text(encoding="utf-8") if path.exists() else None
    changed = before != text
    if not changed:
        status = path.stat()
        changed = (status.st_mode & 0o7777, status.st_uid) != (MODE, ROOT)
    if changed and not module.check_mode:
        write(path, text, module.params["group"])
    outcome = {}
    for socket in module.params["sockets"]:
        try:
            outcome[socket] = load(socket, admin, passwords[admin], marker, act=not module.check_mode)
        except RedisError as error:
            if before is not None and changed:
                write(path, before, module.params["group"])
            # Redis quotes the faulty line in the error, hash included: show only where and what.
            reason = str(error).split(". WARNING", 1)[0] if "#" not in str(error) else error.kind
            module.fail_json(msg=f"Redis at {socket} refused the users; the previous file is back: {reason}")
    loaded = [socket for socket, state in outcome.items() if state == "loaded"]
    restart = [socket for socket, state in outcome.items() if state == "restart"]
    module.exit_json(changed=changed or bool(loaded), loaded=loaded, restart=restart)


def main() -> None:
    """Entry point of the module."""
    user = {
        "name": {"type": "str", "required": True},
        "secret": {"type": "str", "required": True, "no_log": False},
        "rules": {"type": "str", "required": True},
    }
    run(
        AnsibleModule(
            argument_spec={
                "path": {"type": "path", "required": True},
                "users": {"type": "list", "elements": "dict", "options": user, "required": True},
                "secrets_dir": {"type": "path", "default": "/etc/n8n-platform/secrets", "no_log": False},
                "group": {"type": "str", "default": "redis"},
                "sockets": {"type": "list", "elements": "path", "default": []},
                "admin": {"type": "str", "default": "admin"},
            },
            supports_check_mode=True,
        )
    )


if __name__ == "__main__":
    main()

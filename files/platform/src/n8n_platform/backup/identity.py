# SPDX-License-Identifier: GPL-3.0-or-later
"""Doing things as another user of the host: the database knows its clients by their user id."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager

from n8n_platform.backup.errors import UnusableError


def switch_to(user: str) -> pwd.struct_passwd | None:
    """Return the account to switch to; None when we are not root, or are asked for nobody else."""
    if not user or os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(user)
    except KeyError as error:
        raise UnusableError(f"this host has no user {user}. Is its role installed here?") from error


@contextmanager
def acting_as(user: str) -> Iterator[None]:
    """Do what follows with the rights of ``user``: connect to a socket, make and remove files.

    Only the effective ids change, and they change for the whole process: nothing else may run meanwhile.
    """
    account = switch_to(user)
    if account is None:
        yield
        return
    group = os.getegid()
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(account.pw_gid)
    os.seteuid(account.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)

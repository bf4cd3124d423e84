# SPDX-License-Identifier: GPL-3.0-or-later
"""One run at a time. The kernel gives the lock back when its holder dies, however it dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from n8n_platform.backup import manifest
from n8n_platform.backup.errors import LockedError, UnusableError


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold the lock; raise :class:`LockedError`, which names the holder, when another process has it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UnusableError(f"cannot open the lock {path}: {error.strerror}. Run this as root.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 500, 0).decode(errors="replace").strip() or "a process that has just begun"
            raise LockedError(f"not begun: {holder} is under way. Wait for it, or see what it does with ps.") from error
        os.ftruncate(descriptor, 0)
        now = datetime.now(UTC)
        os.pwrite(descriptor, f"`{what}` (process {os.getpid()}, since {manifest.stamp(now)})\n".encode(), 0)
        yield
        # Nothing is left of us when we end well; who dies leaves a note, but no lock.
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Tell whether a run is under way."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False

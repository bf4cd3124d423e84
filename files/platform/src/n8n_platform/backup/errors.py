# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong, each with the exit code that monitoring sees."""

from __future__ import annotations

OK = 0
FAILED = 1
USAGE = 2
LOCKED = 3
NO_SPACE = 4
PARTLY = 5
UNUSABLE = 69


class BackupError(Exception):
    """Something failed; the text says what, where, and what to do."""

    code = FAILED


class UsageError(BackupError):
    """The command line asks for something that does not exist."""

    code = USAGE


class LockedError(BackupError):
    """Another run is under way."""

    code = LOCKED


class SpaceError(BackupError):
    """The disk is too full to begin."""

    code = NO_SPACE


class UnusableError(BackupError):
    """The settings, a secret or a program that everything depends on is missing."""

    code = UNUSABLE


class PlaceError(BackupError):
    """A place for sets (the local directory, the object store) cannot be read or written."""

# SPDX-License-Identifier: GPL-3.0-or-later
"""Errors that end a command: one sentence for a person, one exit code for a script."""

from __future__ import annotations


class StoreError(Exception):
    """A failure the user can act on; its text says what to do."""

    exit_code = 1


class UsageError(StoreError):
    """The command line or the catalogue asks for something that does not exist."""

    exit_code = 2


class MissingError(StoreError):
    """Files are not in the store and ``--offline`` forbids to fetch them."""

    exit_code = 3


class HashError(StoreError):
    """A file is not the one that was pinned."""

    exit_code = 4


class PinError(StoreError):
    """No source has a pinned hash and pins are required."""

    exit_code = 5


class FetchError(StoreError):
    """A source could not be reached or answered with an error; another source may still work."""

    exit_code = 6


class BuildError(StoreError):
    """A program needed for the work is missing or a build failed."""

    exit_code = 7

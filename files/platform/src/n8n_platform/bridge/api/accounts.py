# SPDX-License-Identifier: GPL-3.0-or-later
"""Service accounts: who may get an access token, for which tenant and with which scopes."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import yaml

from n8n_platform.bridge.settings import Section, Settings, SettingsError

SCOPES = ("events:read", "events:replay", "events:cancel", "claim")
PUBLISH = "publish:"
EVERYTHING = "publish:*"

Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]*\Z", max_length=63)]
Scope = Annotated[str, msgspec.Meta(pattern=rf"^(publish:(\*|[a-z0-9_-]+)|{'|'.join(SCOPES)})\Z")]


class Entry(Section, frozen=True):
    """One account as the file has it. ``secret`` is the name of the file with its secret."""

    name: Name
    tenant: Name
    scopes: list[Scope]
    secret: str = ""


class File(Section, frozen=True):
    """The whole file."""

    accounts: list[Entry]


@dataclass(frozen=True)
class Account:
    """An account with its secret."""

    name: str
    tenant: str
    scopes: frozenset[str]
    secret: str


class Accounts:
    """All accounts by name."""

    def __init__(self, accounts: Mapping[str, Account]) -> None:
        self.accounts = accounts

    def get(self, name: str) -> Account | None:
        """Return an account."""
        return self.accounts.get(name)

    def check(self, name: str, secret: str) -> Account | None:
        """Return the account if the secret is its own; takes the same time whether or not there is such an account."""
        account = self.accounts.get(name)
        expected = account.secret if account else "x" * 64
        right = hmac.compare_digest(expected.encode(), secret.encode())
        return account if right and account else None


def read(path: Path) -> list[Entry]:
    """Return the accounts of a file, without their secrets; raise SettingsError that says what is wrong."""
    try:
        found = msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), File)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}. The role bridge writes it.") from error
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not usable: {error}. Correct bridge_accounts.") from error
    names = [entry.name for entry in found.accounts]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SettingsError(f"{path} has two accounts of the name {', '.join(twice)}. Correct bridge_accounts.")
    return found.accounts


def load(settings: Settings) -> Accounts:
    """Read the accounts and their secrets; raise SettingsError that names what is wrong."""
    return Accounts(
        {
            entry.name: Account(
                entry.name,
                entry.tenant,
                frozenset(entry.scopes),
                settings.secret(entry.secret or f"bridge_client_{entry.name}"),
            )
            for entry in read(settings.accounts_file)
        }
    )

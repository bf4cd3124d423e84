# SPDX-License-Identifier: GPL-3.0-or-later
"""The lines of the table of secrets: what they may say, and how a value of each kind is made."""

from __future__ import annotations

import base64
import glob
import os
import re
import secrets as randomness
from dataclasses import dataclass
from typing import Any

from ansible_collections.dealscale.n8n_platform.plugins.module_utils import tokens

NAME = re.compile(r"[a-z][a-z0-9_]*")
MINIMUM = 12  # characters; shorter given values are refused as guessable
ALPHABETS = ("urlsafe", "hex", "base64")
KINDS = ("random", "rsa_key", "token")
PROPERTIES = {"groups", "permanent", "evidence", "length", "alphabet", "prefix", "kind", "key", "subject"}


@dataclass(frozen=True)
class Secret:
    """One line of the table."""

    name: str
    permanent: bool = False
    evidence: tuple[str, ...] = ()
    length: int = 32
    alphabet: str = "urlsafe"
    prefix: str = ""
    kind: str = "random"
    key: str = ""  # of a token: the name of the secret that signs it
    subject: str = ""

    def data(self) -> list[str]:
        """Return the paths on this host which show that data exists that needs this secret; no empty directories."""
        found = sorted({path for pattern in self.evidence for path in glob.glob(pattern)})
        return [path for path in found if not os.path.isdir(path) or os.listdir(path)]


def parse_table(table: dict[str, Any]) -> dict[str, Secret]:
    """Return the table with its types checked, keys before the tokens they sign.

    Raises:
        ValueError: a name or a property is not what it must be.
    """
    result = {}
    for name, given in table.items():
        properties = given or {}
        if not NAME.fullmatch(name):
            raise ValueError(f"platform_secrets: {name!r} must be lower-case letters, digits and underscores.")
        if unknown := set(properties) - PROPERTIES:
            raise ValueError(
                f"platform_secrets.{name}: unknown {', '.join(sorted(unknown))}; known: {sorted(PROPERTIES)}."
            )
        texts = {text: str(properties.get(text, "")) for text in ("prefix", "key", "subject")}
        secret = Secret(
            name=name,
            permanent=bool(properties.get("permanent", False)),
            evidence=tuple(properties.get("evidence", ())),
            length=int(properties.get("length", 32)),
            alphabet=str(properties.get("alphabet", "urlsafe")),
            kind=str(properties.get("kind", "random")),
            **texts,
        )
        if secret.alphabet not in ALPHABETS or secret.length < 16:  # noqa: PLR2004
            raise ValueError(
                f"platform_secrets.{name}: alphabet is {', '.join(ALPHABETS)}, length at least 16 random bytes."
            )
        if secret.kind not in KINDS:
            raise ValueError(f"platform_secrets.{name}: kind is {', '.join(KINDS)}, not {secret.kind}.")
        if (secret.kind == "token") != bool(secret.key and secret.subject):
            raise ValueError(f"platform_secrets.{name}: a secret of kind token, and no other, has key and subject.")
        result[name] = secret
    return dict(sorted(result.items(), key=lambda item: item[1].kind == "token"))


def generate(secret: Secret, key: str | None = None) -> str:
    """Return a new value; ``key`` is the value of the secret that signs a token.

    URL-safe text starts with a letter or digit (so that no program takes it for an option) and has a capital, a small
    letter and a digit (password rules such as n8n's ask for them).

    Raises:
        ValueError: a token without its key, or openssl cannot do its part.
    """
    if secret.kind == "rsa_key":
        return str(tokens.new_key())
    if secret.kind == "token":
        if key is None:
            raise ValueError(
                f"platform_secrets.{secret.name} is signed by {secret.key}, which no host of this platform has: "
                f"give the token in secrets_values.{secret.name}."
            )
        return str(tokens.new_token(key, secret.subject))
    if secret.alphabet == "hex":
        return secret.prefix + randomness.token_hex(secret.length)
    if secret.alphabet == "base64":
        return secret.prefix + base64.b64encode(randomness.token_bytes(secret.length)).decode()
    while True:
        value = randomness.token_urlsafe(secret.length)
        if value[0].isalnum() and all(re.search(kind, value) for kind in ("[A-Z]", "[a-z]", "[0-9]")):
            return secret.prefix + value


def outdated(secret: Secret, value: str, key: str | None) -> bool:
    """Tell whether a token was signed by another key than the present one; without the key nobody can say."""
    return secret.kind == "token" and key is not None and not tokens.is_signed(value, key, secret.subject)


def unfit(value: Any, secret: Secret | None = None) -> str:
    """Say why a given value cannot be a secret; empty if it can."""
    if not isinstance(value, str):
        return "is not text; quote it"
    if not value.isprintable() or value != value.strip():
        return "has control characters, line ends or outer blanks, which programs read differently"
    if len(value) < MINIMUM:
        return f"is shorter than {MINIMUM} characters"
    if secret is not None and secret.kind == "rsa_key":
        try:
            tokens.public_key(value)
        except ValueError:
            return "is no RSA private key (PKCS #8 without a password, base64 of its DER form on one line)"
    return ""

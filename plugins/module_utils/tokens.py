# SPDX-License-Identifier: GPL-3.0-or-later
"""RSA keys and the JSON Web Tokens they sign, by means of the openssl program; keys never touch the disk here.

A key is PKCS #8 in base64 on one line, so that it fits the file of a secret. Tokens are RS256, whose signatures are the
same each time: a token is checked by signing it again.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import subprocess
import time

BITS = 2048


def openssl(arguments: list[str], stdin: bytes = b"", *, key: str = "") -> bytes:
    """Run openssl and return its output; ``{key}`` in the arguments becomes a path from which it can read the key.

    Raises:
        ValueError: there is no openssl, or it failed; without what it was given.
    """
    descriptor = os.memfd_create("key")
    try:
        os.write(descriptor, base64.b64decode(key, validate=True))
        words = [word.replace("{key}", f"/proc/self/fd/{descriptor}") for word in arguments]
        done = subprocess.run(["openssl", *words], input=stdin, capture_output=True, check=False, pass_fds=[descriptor])
    except binascii.Error:
        raise ValueError("the key is not base64 on one line") from None
    except FileNotFoundError:
        raise ValueError("openssl is missing: install the package ca-certificates") from None
    finally:
        os.close(descriptor)
    if done.returncode:
        raise ValueError(f"openssl {arguments[0]} failed: {done.stderr.decode(errors='replace').strip()[:200]}")
    return done.stdout


def new_key() -> str:
    """Return a new private key."""
    made = openssl(["genpkey", "-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{BITS}", "-outform", "DER"])
    pkcs8 = openssl(["pkcs8", "-topk8", "-nocrypt", "-inform", "DER", "-outform", "DER"], made)
    return base64.b64encode(pkcs8).decode()


def public_key(key: str) -> str:
    """Return the public half of a key, base64 of its DER form. Raises ValueError if it is no private key."""
    return base64.b64encode(
        openssl(["pkey", "-in", "{key}", "-inform", "DER", "-pubout", "-outform", "DER"], key=key)
    ).decode()


def _text(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()


def _bytes(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _signature(key: str, signed: str) -> str:
    return _text(openssl(["dgst", "-sha256", "-sign", "{key}", "-keyform", "DER"], signed.encode(), key=key))


def new_token(key: str, subject: str) -> str:
    """Return a token for ``subject``, without an end; the time in it makes each one differ. Raises ValueError."""
    parts = [{"alg": "RS256", "typ": "JWT"}, {"sub": subject, "iat": int(time.time())}]
    signed = ".".join(_text(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
    return f"{signed}.{_signature(key, signed)}"


def is_signed(token: str, key: str, subject: str) -> bool:
    """Tell whether a token is for ``subject`` and signed by ``key``."""
    try:
        header, claims, signature = token.split(".")
        known = json.loads(_bytes(claims)).get("sub") == subject
    except (ValueError, AttributeError):
        return False
    return bool(known and signature == _signature(key, f"{header}.{claims}"))

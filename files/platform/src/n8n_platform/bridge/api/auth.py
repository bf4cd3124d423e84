# SPDX-License-Identifier: GPL-3.0-or-later
"""Access tokens: issuing our own, and believing them and those of one other issuer."""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from n8n_platform.bridge.api.accounts import EVERYTHING, PUBLISH, Account, Accounts
from n8n_platform.bridge.api.oidc import Issuer, UntrustedError
from n8n_platform.bridge.api.problems import Problem
from n8n_platform.bridge.settings import Tokens
from n8n_platform.bridge.signing import derive

ALGORITHM = "EdDSA"
CACHED = 10_000
LONGEST = 8192


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request. ``expires`` is Unix time."""

    tenant: str
    client: str
    scopes: frozenset[str]
    expires: float

    def require(self, scope: str) -> None:
        """Raise Problem unless the token has a scope."""
        if scope not in self.scopes:
            raise Problem(
                "forbidden",
                f"The token lacks the scope {scope}.",
                headers={"www-authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
            )

    def require_publish(self, route: str) -> None:
        """Raise Problem unless the token may publish by a route."""
        if EVERYTHING not in self.scopes:
            self.require(PUBLISH + route)


def unauthenticated(detail: str, given: bool = True) -> Problem:
    """Return the refusal of a request without a token, or with a bad one."""
    challenge = 'Bearer realm="n8n-bridge"' + (', error="invalid_token"' if given else "")
    return Problem("unauthenticated", detail, headers={"www-authenticate": challenge})


class Key:
    """The key pair of access tokens; it follows from a secret, so that all processes have the same."""

    def __init__(self, secret: str) -> None:
        self.private = Ed25519PrivateKey.from_private_bytes(derive(secret.encode(), "access-token"))
        self.public: Ed25519PublicKey = self.private.public_key()
        raw = self.public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.x = base64.urlsafe_b64encode(raw).decode().rstrip("=")
        self.kid = hashlib.sha256(raw).hexdigest()[:16]

    def jwk(self) -> dict[str, str]:
        """Return the public key as RFC 7517 wants it."""
        return {"kty": "OKP", "crv": "Ed25519", "x": self.x, "kid": self.kid, "use": "sig", "alg": ALGORITHM}


class TokenIssuer:
    """Issues and verifies the bridge's own tokens. Of several secrets the first signs, all verify."""

    def __init__(
        self, options: Tokens, accounts: Accounts, secrets: list[str], clock: Callable[[], float] = time.time
    ) -> None:
        self.options = options
        self.accounts = accounts
        self.clock = clock
        keys = [Key(secret) for secret in secrets]
        self._signer = keys[0]
        self._keys = {key.kid: key for key in keys}

    def issue(self, account: Account, scopes: frozenset[str]) -> str:
        """Return a token of an account."""
        now = int(self.clock())
        claims = {
            "iss": self.options.issuer,
            "aud": self.options.audience,
            "sub": account.name,
            "tenant": account.tenant,
            "scope": " ".join(sorted(scopes)),
            "iat": now,
            "exp": now + self.options.lifetime_seconds,
            "jti": uuid.uuid4().hex,
        }
        return jwt.encode(claims, self._signer.private, algorithm=ALGORITHM, headers={"kid": self._signer.kid})

    def jwks(self) -> dict[str, Any]:
        """Return the public keys."""
        return {"keys": [key.jwk() for key in self._keys.values()]}

    def verify(self, token: str, kid: str) -> Principal:
        """Return who a token speaks for; raise UntrustedError when it must not be believed.

        The account must still be there: a removed one is locked out at once, and scopes taken away are gone.
        """
        key = self._keys.get(kid)
        if key is None:
            raise UntrustedError("signed with a key that is not in use")
        try:
            claims = jwt.decode(
                token,
                key.public,
                algorithms=[ALGORITHM],
                audience=self.options.audience,
                issuer=self.options.issuer,
                options={"require": ["exp", "sub", "tenant", "scope"], "verify_exp": False, "verify_iat": False},
            )
        except jwt.InvalidTokenError as error:
            raise UntrustedError(str(error)) from error
        account = self.accounts.get(claims["sub"])
        if account is None or account.tenant != claims["tenant"]:
            raise UntrustedError("its account does not exist any more")
        scopes = frozenset(str(claims["scope"]).split()) & account.scopes
        return Principal(account.tenant, account.name, scopes, float(claims["exp"]))


class Authenticator:
    """Turns the header ``Authorization`` into a principal; remembers tokens it has verified until they expire."""

    def __init__(
        self, issuer: TokenIssuer, other: Issuer | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.issuer = issuer
        self.other = other
        self.clock = clock
        self._known: dict[str, Principal] = {}

    async def authenticate(self, header: str | None) -> Principal:
        """Return who makes a request; raise Problem when that is not proved."""
        if header is None:
            raise unauthenticated("Send an access token: Authorization: Bearer <token>.", given=False)
        scheme, _, token = header.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise unauthenticated("The header Authorization must be: Bearer <token>.")
        principal = self._known.get(token)
        if principal is None:
            if len(token) > LONGEST:
                raise unauthenticated("The access token is too long.")
            try:
                principal = await self._verify(token)
            except UntrustedError as error:
                raise unauthenticated(f"The access token is not valid: {error}.") from error
            if len(self._known) >= CACHED:
                self._known.clear()
            self._known[token] = principal
        if principal.expires <= self.clock():
            self._known.pop(token, None)
            raise unauthenticated("The access token has expired.")
        return principal

    async def _verify(self, token: str) -> Principal:
        try:
            header = jwt.get_unverified_header(token)
            claims = jwt.decode(token, options={"verify_signature": False})
        except jwt.InvalidTokenError as error:
            raise UntrustedError("it is no JSON Web Token") from error
        kid = header.get("kid")
        if self.other is not None and claims.get("iss") == self.other.options.issuer:
            tenant, client, scopes, expires = await self.other.verify(token, kid)
            return Principal(tenant, client, scopes, expires)
        if not isinstance(kid, str):
            raise UntrustedError("it does not name its key")
        return self.issuer.verify(token, kid)

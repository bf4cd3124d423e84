# SPDX-License-Identifier: GPL-3.0-or-later
"""Tokens of an OpenID Connect issuer; its keys are fetched when they are needed and kept for an hour."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import jwt

from n8n_platform.bridge.settings import Oidc

LOG = logging.getLogger(__name__)
# Only signatures that the issuer alone can make.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
KEEP_SECONDS = 3600.0
# A key that is not known makes us ask again, at most this often.
ASK_SECONDS = 30.0
LEEWAY_SECONDS = 30
LARGEST = 1_000_000
TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

Fetch = Callable[[str], Awaitable[Any]]


class UntrustedError(Exception):
    """A token must not be believed; the text goes to the client."""


async def fetch_json(options: Oidc, url: str) -> Any:
    """Return what an address of the issuer answers; no redirects, so that the address is what was configured."""
    context = ssl.create_default_context(cafile=str(options.ca_file) if options.ca_file else None)
    async with httpx.AsyncClient(verify=context, timeout=5, follow_redirects=False) as client:
        answer = await client.get(url)
        answer.raise_for_status()
        if len(answer.content) > LARGEST:
            raise ValueError(f"{url} answers more than {LARGEST} bytes")
        return answer.json()


class Issuer:
    """The issuer of ``options``."""

    def __init__(
        self,
        options: Oidc,
        fetch: Fetch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options
        self._fetch: Fetch = fetch or (lambda url: fetch_json(options, url))
        self._clock = clock
        self._keys: dict[str, Any] = {}
        self._fetched = -KEEP_SECONDS
        self._asked = -ASK_SECONDS
        self._lock = asyncio.Lock()

    async def _key(self, kid: str) -> Any:
        now = self._clock()
        if kid in self._keys and now - self._fetched < KEEP_SECONDS:
            return self._keys[kid]
        async with self._lock:
            now = self._clock()
            if now - self._asked >= ASK_SECONDS and (kid not in self._keys or now - self._fetched >= KEEP_SECONDS):
                self._asked = now
                await self._refresh(now)
        if kid not in self._keys:
            raise UntrustedError("its issuer does not know the key it is signed with")
        return self._keys[kid]

    async def _refresh(self, now: float) -> None:
        """Fetch the keys; when the issuer is away the old ones stay in use."""
        try:
            address = self.options.jwks_url
            if not address:
                base = self.options.issuer.rstrip("/")
                address = str((await self._fetch(base + "/.well-known/openid-configuration"))["jwks_uri"])
            found = jwt.PyJWKSet.from_dict(await self._fetch(address))
        except (httpx.HTTPError, jwt.PyJWTError, KeyError, TypeError, ValueError, OSError) as error:
            LOG.warning("cannot fetch the keys of the issuer", extra={"error": f"{type(error).__name__}: {error}"})
            return
        self._keys = {key.key_id: key.key for key in found.keys if key.key_id}
        self._fetched = now

    async def verify(self, token: str, kid: Any) -> tuple[str, str, frozenset[str], float]:
        """Return tenant, client, scopes and expiry (Unix time) of a token; raise UntrustedError for a bad one."""
        if not isinstance(kid, str):
            raise UntrustedError("it does not name its key")
        try:
            claims = jwt.decode(
                token,
                await self._key(kid),
                algorithms=ALGORITHMS,
                audience=self.options.audience,
                issuer=self.options.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except (jwt.InvalidTokenError, jwt.InvalidKeyError, TypeError, ValueError) as error:
            raise UntrustedError(str(error)) from error
        tenant = claims.get(self.options.tenant_claim)
        if not isinstance(tenant, str) or not TENANT.fullmatch(tenant):
            raise UntrustedError(f"its claim {self.options.tenant_claim} names no tenant")
        scopes = claims.get(self.options.scope_claim, "")
        words = scopes.split() if isinstance(scopes, str) else [str(item) for item in scopes or ()]
        client = str(claims.get("azp") or claims.get("client_id") or claims.get("sub") or "unknown")
        return tenant, client, frozenset(words), float(claims["exp"]) + LEEWAY_SECONDS

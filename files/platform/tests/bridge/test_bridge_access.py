"""Access tokens: who gets one, which are believed, and those of another issuer."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from n8n_platform.bridge.api import accounts, oauth, oidc
from n8n_platform.bridge.api.auth import Authenticator, TokenIssuer
from n8n_platform.bridge.api.oidc import Issuer, UntrustedError
from n8n_platform.bridge.api.problems import Problem
from n8n_platform.bridge.settings import Database, N8n, Oidc, Settings, SettingsError, Tokens

from files.platform.tests.bridge.api_fakes import SECRET, Bench, basic

OPTIONS = Oidc(issuer="https://id.example/", audience="bridge")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def ask_token(bench: Bench, authorization: str | None = None, **form: str) -> httpx.Response:
    headers = {"authorization": authorization} if authorization else {}
    data = {"grant_type": "client_credentials", **form}
    return bench.ask("POST", "/pulsar/oauth/token", None, data=data, headers=headers)


def test_a_token_for_an_account(bench: Bench) -> None:
    answer = ask_token(bench, basic("n8n", SECRET), scope="publish:* claim")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    body = answer.json()
    assert body["token_type"] == "Bearer"
    assert body["expires_in"] == 900
    assert body["scope"] == "claim publish:*"
    headers = {"authorization": f"Bearer {body['access_token']}"}
    assert bench.ask("POST", "/pulsar/publish", None, json={"type": "order.x", "data": 1}, headers=headers).is_success
    assert bench.ask("GET", "/pulsar/dead", None, headers=headers).status_code == 403


def test_credentials_may_be_in_the_form(bench: Bench) -> None:
    answer = ask_token(bench, client_id="n8n", client_secret=SECRET)
    assert set(answer.json()["scope"].split()) == {
        "claim",
        "events:cancel",
        "events:read",
        "events:replay",
        "publish:*",
    }


@pytest.mark.parametrize(
    ("authorization", "form", "status", "error"),
    [
        (None, {}, 401, "invalid_client"),
        (basic("n8n", "wrong"), {}, 401, "invalid_client"),
        (basic("nobody", SECRET), {}, 401, "invalid_client"),
        ("Basic ***", {}, 401, "invalid_client"),
        ("Basic bm8tY29sb24=", {}, 401, "invalid_client"),
        ("Digest x", {}, 401, "invalid_client"),
        (basic("narrow", "n" * 40), {"scope": "publish:*"}, 400, "invalid_scope"),
        (basic("n8n", SECRET), {"grant_type": "password"}, 400, "unsupported_grant_type"),
        (None, {"client_id": "n8n"}, 401, "invalid_client"),
    ],
)
def test_refusals_are_those_of_the_standard(
    bench: Bench, authorization: str | None, form: dict[str, str], status: int, error: str
) -> None:
    answer = ask_token(bench, authorization, **form)
    assert answer.status_code == status
    assert answer.json()["error"] == error
    if status == 401:
        assert answer.headers["www-authenticate"].startswith("Basic")


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{}", "application/json", 400),
        (b"grant_type=a&grant_type=b", oauth.FORM, 400),
        (b"", oauth.FORM, 400),
        (b"\xff=\xff", oauth.FORM, 400),
        (b"x=" + b"y" * 9000, oauth.FORM, 413),
    ],
)
def test_forms_that_are_none(bench: Bench, content: bytes, kind: str, status: int) -> None:
    answer = bench.ask("POST", "/pulsar/oauth/token", None, content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.json()["error"] == "invalid_request"


def test_guessing_is_stopped(bench: Bench) -> None:
    answers = [ask_token(bench, basic("n8n", f"guess-{number}")).status_code for number in range(11)]
    assert answers == [401] * 10 + [429]
    assert ask_token(bench, basic("n8n", SECRET)).status_code == 429
    # Somebody else is not locked out.
    assert ask_token(bench, basic("other", "o" * 40)).status_code == 200


def test_guesses_are_forgotten() -> None:
    now = [0.0]
    guesses = oauth.Guesses(lambda: now[0])
    for number in range(oauth.REMEMBERED + 5):
        guesses.wrong(f"name-{number}")
    for _ in range(10):
        guesses.wrong("a")
    with pytest.raises(oauth.OAuthError) as caught:
        guesses.check("a")
    assert int(caught.value.headers["retry-after"]) > 0
    now[0] = 61
    guesses.check("a")


def test_public_keys_verify_tokens(bench: Bench) -> None:
    key = bench.ask("GET", "/pulsar/oauth/jwks.json", None).json()["keys"][0]
    public: Any = jwt.PyJWK(key).key
    assert isinstance(public, Ed25519PublicKey)
    claims = jwt.decode(bench.token(), public, algorithms=["EdDSA"], audience="n8n-bridge", issuer="n8n-bridge")
    assert claims["tenant"] == "acme"


def test_requests_without_a_good_token(bench: Bench) -> None:
    token = bench.token()
    body = token.split(".")
    none = jwt.encode({"sub": "n8n", "tenant": "acme", "scope": "publish:*", "exp": 9e9}, "", algorithm="none")
    bad = [
        "Basic abc",
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        f"Bearer {none}",
        "Bearer " + ".".join([body[0], body[1], "AAAA"]),
        "Bearer " + "x" * 9000,
        f"Bearer {token[:-4]}",
    ]
    for header in bad:
        answer = bench.ask("GET", "/pulsar/dead", None, headers={"authorization": header})
        assert answer.status_code == 401, header
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    answer = bench.ask("GET", "/pulsar/dead", None)
    assert answer.status_code == 401
    assert "error=" not in answer.headers["www-authenticate"]


@given(st.text())
def test_no_text_is_a_token(text: str) -> None:
    bench_accounts = accounts.Accounts({})
    issuer = TokenIssuer(Tokens(), bench_accounts, ["k" * 40])
    with pytest.raises(Problem) as caught:
        asyncio.run(Authenticator(issuer).authenticate(text))
    assert caught.value.status == 401


def test_tokens_expire_even_when_they_are_known(bench: Bench) -> None:
    headers = {"authorization": f"Bearer {bench.token()}"}
    assert bench.ask("GET", "/pulsar/dead", None, headers=headers).status_code == 200
    bench.clock += 901
    answer = bench.ask("GET", "/pulsar/dead", None, headers=headers)
    assert answer.status_code == 401
    assert "expired" in answer.json()["detail"]


def test_a_key_may_be_changed_while_its_tokens_are_alive(bench: Bench) -> None:
    old = bench.token()
    rotated = TokenIssuer(bench.settings.tokens, bench.accounts, ["n" * 40, "k" * 40])
    assert asyncio.run(Authenticator(rotated).authenticate(f"Bearer {old}")).tenant == "acme"
    assert len(rotated.jwks()["keys"]) == 2
    gone = TokenIssuer(bench.settings.tokens, bench.accounts, ["n" * 40])
    with pytest.raises(Problem, match="key that is not in use"):
        asyncio.run(Authenticator(gone).authenticate(f"Bearer {old}"))


def test_a_removed_account_is_locked_out(bench: Bench) -> None:
    left = accounts.Accounts({name: bench.accounts.accounts[name] for name in ("other",)})
    issuer = TokenIssuer(bench.settings.tokens, left, ["k" * 40])
    with pytest.raises(Problem, match="does not exist any more"):
        asyncio.run(Authenticator(issuer).authenticate(f"Bearer {bench.token()}"))


def test_remembered_tokens_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("n8n_platform.bridge.api.auth.CACHED", 1)
    authenticator = Authenticator(bench.issuer)
    for name in ("n8n", "other", "narrow"):
        assert asyncio.run(authenticator.authenticate(f"Bearer {bench.token(name)}")).client == name


# --- accounts ---------------------------------------------------------------------------------------------------------


def settings(directory: Path, text: str) -> Settings:
    path = directory / "accounts.yml"
    path.write_text(text)
    return Settings(
        environment="test",
        database=Database(host="/"),
        n8n=N8n(urls=[]),
        accounts_file=path,
        secrets_dir=directory,
    )


def test_accounts_are_read(tmp_path: Path) -> None:
    (tmp_path / "bridge_client_shop").write_text("shop-secret\n")
    (tmp_path / "elsewhere").write_text("other-secret\n")
    found = accounts.load(
        settings(
            tmp_path,
            """
            accounts:
              - {name: shop, tenant: acme, scopes: ["publish:short", "events:read"]}
              - {name: bi, tenant: acme, scopes: [], secret: elsewhere}
            """,
        )
    )
    shop = found.check("shop", "shop-secret")
    assert shop is not None
    assert shop.scopes == {"publish:short", "events:read"}
    assert found.check("bi", "other-secret") is not None
    assert found.check("bi", "shop-secret") is None
    assert found.check("nobody", "x" * 64) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accounts: [{name: A, tenant: t, scopes: []}]", "accounts.*name"),
        ("accounts: [{name: a, tenant: t, scopes: [everything]}]", "scopes"),
        ("accounts: [{name: a, tenant: t, scopes: [], extra: 1}]", "extra"),
        ("accounts: [{name: a, tenant: t, scopes: []}, {name: a, tenant: u, scopes: []}]", "two accounts .* a"),
        ("accounts: [", "not usable"),
        ("{}", "accounts"),
        ("accounts: [{name: a, tenant: t, scopes: []}]", "bridge_client_a"),
    ],
)
def test_unusable_accounts_say_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        accounts.load(settings(tmp_path, text))


def test_missing_accounts(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="The role bridge writes it"):
        accounts.read(tmp_path / "none.yml")


# --- another issuer ---------------------------------------------------------------------------------------------------


class Provider:
    """An OpenID Connect issuer."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.kid = "k1"
        self.asked: list[str] = []
        self.broken: Exception | None = None

    async def fetch(self, url: str) -> Any:
        self.asked.append(url)
        if self.broken:
            raise self.broken
        if url.endswith("openid-configuration"):
            return {"jwks_uri": "https://id.example/keys"}
        key = jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return {"keys": [{**key, "kid": self.kid, "alg": "ES256", "use": "sig"}]}

    def token(self, kid: str | None = "k1", **claims: Any) -> str:
        content = {"iss": OPTIONS.issuer, "aud": "bridge", "sub": "robot", "exp": 9_000_000_000, **claims}
        return jwt.encode(content, self.key, algorithm="ES256", headers={"kid": kid} if kid else {})


def test_tokens_of_another_issuer(bench: Bench) -> None:
    provider = Provider()
    authenticator = Authenticator(bench.issuer, Issuer(OPTIONS, provider.fetch))
    token = provider.token(tenant="acme", scope="publish:* claim", azp="app")
    principal = asyncio.run(authenticator.authenticate(f"Bearer {token}"))
    assert (principal.tenant, principal.client) == ("acme", "app")
    assert principal.scopes == {"publish:*", "claim"}
    assert provider.asked == ["https://id.example/.well-known/openid-configuration", "https://id.example/keys"]
    # Our own tokens count besides.
    assert asyncio.run(authenticator.authenticate(f"Bearer {bench.token()}")).client == "n8n"


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"tenant": "acme", "aud": "another"}, "Audience"),
        ({"tenant": "acme", "exp": 1}, "expired"),
        ({}, "names no tenant"),
        ({"tenant": "No Tenant"}, "names no tenant"),
        ({"tenant": 5}, "names no tenant"),
    ],
)
def test_bad_tokens_of_another_issuer(claims: dict[str, Any], message: str) -> None:
    provider = Provider()
    with pytest.raises(UntrustedError, match=message):
        asyncio.run(Issuer(OPTIONS, provider.fetch).verify(provider.token(**claims), "k1"))


def test_scopes_may_be_a_list() -> None:
    provider = Provider()
    options = Oidc(issuer=OPTIONS.issuer, audience="bridge", jwks_url="https://id.example/direct", scope_claim="scp")
    issuer = Issuer(options, provider.fetch)
    found = asyncio.run(issuer.verify(provider.token(tenant="acme", scp=["claim"]), "k1"))
    assert found[2] == {"claim"}
    assert provider.asked == ["https://id.example/direct"]


def test_unknown_keys_are_asked_for_seldom() -> None:
    provider, now = Provider(), [0.0]
    issuer = Issuer(OPTIONS, provider.fetch, lambda: now[0])

    async def verify(kid: str) -> str:
        try:
            await issuer.verify(provider.token(kid, tenant="acme"), kid)
        except UntrustedError as error:
            return str(error)
        return "good"

    async def story() -> list[str]:
        answers = [await verify("k1"), await verify("k2"), await verify("k3")]
        asked = len(provider.asked)
        now[0] = 31
        provider.kid = "k2"
        answers += [await verify("k2")]
        assert len(provider.asked) == asked + 2
        # The issuer is away when its keys should be fetched again: the old ones stay.
        now[0] = 31 + 3601
        provider.broken = httpx.ConnectError("away")
        return [*answers, await verify("k2"), await verify("k9")]

    unknown = "its issuer does not know the key it is signed with"
    assert asyncio.run(story()) == ["good", unknown, unknown, "good", "good", unknown]
    with pytest.raises(UntrustedError, match="does not name its key"):
        asyncio.run(issuer.verify(provider.token(None), None))


def test_an_issuer_that_answers_nonsense(caplog: pytest.LogCaptureFixture) -> None:
    async def fetch(url: str) -> Any:
        return {"keys": "none"}

    with caplog.at_level(logging.WARNING), pytest.raises(UntrustedError):
        asyncio.run(Issuer(OPTIONS, fetch).verify("x", "k1"))
    assert "cannot fetch the keys" in caplog.text


def test_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"/good": httpx.Response(200, json={"a": 1}), "/large": httpx.Response(200, content=b" " * 1_000_001)}
    real = httpx.AsyncClient

    def client(**options: Any) -> httpx.AsyncClient:
        assert options["follow_redirects"] is False
        return real(transport=httpx.MockTransport(lambda request: answers[request.url.path]))

    monkeypatch.setattr(httpx, "AsyncClient", client)
    assert asyncio.run(oidc.fetch_json(OPTIONS, "https://id.example/good")) == {"a": 1}
    with pytest.raises(ValueError, match="more than"):
        asyncio.run(oidc.fetch_json(OPTIONS, "https://id.example/large"))

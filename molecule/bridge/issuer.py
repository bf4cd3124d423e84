# SPDX-License-Identifier: GPL-3.0-or-later
"""An issuer of OpenID Connect tokens on a test host: Glewlwyd, as Debian has it."""

from __future__ import annotations

import base64
import json
import shlex
from typing import Any

from molecule.host import Host
from molecule.waiting import until

BASE = "https://localhost:4593/api"
# Where the bridge finds what proves the issuer.
AUTHORITY = "/etc/glewlwyd/cert.pem"
AUDIENCE = "https://bridge.test"
INSTALL = """
export DEBIAN_FRONTEND=noninteractive
apt-get install -qy --no-install-recommends glewlwyd dbconfig-sqlite3 >/dev/null
cd /etc/glewlwyd
openssl req -x509 -newkey rsa:2048 -nodes -keyout cert.key -out cert.pem -days 2 -subj /CN=localhost \
  -addext subjectAltName=DNS:localhost 2>/dev/null
chown glewlwyd cert.key cert.pem
sed -i 's|^external_url=.*|external_url="https://localhost:4593"|
  s/^use_secure_connection=.*/use_secure_connection=true/
  s/^secure_connection_ca_file/#&/; s/^log_mode=.*/log_mode="console"/' glewlwyd.conf
systemctl restart glewlwyd
"""
PARAMETERS: dict[str, Any] = {
    "iss": f"{BASE}/oidc",
    "jwt-type": "ecdsa",
    "jwt-key-size": "256",
    "jwks-show": True,
    "access-token-duration": 600,
    "refresh-token-duration": 600,
    "code-duration": 60,
    "allow-non-oidc": True,
    "auth-type-client-enabled": True,
    "auth-type-id-token-enabled": True,
    "resource-allowed": True,
    "subject-type": "public",
    "secret-type": "",
    **{f"auth-type-{kind}-enabled": False for kind in ("code", "token", "none", "password", "device", "refresh")},
    **{f"{name}-claim": "no" for name in ("name", "email", "scope")},
    "address-claim": {"type": "no"},
}


class Issuer:
    """The issuer; its clients are named after their tenants."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def install(self, scopes: list[str]) -> None:
        """Install it and let it know scopes, for the bridge and for another service."""
        self.host.run(INSTALL, timeout=300)
        until(lambda: "200" in self.sign_in(), 30, "the issuer answers")
        resources = {scope: [AUDIENCE, "https://other.test"] for scope in scopes}
        parameters = {**PARAMETERS, **self.key(), "resource-scope": resources}
        self.write("mod/plugin", module="oidc", name="oidc", display_name="oidc", enabled=True, parameters=parameters)
        for scope in scopes:
            self.write("scope", name=scope, display_name=scope, password_required=False)

    def sign_in(self) -> str:
        """Sign in as Debian's first administrator; return the status."""
        return self.ask("POST", "auth", {"username": "admin", "password": "password"}, check=False)

    def key(self) -> dict[str, str]:
        """Return a new pair of keys, as the settings have them."""
        made = self.host.run("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:prime256v1 2>/dev/null")
        public = self.host.run(f"openssl pkey -pubout <<'END'\n{made}END\n")
        return {"key": made, "cert": public}

    def ask(self, method: str, path: str, body: Any = None, check: bool = True) -> str:
        """Send a request as administrator; return body and status."""
        options = ["--cacert", AUTHORITY, "--cookie", "/root/issuer", "--cookie-jar", "/root/issuer"]
        options += ["--json", json.dumps(body)] if body is not None else []
        command = ["curl", "-sS", "-m", "10", "-X", method, *options, "-w", "\n%{http_code}", f"{BASE}/{path}/"]
        return self.host.run(shlex.join(command), check=check)

    def write(self, path: str, **content: Any) -> None:
        """Add something."""
        said = self.ask("POST", path, content)
        assert said.endswith("200"), said

    def client(self, tenant: str, scopes: list[str]) -> None:
        """Add a client."""
        self.write(
            "client",
            **{"client_id": tenant, "name": tenant, "confidential": True, "enabled": True, "scope": scopes},
            **{"client_secret": f"secret-of-{tenant}", "password": f"secret-of-{tenant}"},
            **{"authorization_type": ["client_credentials"], "token_endpoint_auth_method": ["client_secret_basic"]},
        )

    def renew_key(self) -> None:
        """Sign with another key from now on."""
        found = json.loads(self.ask("GET", "mod/plugin/oidc").rpartition("\n")[0])
        found["parameters"] |= self.key()
        said = self.ask("PUT", "mod/plugin/oidc", found)
        assert said.endswith("200"), said
        said = self.ask("PUT", "mod/plugin/oidc/reset", {})
        assert said.endswith("200"), said

    def token(self, tenant: str, scope: str, audience: str = AUDIENCE) -> str:
        """Return an access token."""
        form = {"grant_type": "client_credentials", "scope": scope, "resource": audience}
        words = [word for name, value in form.items() for word in ("--data-urlencode", f"{name}={value}")]
        account = f"{tenant}:secret-of-{tenant}"
        said = self.host.run(
            shlex.join(["curl", "-sS", "--cacert", AUTHORITY, "-u", account, *words, f"{BASE}/oidc/token"])
        )
        return str(json.loads(said)["access_token"])


def key_id(token: str) -> str:
    """Return the name of the key a token is signed with."""
    head = token.split(".", maxsplit=1)[0]
    return str(json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"])

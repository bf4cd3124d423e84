# SPDX-License-Identifier: GPL-3.0-or-later
"""The settings of the bridge: one JSON file without secrets; passwords and keys come from files named after them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import msgspec

DEFAULT_PATH = Path("/etc/n8n-platform/bridge/settings.json")

Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class SettingsError(Exception):
    """The settings or a secret cannot be used; the text names file and key and says what to do."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the settings; a key nobody knows is an error, so that a slip is not silently a default."""


class Database(Section, frozen=True):
    """PostgreSQL; ``host`` may be the directory of a UNIX socket. The pools are per process."""

    host: str
    port: Port = 5432
    name: str = "n8n_bridge"
    user: str = "n8n_bridge"
    ca_file: Path | None = None
    password: str = "bridge_db_password"  # noqa: S105  (the name of a secret)
    pool_min: Count = 2
    pool_max: Count = 6
    statement_timeout_seconds: Seconds = 30


class Pulsar(Section, frozen=True):
    """The brokers. ``url`` may list several; an empty one means that everything is delivered from the database."""

    url: str = ""
    admin_url: str = ""
    ca_file: Path | None = None
    publisher_token: str = "pulsar_bridge_publisher_token"  # noqa: S105  (the name of a secret)
    consumer_token: str = "pulsar_bridge_consumer_token"  # noqa: S105  (the name of a secret)
    subscription: str = "n8n-bridge"
    # How long the client keeps trying to store one message before it reports a failure.
    send_timeout_seconds: Seconds = 5
    batching_delay_ms: Count = 2
    max_pending: Count = 10_000


class Tls(Section, frozen=True):
    """Certificate and key with which a port answers; a bare name is a credential of the unit."""

    certificate_file: Path
    key_file: Path


class Listen(Section, frozen=True):
    """Where instance i listens: ``port_base`` + i for requests (API only), ``ops_base`` + i for health and metrics."""

    ops_base: Port
    host: str = "127.0.0.1"
    port_base: Port | None = None
    ops_host: str = "127.0.0.1"
    tls: Tls | None = None


class Tenant(Section, frozen=True):
    """What one tenant may send; 0 means without limit."""

    events_per_second: Annotated[float, msgspec.Meta(ge=0)] = 0
    burst: Count = 1000
    events_per_day: Annotated[int, msgspec.Meta(ge=0)] = 0
    bytes_per_day: Annotated[int, msgspec.Meta(ge=0)] = 0


class Limits(Section, frozen=True):
    """Limits of the API for everybody, and those of tenants (``tenants`` by name, ``tenant`` for all others)."""

    event_bytes: Count = 1024 * 1024
    batch_bytes: Count = 16 * 1024 * 1024
    batch_events: Count = 500
    # What may wait for Pulsar before requests are refused.
    outbox_rows: Count = 100_000
    outbox_age_seconds: Seconds = 3600
    # How long a request waits for Pulsar's receipt before it answers "queued".
    receipt_ms: Count = 250
    # Requests that one process works on at a time; more are refused at once.
    concurrent_requests: Count = 512
    # Bytes of request bodies that one process holds at a time; the process needs about four times as much memory.
    buffered_bytes: Count = 48 * 1024 * 1024
    tenant: Tenant = Tenant()
    tenants: dict[str, Tenant] = {}


class Oidc(Section, frozen=True):
    """An issuer of tokens other than the bridge itself. ``jwks_url`` is asked of the issuer when it is empty."""

    issuer: str
    audience: str
    jwks_url: str = ""
    tenant_claim: str = "tenant"
    scope_claim: str = "scope"
    ca_file: Path | None = None


class Tokens(Section, frozen=True):
    """Access tokens that the bridge itself issues, and the issuer it trusts besides."""

    issuer: str = "n8n-bridge"
    audience: str = "n8n-bridge"
    lifetime_seconds: Count = 900
    key: str = "bridge_token_key"
    oidc: Oidc | None = None


class Retention(Section, frozen=True):
    """For how long things are kept, in days; the payload outlives everything that may still ask for it."""

    event_days: Count = 15
    idempotency_days: Count = 2
    # Partitions made ahead, so that a maintenance run may fail for days.
    ahead_days: Count = 7
    # An event that was not delivered by then is dead.
    delivery_hours: Count = 72


class Consumer(Section, frozen=True):
    """What a consumer process may do at a time; each route has its own limits besides."""

    in_flight: Count = 200
    in_flight_per_tenant: Count = 50
    receiver_queue: Count = 400
    lease_seconds: Seconds = 120
    scheduler_seconds: Seconds = 1
    scheduler_batch: Count = 200
    breaker_failures: Count = 10
    breaker_seconds: Seconds = 15
    stop_seconds: Seconds = 25


class N8n(Section, frozen=True):
    """Where n8n takes webhooks; several addresses share the load."""

    urls: list[str]
    ca_file: Path | None = None
    webhook_secret: str = "bridge_webhook_secret"  # noqa: S105  (the name of a secret)


class Tracing(Section, frozen=True):
    """Where spans go (base of OTLP/HTTP; empty: nowhere), and which share of the traces that begin here is kept.

    ``per_second``: no more than so many by each process. A trace that began elsewhere is always gone on with.
    """

    endpoint: str = ""
    ratio: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    per_second: Annotated[float, msgspec.Meta(gt=0)] = 20.0


class Processes(Section, frozen=True):
    """How many processes of each kind all hosts together run; limits per tenant are divided among them."""

    api: Count = 2
    consumer: Count = 2


class Settings(Section, frozen=True):
    """Everything the bridge knows about its surroundings."""

    environment: str
    database: Database
    n8n: N8n
    pulsar: Pulsar = Pulsar()
    api: Listen = Listen(port_base=8600, ops_base=8620)
    consumer: Listen = Listen(ops_base=8640)
    processes: Processes = Processes()
    limits: Limits = Limits()
    tokens: Tokens = Tokens()
    retention: Retention = Retention()
    delivery: Consumer = Consumer()
    tracing: Tracing = Tracing()
    routes_file: Path = Path("/etc/n8n-platform/bridge/routes.yml")
    accounts_file: Path = Path("/etc/n8n-platform/bridge/accounts.yml")
    # Addresses under which clients know the API, without /pulsar; shown in its description.
    public_url: str = ""
    signing_key: str = "bridge_signing_key"
    # For commands of an administrator; a unit has its secrets as credentials instead.
    secrets_dir: Path = Path("/etc/n8n-platform/secrets")
    log_level: str = "info"

    def secret_file(self, name: str) -> Path:
        """Return where a secret lies: among the unit's credentials when there are any, else where all secrets are."""
        return Path(os.environ.get("CREDENTIALS_DIRECTORY") or self.secrets_dir) / name

    def secret(self, name: str) -> str:
        """Return a secret without surrounding space; raise :class:`SettingsError` when there is none."""
        path = self.secret_file(name)
        try:
            value = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read the secret {path}: {error}. The role secrets makes it.") from error
        if not value:
            raise SettingsError(f"the secret {path} is empty. Remove the file and run the role secrets again.")
        return value

    def optional_secret(self, name: str) -> str | None:
        """Return a secret that need not be there, such as the previous one of a key that is being changed."""
        return self.secret(name) if self.secret_file(name).exists() else None


def _decode(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"Expected a path, got {value!r}")


def load(path: Path = DEFAULT_PATH) -> Settings:
    """Read the settings; raise :class:`SettingsError` that names the key when the file is missing or not usable."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Settings, dec_hook=_decode)
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}. The role bridge writes it.") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise SettingsError(f"{path} is not usable: {error}. Run the role bridge again.") from error

"""The API process as a whole, the migrations, and the commands of the units."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import httpx
import hypothesis
import pytest
import schemathesis
import sqlalchemy
import yaml
from alembic import command
from n8n_platform.bridge import commands, migrate, settings, telemetry
from n8n_platform.bridge.api import server
from n8n_platform.bridge.settings import Settings, SettingsError
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from files.platform.tests.bridge.api_fakes import ROUTES, Bench
from files.platform.tests.bridge.test_bridge_storage import FakeConnection, FakeSender


class FakePool(FakeConnection):
    """A pool that can be closed."""

    async def close(self) -> None:
        self.said.append(("closed", ()))


class Pulsar(FakeSender):
    """A broker that can be closed."""

    closed = False

    async def close(self) -> None:
        self.closed = True


def free_port() -> int:
    with socket.socket() as channel:
        channel.bind(("127.0.0.1", 0))
        return int(channel.getsockname()[1])


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    for name in ("bridge_signing_key", "bridge_token_key", "bridge_client_n8n", "bridge_db_password"):
        (tmp_path / name).write_text(f"{name}-" + "x" * 32)
    (tmp_path / "routes.yml").write_text(ROUTES)
    account = {"name": "n8n", "tenant": "acme", "scopes": ["publish:*", "events:read"]}
    (tmp_path / "accounts.yml").write_text(yaml.safe_dump({"accounts": [account]}))
    content = {
        "environment": "test",
        "database": {"host": "/nowhere"},
        "n8n": {"urls": ["http://127.0.0.1:1"]},
        "api": {"port_base": free_port() - 1, "ops_base": free_port() - 1},
        "routes_file": str(tmp_path / "routes.yml"),
        "accounts_file": str(tmp_path / "accounts.yml"),
        "secrets_dir": str(tmp_path),
    }
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(content))
    return settings.load(path)


async def opened(pool: FakePool) -> FakePool:
    return pool


def api_of(configured: Settings, pool: FakePool, pulsar: Pulsar) -> server.Api:
    return server.Api(configured, 1, lambda *_: opened(pool), lambda *_: pulsar)


def test_a_process_from_start_to_stop(configured: Settings) -> None:
    async def story() -> None:
        pool, pulsar = FakePool(), Pulsar()
        api = api_of(configured, pool, pulsar)
        assert await api.health.problems() == {}
        application = await api.start()
        assert pulsar.prepared == ["dealscale.workflow.short"]
        assert await api.health.problems() == {}
        pool.error = ConnectionResetError("gone")
        assert "gone" in (await api.health.problems())["database"]
        pool.error = None
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://bridge") as client:
            secret = configured.secret("bridge_client_n8n")
            form = {"grant_type": "client_credentials"}
            token = (await client.post("/pulsar/oauth/token", data=form, auth=("n8n", secret))).json()["access_token"]
            headers = {"authorization": f"Bearer {token}"}
            assert (await client.get("/pulsar/dead", headers=headers)).json() == {"events": [], "next": None}
            port = configured.api.ops_base + 1
            metrics = await client.get("/pulsar/openapi.json")
            assert metrics.status_code == 200
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/health/ready")).status_code == 200
            exposition = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
            for name in ("bridge_outbox_rows", "process_cpu_seconds_total", "process_resident_memory_bytes"):
                assert f"\n{name} " in exposition
        await api.stop()
        assert pulsar.closed
        assert pool.said[-1][0] == "closed"
        assert "process" in await api.health.problems()

    asyncio.run(story())


def test_decisions_are_counted(configured: Settings) -> None:
    api = api_of(configured, FakePool(), Pulsar())
    api._decided(api.routes.current.routes[0])
    labels = {"route": "short", "via": "topic"}
    assert api.registry.get_sample_value("bridge_route_decisions_total", labels) == 1
    asyncio.run(api.stop())


def test_new_routes_that_are_not_usable_are_counted(configured: Settings, caplog: pytest.LogCaptureFixture) -> None:
    api = api_of(configured, FakePool(), Pulsar())
    api.routes.every_s = 0
    configured.routes_file.write_text("nonsense: 1\n")
    assert api.routes.current.topics == ["dealscale.workflow.short"]
    assert api.registry.get_sample_value("bridge_routes_reload_failures_total") == 1
    assert "the old ones stay in force" in caplog.text
    with pytest.raises(SettingsError, match="the routes are not usable"):
        api_of(configured, FakePool(), Pulsar())


def test_uvicorn_is_told_what_it_needs(configured: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(server, "notify", told.append)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def story() -> None:
        made = server.Server(server.config(configured, 1, application))
        task = asyncio.create_task(made.serve())
        while "READY=1" not in told:
            assert not task.done()
            await asyncio.sleep(0.001)
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{(configured.api.port_base or 0) + 1}/")
        assert answer.status_code == 204
        assert "server" not in answer.headers
        made.should_exit = True
        await task

    asyncio.run(story())
    assert told == ["READY=1", "STOPPING=1"]


def test_the_process_is_stopped_when_it_cannot_start(configured: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[int] = []

    class Broken(server.Api):
        async def start(self) -> Any:
            raise OSError("the port is taken")

        async def stop(self) -> None:
            stopped.append(self.instance)

    monkeypatch.setattr(server, "Api", Broken)
    monkeypatch.setattr(telemetry, "configure_logging", lambda *_: None)
    with pytest.raises(OSError, match="the port is taken"):
        commands.api(configured, 3)
    assert stopped == [3]


# --- migrations -------------------------------------------------------------------------------------------------------


def test_the_migrations_are_statements_for_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    config = migrate.configuration()
    config.output_buffer = io.StringIO()
    command.upgrade(config, "head", sql=True)
    text = config.output_buffer.getvalue()
    for table in ("event", "idempotency", "outbox", "delivery", "claim", "usage"):
        assert f"CREATE TABLE bridge.{table}" in text
    config.output_buffer = io.StringIO()
    command.downgrade(config, "head:base", sql=True)
    assert "DROP TABLE bridge.event" in config.output_buffer.getvalue()


class FakeEngine:
    """A database in which everything works, or nothing does."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def connect(self) -> Any:
        if self.error:
            raise self.error
        return self

    def __enter__(self) -> Any:
        return SimpleNamespace(rollback=lambda: None, commit=lambda: None, dialect=None)

    def __exit__(self, *_: object) -> None:
        pass


def test_migrating(configured: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = iter([None, "0001"])
    monkeypatch.setattr(
        "alembic.runtime.migration.MigrationContext.configure",
        lambda *_, **__: SimpleNamespace(get_current_revision=lambda: next(versions)),
    )
    monkeypatch.setattr(command, "upgrade", lambda *_: None)
    assert migrate.run(configured, FakeEngine()) == ["0001"]
    versions = iter(["0001", "0001"])
    assert migrate.run(configured, FakeEngine()) == []
    with pytest.raises(migrate.MigrationError, match="cannot be migrated"):
        migrate.run(configured, FakeEngine(sqlalchemy.exc.OperationalError("x", None, Exception("refused"))))


def test_the_address_of_the_database(configured: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Any] = []
    monkeypatch.setattr(sqlalchemy, "create_engine", lambda address, **_: made.append(address))
    migrate.engine(configured)
    assert made[0].query["host"] == "/nowhere"
    assert "sslmode" not in made[0].query
    content = json.loads((tmp_path / "settings.json").read_text())
    content["database"]["ca_file"] = "/ca.crt"
    (tmp_path / "settings.json").write_text(json.dumps(content))
    migrate.engine(settings.load(tmp_path / "settings.json"))
    assert made[1].query["sslrootcert"] == "/ca.crt"
    (tmp_path / "bridge_db_password").unlink()
    with pytest.raises(SettingsError, match="bridge_db_password"):
        migrate.run(configured)


# --- commands ---------------------------------------------------------------------------------------------------------


def test_the_commands_of_the_units(configured: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = FakePool({"FROM pg_inherits": [{"name": "event_20200101"}]})

    async def connect(**_: Any) -> FakePool:
        return connection

    monkeypatch.setattr(asyncpg, "connect", connect)
    monkeypatch.setattr(telemetry, "configure_logging", lambda *_: None)
    monkeypatch.setattr(migrate, "run", lambda _: [])
    assert commands.migrate(configured) == 0
    assert connection.values("CREATE TABLE bridge")
    connection.answers["SELECT (SELECT count(*)"] = 0
    assert commands.maintain(configured) == 0
    connection.answers["SELECT (SELECT count(*)"] = 5
    assert commands.maintain(configured) == 1
    connection.error = asyncpg.UndefinedTableError("no table")
    with pytest.raises(SettingsError, match="no table"):
        commands.maintain(configured)
    with pytest.raises(SettingsError, match="no table"):
        commands.migrate(configured)
    commands.check_accounts(configured.accounts_file)
    with pytest.raises(SettingsError):
        commands.check_accounts(configured.routes_file)


# --- the description against the application --------------------------------------------------------------------------


OPERATIONS = (
    "publish_event",
    "publish_batch",
    "get_event",
    "get_payload",
    "cancel_event",
    "replay_event",
    "claim_event",
    "finish_claim",
    "list_dead",
    "get_token",
    "get_jwks",
)
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def test_the_description_names_all_operations(bench: Bench) -> None:
    paths = bench.ask("GET", "/pulsar/openapi.json", None).json()["paths"]
    assert {item["operationId"] for methods in paths.values() for item in methods.values()} == set(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_whatever_is_sent_the_answer_is_as_described(bench: Bench, operation: str) -> None:
    schema = schemathesis.openapi.from_asgi("/pulsar/openapi.json", bench.app)
    found = schema.find_operation_by_id(operation)

    @hypothesis.settings(max_examples=25, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(case=found.as_strategy())
    def send(case: Any) -> None:
        headers = {} if "oauth" in found.path else {"Authorization": f"Bearer {bench.token()}"}
        case.call_and_validate(headers=headers, checks=CHECKS)

    send()

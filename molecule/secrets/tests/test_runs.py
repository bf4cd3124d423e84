"""What the role does on hosts that already have secrets: rotate, repair, and refuse without touching anything."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import testinfra

testinfra_hosts = ["n8n-platform-secrets-a"]
DIRECTORY = "/etc/n8n-platform/secrets"
REGISTRY = "/var/lib/n8n-platform/secrets.json"

Converge = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def other(host: Any) -> Any:
    """Return the host that is not the primary one."""
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    return testinfra.get_host(f"ansible://n8n-platform-secrets-b?ansible_inventory={inventory}")


def value(host: Any, name: str) -> str:
    return str(host.file(f"{DIRECTORY}/{name}").content_string)


def state(*hosts: Any) -> list[str]:
    """Return what is in the secrets' directories and records, times of change included."""
    command = f"cd {DIRECTORY} && ls -l --time-style=full-iso . && sha256sum * {REGISTRY}"
    return [host.check_output(command) for host in hosts]


@pytest.fixture
def aside(host: Any, other: Any) -> Iterator[Callable[[Any, str], None]]:
    """Return `aside(host, path)`, which moves a file away as an accident would; it comes back after the test."""
    moved = []

    def move(where: Any, path: str) -> None:
        where.check_output(f"mv {path} {path}.aside")
        moved.append((where, path))

    yield move
    for where, path in moved:
        where.check_output(f"rm -rf {path} && mv {path}.aside {path}")


def refused(result: CompletedProcess[str], text: str) -> None:
    assert result.returncode != 0, result.stdout
    assert text in " ".join(result.stdout.split()), result.stdout


def test_nothing_shows_a_value(host: Any, other: Any, converge: Converge) -> None:
    """Rotate with all the noise Ansible can make, and watch every process of this machine meanwhile."""
    seen: set[bytes] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes())
                except OSError:
                    continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = converge("-vvv", "--diff", secrets_rotate=["redis_n8n_password"])
    finally:
        ended.set()
        watcher.join()
    assert result.returncode == 0, result.stdout
    assert any(b"ansible-playbook" in line for line in seen)
    said = result.stdout + b"\n".join(seen).decode(errors="replace")
    for name in host.file(DIRECTORY).listdir():
        assert value(host, name) not in said, name
    assert "replaced on n8n-platform-secrets-a: redis_n8n_password." in result.stdout
    assert "replaced on n8n-platform-secrets-b: redis_n8n_password." in result.stdout
    assert value(host, "redis_n8n_password") == value(other, "redis_n8n_password")


def test_a_new_value_from_the_inventory_reaches_the_hosts_that_need_it(
    host: Any, other: Any, converge: Converge
) -> None:
    new = f"from-the-vault-{uuid.uuid4()}"
    result = converge(given={"n8n_jwt_secret": new})
    assert "replaced on n8n-platform-secrets-b: n8n_jwt_secret." in result.stdout
    assert value(host, "n8n_jwt_secret") == value(other, "n8n_jwt_secret") == new


def test_a_secret_lost_on_another_host_comes_back_from_the_primary(host: Any, other: Any, converge: Converge) -> None:
    other.check_output(f"rm {DIRECTORY}/n8n_encryption_key")
    assert converge("--limit", "n8n-platform-secrets-b").returncode == 0
    assert value(other, "n8n_encryption_key") == value(host, "n8n_encryption_key")


def test_check_mode_changes_nothing(host: Any, other: Any, converge: Converge) -> None:
    before = state(host, other)
    assert converge("--check", secrets_rotate=["n8n_runners_token"]).returncode == 0
    assert state(host, other) == before


def test_a_lost_encryption_key_stops_the_play(
    host: Any, other: Any, converge: Converge, aside: Callable[[Any, str], None]
) -> None:
    aside(host, f"{DIRECTORY}/n8n_encryption_key")
    before = state(host, other)
    # The new value of another secret must not be written either.
    result = converge(given={"n8n_jwt_secret": "never-to-be-written"})
    refused(result, "n8n_encryption_key is missing although it seems to be in use")
    assert "on another host of the platform" in " ".join(result.stdout.split())
    assert state(host, other) == before


def test_a_new_primary_host_does_not_make_keys_others_use(
    host: Any, other: Any, converge: Converge, aside: Callable[[Any, str], None]
) -> None:
    aside(host, DIRECTORY)
    aside(host, REGISTRY)
    refused(converge(), "in use on another host of the platform")
    assert not host.file(DIRECTORY).exists
    assert not host.file(REGISTRY).exists


@pytest.mark.parametrize("where", ["n8n_encryption_key", "n8n_encrytion_key"])
def test_a_contradicting_or_misspelt_value_stops_the_play(
    host: Any, other: Any, converge: Converge, where: str
) -> None:
    before = state(host, other)
    result = converge(given={where: "not-the-key-in-use"})
    text = "not the value in use" if where == "n8n_encryption_key" else "there is no secret"
    refused(result, text)
    assert "not-the-key-in-use" not in result.stdout.replace('"given"', "")
    assert state(host, other) == before

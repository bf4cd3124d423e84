"""The secrets on disk: who has which, and that nobody else can read them."""

from __future__ import annotations

import json
from typing import Any

DIRECTORY = "/etc/n8n-platform/secrets"
REGISTRY = "/var/lib/n8n-platform/secrets.json"
SHARED = {
    "n8n_encryption_key",
    "n8n_jwt_secret",
    "n8n_owner_password",
    "n8n_runners_token",
    "postgres_n8n_password",
    "redis_n8n_password",
}


def expected(host: Any) -> set[str]:
    """Return the names of the secrets this host must have."""
    primary = host.check_output("hostname") == "secrets-a"
    return SHARED | ({"redis_admin_password", "traefik_editor_password"} if primary else set())


def test_each_host_has_only_what_it_needs(host: Any) -> None:
    assert set(host.file(DIRECTORY).listdir()) == expected(host)


def test_only_root_reads_them(host: Any) -> None:
    directory = host.file(DIRECTORY)
    assert (directory.user, directory.mode) == ("root", 0o700)
    for name in directory.listdir():
        file = host.file(f"{directory.path}/{name}")
        assert (file.user, file.group, file.mode) == ("root", "root", 0o400), name
    assert host.run("runuser -u nobody -- cat %s/n8n_encryption_key", DIRECTORY).rc != 0


def test_values_are_long_and_all_different(host: Any) -> None:
    values = {name: host.file(f"{DIRECTORY}/{name}").content_string for name in expected(host)}
    assert len(set(values.values())) == len(values)
    assert all(len(value) >= 22 for value in values.values())
    if "traefik_editor_password" in values:
        assert values["traefik_editor_password"] == "given-by-the-inventory"


def test_record_and_journal_hold_no_value(host: Any) -> None:
    record = host.file(REGISTRY)
    assert (record.user, record.mode) == ("root", 0o600)
    assert set(json.loads(record.content_string)["secrets"]) == expected(host)
    written = record.content_string + host.check_output("journalctl --no-pager --boot")
    for name in expected(host):
        assert host.file(f"{DIRECTORY}/{name}").content_string not in written, name


def test_a_service_gets_a_secret_as_credential(host: Any) -> None:
    command = "systemd-run --quiet --wait --pipe --property=DynamicUser=yes --property=LoadCredential=key:%s/%s"
    received = host.check_output(f"{command} sh -c 'cat $CREDENTIALS_DIRECTORY/key'", DIRECTORY, "n8n_encryption_key")
    assert received == host.file(f"{DIRECTORY}/n8n_encryption_key").content_string

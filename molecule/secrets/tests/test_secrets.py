"""The secrets on disk: who has which, and that nobody else can read them."""

from __future__ import annotations

from typing import Any

SHARED = {
    "n8n_encryption_key",
    "n8n_jwt_secret",
    "n8n_owner_password",
    "n8n_runners_token",
    "postgres_n8n_password",
    "redis_n8n_password",
}


def test_each_host_has_only_what_it_needs(host: Any) -> None:
    files = set(host.file("/etc/n8n-platform/secrets").listdir())
    if host.check_output("hostname") == "secrets-b":
        assert files == SHARED
    else:
        assert files == SHARED | {"redis_admin_password", "traefik_editor_password"}


def test_only_root_reads_them(host: Any) -> None:
    directory = host.file("/etc/n8n-platform/secrets")
    assert (directory.user, directory.mode) == ("root", 0o700)
    for name in directory.listdir():
        file = host.file(f"{directory.path}/{name}")
        assert (file.user, file.group, file.mode) == ("root", "root", 0o400), name

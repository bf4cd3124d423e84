"""Certificates over time: kept, renewed by the timer and by a run, certified anew for new names."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from subprocess import CompletedProcess
from typing import Any

import pytest
import testinfra

testinfra_hosts = ["n8n-platform-pki-a"]
TLS = "/etc/n8n-platform/tls"
PROGRAM = "/usr/local/lib/n8n-platform/pki"
CONFIG = "/etc/n8n-platform/pki/pki.json"

Converge = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def other(host: Any) -> Any:
    """Return the host that is not the authority's."""
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    return testinfra.get_host(f"ansible://n8n-platform-pki-b?ansible_inventory={inventory}")


def shown(host: Any) -> dict[str, dict[str, Any]]:
    """Return what `pki show` says, by file name."""
    found = json.loads(host.check_output(f"{PROGRAM} show"))["certificates"]
    return {os.path.basename(entry["path"]): entry for entry in found}


def serials(host: Any) -> dict[str, str]:
    return {name: entry["serial"] for name, entry in shown(host).items()}


def test_another_run_and_the_timer_reissue_nothing(host: Any, other: Any, converge: Converge) -> None:
    before = serials(host), serials(other)
    result = converge()
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("changed=0") == 2, result.stdout
    host.check_output("systemctl start n8n-platform-pki.service")
    assert (serials(host), serials(other)) == before


def test_the_timer_renews_what_ends_soon(host: Any) -> None:
    settings = {**json.loads(host.check_output(f"cat {CONFIG}")), "days": 2, "renew_before": 1}
    host.check_output("rm %s/host.crt %s/public.crt", TLS, TLS)
    host.check_output("echo %s >/run/short.json", json.dumps(settings))
    host.check_output(f"{PROGRAM} --config /run/short.json issue")
    key = host.check_output("sha256sum %s/host.key", TLS)
    assert {shown(host)[name]["days_left"] for name in ("host.crt", "public.crt")} <= {1, 2}
    host.check_output("systemctl start n8n-platform-pki.service")
    assert {shown(host)[name]["days_left"] for name in ("host.crt", "public.crt")} <= {59, 60}
    assert host.check_output("sha256sum %s/host.key", TLS) == key
    host.check_output(f"openssl verify {TLS}/host.crt {TLS}/public.crt")


def test_a_new_public_name_is_certified_and_the_root_widened(host: Any, other: Any, converge: Converge) -> None:
    new = f"n8n.elsewhere-{uuid.uuid4().hex[:8]}.test"
    before, before_other = serials(host), serials(other)
    planned = converge("--check", "-v", pki_public_names=[new])
    assert planned.returncode == 0, planned.stdout
    assert f"issued {TLS}/public.crt (the names changed)" in planned.stdout
    assert (serials(host), serials(other)) == (before, before_other)
    assert converge(pki_public_names=[new]).returncode == 0
    assert shown(host)["public.crt"]["names"] == [new, "n8n.example.test"]
    assert serials(host)["host.crt"] == before["host.crt"]
    # The other host takes over the new root, which has the same key, and keeps its certificate.
    assert shown(other)["ca.crt"]["serial"] == shown(host)["ca.crt"]["serial"] != before["ca.crt"]
    assert serials(other)["host.crt"] == before_other["host.crt"]
    other.check_output(f"openssl verify {TLS}/host.crt")


def test_a_run_renews_the_other_host_too(host: Any, other: Any, converge: Converge) -> None:
    other.check_output("rm %s/host.crt", TLS)
    assert converge(pki_days=2, pki_renew_before=1).returncode == 0
    assert shown(other)["host.crt"]["days_left"] in (1, 2)
    untouched = serials(host)["host.crt"]
    assert converge().returncode == 0
    assert serials(host)["host.crt"] == untouched
    assert shown(host)["public.crt"]["names"] == ["*.hooks.example.test", "n8n.example.test", "192.0.2.7"]
    assert shown(other)["host.crt"]["days_left"] in (59, 60)
    other.check_output(f"openssl verify {TLS}/host.crt")


def test_a_lost_authority_key_stops_the_play(host: Any, other: Any, converge: Converge) -> None:
    before = serials(host), serials(other)
    host.check_output("mv /etc/n8n-platform/pki/ca.key /root/ca.key")
    try:
        result = converge()
        assert result.returncode != 0
        assert "ca.key of the internal certificate authority is missing although" in " ".join(result.stdout.split())
        assert not host.file("/etc/n8n-platform/pki/ca.key").exists
        assert (serials(host), serials(other)) == before
    finally:
        host.check_output("mv /root/ca.key /etc/n8n-platform/pki/ca.key")


@pytest.mark.parametrize("variables", [{"pki_days": 398}, {"pki_days": 30, "pki_renew_before": 30}])
def test_impossible_times_are_refused(host: Any, converge: Converge, variables: dict[str, int]) -> None:
    before = serials(host)
    result = converge(**variables)
    assert result.returncode != 0
    assert "may be at most 397" in " ".join(result.stdout.split())
    assert serials(host) == before

"""The certificates as clients see them: accepted under the right names, refused under others."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import testinfra

TLS = "/etc/n8n-platform/tls"
PROGRAM = "/usr/local/lib/n8n-platform/pki"
CLIENT = "timeout 10 openssl s_client -connect %s:9443 -verify_return_error -brief"


def is_authority(host: Any) -> bool:
    return bool(host.check_output("hostname") == "pki-a")


@pytest.fixture
def peer(host: Any) -> Any:
    """Return the other host of the platform."""
    name = "b" if is_authority(host) else "a"
    inventory = os.environ["MOLECULE_INVENTORY_FILE"]
    return testinfra.get_host(f"ansible://n8n-platform-pki-{name}?ansible_inventory={inventory}")


@pytest.fixture
def served(host: Any, request: pytest.FixtureRequest) -> Iterator[str]:
    """Serve one of the certificates on port 9443 as a service of the platform does; return the address."""
    name = getattr(request, "param", "host")
    host.check_output(
        "systemd-run --unit=tls-probe --property=DynamicUser=yes --property=LoadCredential=key:%s/%s.key"
        " sh -c 'exec openssl s_server -quiet -accept 9443 -www -cert %s/%s.crt -key $CREDENTIALS_DIRECTORY/key'",
        TLS,
        name,
        TLS,
        name,
    )
    host.check_output("timeout 10 sh -c 'until ss -Hltn sport = 9443 | grep -q .; do :; done'")
    yield host.check_output("hostname -I").split()[0]
    host.check_output("systemctl stop tls-probe")


def test_who_has_which_files(host: Any) -> None:
    names = {"ca.crt", "host.crt", "host.key"} | ({"public.crt", "public.key"} if is_authority(host) else set())
    assert set(host.file(TLS).listdir()) == names
    for name in names:
        file = host.file(f"{TLS}/{name}")
        assert (file.user, file.group, file.mode) == ("root", "root", 0o400 if name.endswith(".key") else 0o444), name
    assert host.file("/etc/n8n-platform/pki/ca.key").exists == is_authority(host)
    assert host.file("/etc/n8n-platform/pki").mode == 0o700


def test_the_chain_holds_also_by_the_systems_own_trust_store(host: Any) -> None:
    for leaf in ("host", "public") if is_authority(host) else ("host",):
        for store in (f"-no-CApath -no-CAstore -CAfile {TLS}/ca.crt", ""):
            host.check_output(f"openssl verify -x509_strict -purpose sslserver {store} {TLS}/{leaf}.crt")


def test_the_other_host_connects_by_address_and_name(host: Any, peer: Any, served: str) -> None:
    name = host.check_output("hostname")
    for expected in (f"-verify_ip {served}", f"-verify_hostname {name}", f"-verify_hostname n8n-platform-{name}"):
        said = peer.run(f"{CLIENT} {expected} </dev/null", served)
        assert (said.rc, "Verification: OK" in said.stderr) == (0, True), said.stderr


@pytest.mark.parametrize("expected", ["-verify_hostname www.bank.test", "-verify_ip 192.0.2.99"])
def test_a_client_refuses_another_name(peer: Any, served: str, expected: str) -> None:
    said = peer.run(f"{CLIENT} {expected} </dev/null", served)
    assert said.rc != 0
    assert "mismatch" in said.stderr


def test_the_authority_cannot_certify_the_rest_of_the_internet(host: Any) -> None:
    if not is_authority(host):
        assert not host.file("/etc/n8n-platform/pki/ca.crt").exists
        return
    script = (
        "cd $(mktemp -d) && openssl req -x509 -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -keyout k"
        " -CA /etc/n8n-platform/pki/ca.crt -CAkey /etc/n8n-platform/pki/ca.key -subj /CN=x"
        " -addext subjectAltName=DNS:www.bank.test -addext basicConstraints=critical,CA:false -out c"
        " && openssl verify c"
    )
    said = host.run(script)
    assert said.rc != 0
    assert "permitted subtree violation" in said.stderr


def test_the_public_certificate_has_the_public_names(host: Any) -> None:
    shown = json.loads(host.check_output(f"{PROGRAM} show"))["certificates"]
    public = [entry for entry in shown if entry["path"].endswith("public.crt")]
    if is_authority(host):
        assert public[0]["names"] == ["*.hooks.example.test", "n8n.example.test", "192.0.2.7"]
        assert public[0]["days_left"] in (59, 60)
    else:
        assert public == []


def test_the_root_was_fetched_to_the_controller(host: Any) -> None:
    with open(f"{os.environ['MOLECULE_EPHEMERAL_DIRECTORY']}/ca.crt", encoding="utf-8") as stream:
        assert stream.read() == host.file(f"{TLS}/ca.crt").content_string


def test_the_timer_runs_where_the_authority_is(
    host: Any, running: Callable[[str], None], exposure: Callable[[str], float]
) -> None:
    if is_authority(host):
        running("n8n-platform-pki.timer")
        assert "Persistent=yes" in host.check_output("systemctl show -p Persistent n8n-platform-pki.timer")
        assert exposure("n8n-platform-pki.service") <= 1.0
    else:
        assert not host.file("/etc/systemd/system/n8n-platform-pki.timer").exists


def test_private_keys_are_in_no_journal(host: Any) -> None:
    journal = host.check_output("journalctl --no-pager --boot")
    assert "PRIVATE KEY" not in journal

"""Certificate files for the trust store."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from plugins.filter.certificates import FilterModule, certificate_files

ONE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
TWO = "-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----"


def test_one_certificate_keeps_its_name() -> None:
    assert certificate_files([f"issued to us\n{ONE}\n"], ["/home/ada/root.pem"], "/certs") == [
        {"path": "/certs/root.crt", "content": ONE + "\n"}
    ]


def test_a_bundle_is_split() -> None:
    files = certificate_files([f"{ONE}\n{TWO}"], ["company.pem"], "/certs")
    assert files == [
        {"path": "/certs/company-1.crt", "content": ONE + "\n"},
        {"path": "/certs/company-2.crt", "content": TWO + "\n"},
    ]


def test_nothing_gives_nothing() -> None:
    assert certificate_files([], [], "/certs") == []


@pytest.mark.parametrize(
    ("texts", "sources", "message"),
    [
        (["localhost"], ["hostname"], "hostname holds no PEM certificate"),
        ([ONE + "\n-----BEGIN PRIVATE" + " KEY-----"], ["both.pem"], "both.pem holds a private key"),
        ([ONE, TWO], ["a/root.pem", "b/root.pem"], "called root.crt"),
    ],
)
def test_what_cannot_be_trusted_is_refused(texts: list[str], sources: list[str], message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=message):
        certificate_files(texts, sources, "/certs")


def test_filter_has_its_name() -> None:
    assert set(FilterModule().filters()) == {"certificate_files"}

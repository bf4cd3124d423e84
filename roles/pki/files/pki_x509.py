# SPDX-License-Identifier: GPL-3.0-or-later
"""X.509 by means of the openssl program: what is in a certificate, and what goes into one."""

from __future__ import annotations

import datetime
import ipaddress
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

BACKDATE = datetime.timedelta(hours=1)  # clocks of hosts differ
DNS_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
COMMON_NAME = re.compile(r"[A-Za-z0-9 ._()*:-]+")
LONGEST_COMMON_NAME = 64  # of X.509; clients read the alternative names, which may be longer

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class RefusalError(Exception):
    """Something that must not or cannot be done; the text says what and what to do."""


@dataclass(frozen=True)
class Names:
    """What a certificate is for: DNS names and IP addresses, sorted and without doubles."""

    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()

    @classmethod
    def parse(cls, names: Iterable[str]) -> Names:
        """Sort names into DNS names and addresses.

        Raises:
            RefusalError: a name is neither.
        """
        dns, ips = set(), set()
        for name in names:
            try:
                ips.add(str(ipaddress.ip_address(name)))
            except ValueError:
                lower = name.lower().rstrip(".")
                if not DNS_NAME.fullmatch(lower):
                    raise RefusalError(f"{name!r} is neither a host name nor an IP address.") from None
                dns.add(lower)
        return cls(tuple(sorted(dns)), tuple(sorted(ips)))

    def extension(self) -> str:
        """Return the names as openssl's subjectAltName."""
        return ",".join([*(f"DNS:{name}" for name in self.dns), *(f"IP:{address}" for address in self.ips)])


@dataclass(frozen=True)
class Scope:
    """What an authority may certify (X.509 name constraints): domains with all below them, and networks."""

    domains: frozenset[str] = frozenset()
    networks: frozenset[Network] = frozenset()

    @classmethod
    def parse(cls, names: Iterable[str]) -> Scope:
        """Sort domains and networks (10.0.0.0/8, 192.0.2.7) apart."""
        networks: set[Network] = set()
        domains: set[str] = set()
        for name in names:
            try:
                networks.add(ipaddress.ip_network(name, strict=False))
            except ValueError:
                domains.update(Names.parse([name.removeprefix("*.")]).dns)
        return cls(frozenset(domains), frozenset(networks))

    def __or__(self, other: Scope) -> Scope:
        return Scope(self.domains | other.domains, self.networks | other.networks)

    def outside(self, names: Names) -> list[str]:
        """Return those names this scope does not permit."""
        strange = [
            name
            for name in names.dns
            if not any(("." + name.removeprefix("*.")).endswith("." + domain) for domain in self.domains)
        ]
        addresses = [ipaddress.ip_address(address) for address in names.ips]
        strange += [str(address) for address in addresses if not any(address in network for network in self.networks)]
        return strange

    def covers(self, other: Scope) -> bool:
        """Tell whether all of another scope is in this one."""
        return not self.outside(Names(tuple(other.domains))) and all(
            any(theirs.version == ours.version and theirs.subnet_of(ours) for ours in self.networks)  # type: ignore[arg-type]
            for theirs in other.networks
        )

    def section(self) -> str:
        """Return the body of openssl's nameConstraints section."""
        lines = [f"permitted;DNS.{number} = {domain}" for number, domain in enumerate(sorted(self.domains))]
        ranges = sorted(f"{network.network_address}/{network.netmask}" for network in self.networks)
        return "\n".join(lines + [f"permitted;IP.{number} = {text}" for number, text in enumerate(ranges)])


@dataclass(frozen=True)
class Certificate:
    """What this program reads from a certificate."""

    serial: str
    fingerprint: str
    not_after: datetime.datetime
    public_key: str
    names: Names
    scope: Scope

    @classmethod
    def parse(cls, pem: str) -> Certificate:
        """Read a certificate in PEM.

        Raises:
            RefusalError: openssl does not understand it.
        """
        options = ("-serial", "-enddate", "-fingerprint", "-sha256", "-pubkey")
        text = openssl("x509", "-noout", *options, "-ext", "subjectAltName,nameConstraints", stdin=pem)

        def first(pattern: str) -> str:
            found = re.search(pattern, text, re.DOTALL)
            return found.group(1) if found else ""

        end = datetime.datetime.strptime(first(r"notAfter=([^\n]+) GMT"), "%b %d %H:%M:%S %Y")
        alternatives = first(r"Subject Alternative Name:[^\n]*\n([^\n]*)")
        permitted = [domain for _kind, domain in re.findall(r"^\s+(DNS):(\S+)$", text, re.MULTILINE)]
        ranges = re.findall(r"^\s+IP:(\S+)/(\S+)$", text, re.MULTILINE)
        masks = [(address, bin(int(ipaddress.ip_address(mask))).count("1")) for address, mask in ranges]
        return cls(
            serial=first(r"serial=(\w+)"),
            fingerprint=first(r"[Ff]ingerprint=([0-9A-F:]+)"),
            not_after=end.replace(tzinfo=datetime.UTC),
            public_key=first(r"(-----BEGIN PUBLIC KEY-----.*-----END PUBLIC KEY-----)"),
            names=Names.parse(re.findall(r"(?:DNS|IP Address):([^,\s]+)", alternatives)),
            scope=Scope.parse([*permitted, *(f"{address}/{bits}" for address, bits in masks)]),
        )

    def left(self) -> datetime.timedelta:
        """Return how long it is still valid."""
        return self.not_after - now()


def now() -> datetime.datetime:
    """Return the present time, to the second."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def openssl(*arguments: str, stdin: str = "", cwd: str | None = None) -> str:
    """Run openssl and return what it printed.

    Raises:
        RefusalError: openssl failed; the text has its message.
    """
    return program("openssl", *arguments, stdin=stdin, cwd=cwd)


def program(*command: str, stdin: str = "", cwd: str | None = None) -> str:
    """Run a program and return what it printed.

    Raises:
        RefusalError: it is missing or failed.
    """
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, cwd=cwd)
    except FileNotFoundError:
        raise RefusalError(f"{command[0]} is missing: install the packages openssl and ca-certificates.") from None
    if done.returncode:
        raise RefusalError(f"{' '.join(command[:2])} failed: {' '.join(done.stderr.split())}")
    return done.stdout


def public_key(path: Path) -> str:
    """Return the public part of a private key."""
    return openssl("pkey", "-in", str(path), "-pubout").strip()


def make_request(key: Path, name: str) -> str:
    """Return a certificate request that proves possession of a key.

    Raises:
        RefusalError: the name cannot be the common name of a certificate.
    """
    if not COMMON_NAME.fullmatch(name):
        raise RefusalError(f"{name!r} has characters that cannot be in the name of a certificate.")
    return openssl("req", "-new", "-sha256", "-key", str(key), "-subj", f"/CN={name[:LONGEST_COMMON_NAME]}")


def certify(directory: Path, request: str, extensions: str, days: int, *, root: bool = False) -> str:
    """Return the certificate that the authority in a directory (ca.key, ca.crt) makes of a request, in PEM."""
    start, end = now() - BACKDATE, now() + datetime.timedelta(days=days)
    with tempfile.TemporaryDirectory() as scratch:
        files = {
            "index.txt": "",
            "request.pem": request,
            "ca.cnf": "[ca]\ndefault_ca = this\n[this]\ndatabase = index.txt\nnew_certs_dir = .\ndefault_md = sha256\n"
            "rand_serial = yes\nunique_subject = no\npolicy = any\ncopy_extensions = none\n"
            "x509_extensions = extensions\n"
            f"[any]\ncommonName = supplied\n[extensions]\n{extensions}\n",
        }
        for name, text in files.items():
            (Path(scratch) / name).write_text(text, encoding="utf-8")
        issuer = ["-selfsign"] if root else ["-cert", str(directory.resolve() / "ca.crt")]
        openssl(
            *("ca", "-batch", "-notext", "-config", "ca.cnf", "-in", "request.pem", "-out", "certificate.pem"),
            *("-keyfile", str(directory.resolve() / "ca.key"), *issuer),
            *("-startdate", start.strftime("%Y%m%d%H%M%SZ"), "-enddate", end.strftime("%Y%m%d%H%M%SZ")),
            cwd=scratch,
        )
        return (Path(scratch) / "certificate.pem").read_text(encoding="utf-8")

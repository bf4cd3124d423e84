#!/usr/bin/python3 -B
# SPDX-License-Identifier: GPL-3.0-or-later
"""The platform's internal certificate authority: one root, and short-lived certificates for its hosts.

Needs nothing but Python and the openssl program. Reads what to do from a configuration file, prints JSON, and changes
nothing that is as it should be. Exit status 3 is a refusal, told on standard error in one sentence.

    pki issue --init   the host of the authority: make the authority if there is none, then this host's certificates
    pki issue          the same without ever touching the authority; what the timer runs
    pki request        any other host: take the root over from standard input, ask for the certificates that are due
    pki sign           the host of the authority: certify the requests on standard input
    pki install        the other host: put the certificates on standard input in place
    pki show           what is there, and for how long
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pki_x509 import (
    Certificate,
    Names,
    RefusalError,
    Scope,
    certify,
    make_request,
    openssl,
    program,
    public_key,
)

DEFAULT_CONFIG = "/etc/n8n-platform/pki/pki.json"
REFUSED = 3
LONGEST_DAYS = 397  # what browsers accept of a certificate


@dataclass(frozen=True)
class Leaf:
    """A certificate this host shall have."""

    name: str
    names: Names
    certificate: Path
    key: Path
    usage: str

    @classmethod
    def parse(cls, entry: dict[str, Any]) -> Leaf:
        """Read an entry of the configuration file."""
        paths = Path(entry["certificate"]), Path(entry["key"])
        return cls(str(entry["name"]), Names.parse(entry["names"]), *paths, str(entry["usage"]))


@dataclass(frozen=True)
class Config:
    """The configuration file."""

    directory: Path  # the authority: ca.key, ca.crt, issued.jsonl
    name: str
    scope: Scope
    ca_days: int
    days: int
    renew_before: int
    root: Path  # the copy of the root certificate on every host
    trust_store: Path | None  # the copy that update-ca-certificates takes up
    leaves: tuple[Leaf, ...]

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read the file.

        Raises:
            RefusalError: a value cannot be right.
        """
        content = json.loads(path.read_text(encoding="utf-8"))
        store = content.get("trust_store")
        config = cls(
            directory=Path(content["directory"]),
            name=str(content["name"]),
            scope=Scope.parse(content["scope"]),
            ca_days=int(content["ca_days"]),
            days=int(content["days"]),
            renew_before=int(content["renew_before"]),
            root=Path(content["root"]),
            trust_store=Path(store) if store else None,
            leaves=tuple(Leaf.parse(entry) for entry in content["leaves"]),
        )
        if not 0 < config.renew_before < config.days <= LONGEST_DAYS:
            raise RefusalError(
                f"Certificates may be valid for at most {LONGEST_DAYS} days and are renewed before they end:"
                f" 0 < renew_before ({config.renew_before}) < days ({config.days}) <= {LONGEST_DAYS} does not hold."
            )
        return config

    @property
    def ca_key(self) -> Path:
        """The private key of the authority."""
        return self.directory / "ca.key"

    @property
    def ca_certificate(self) -> Path:
        """The root certificate, where the authority lives."""
        return self.directory / "ca.crt"

    @property
    def issued(self) -> Path:
        """The record of everything certified, one JSON object a line."""
        return self.directory / "issued.jsonl"


@dataclass
class Result:
    """What happened, printed as JSON."""

    changes: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Return the JSON."""
        return json.dumps({"changed": bool(self.changes), "changes": self.changes, **self.more}, indent=2)


def write(path: Path, text: str, mode: int) -> None:
    """Replace a file so that readers see the old content or the new one."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Path) -> str:
    """Return the text of a file, empty if there is none."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Keep the timer and a playbook from working on the same files at the same time."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def make_key(path: Path) -> None:
    """Make a private key (ECDSA P-256) that only root can read."""
    write(path, openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"), 0o400)


def init(config: Config, result: Result, *, check: bool) -> None:
    """Make sure of the authority.

    The root is made anew with the same key and subject when it may not yet certify all names, or ends soon:
    certificates issued before stay valid under both.

    Raises:
        RefusalError: the key is lost, or does not belong to the root.
    """
    evidence = [path for path in (config.ca_certificate, config.issued, config.root) if path.exists()]
    if not config.ca_key.exists() or not config.ca_certificate.exists():
        missing = config.ca_certificate if config.ca_key.exists() else config.ca_key
        if evidence:
            raise RefusalError(
                f"{missing} of the internal certificate authority is missing although certificates of it exist"
                f" ({', '.join(map(str, evidence))}): restore {config.directory} from the backup; to start over with a"
                f" new authority, which every client must come to trust, remove {config.directory} here and"
                f" {config.root.parent} on every host of the platform."
            )
        result.changes.append("made the authority")
        if check:
            return
        if not config.ca_key.exists():
            make_key(config.ca_key)
        make_root(config, make_request(config.ca_key, config.name), config.scope)
        return
    present = Certificate.parse(read(config.ca_certificate))
    if public_key(config.ca_key) != present.public_key:
        raise RefusalError(
            f"{config.ca_key} is not the key of {config.ca_certificate}: restore both from the same backup."
        )
    reasons = [] if present.scope.covers(config.scope) else ["may certify more names"]
    reasons += ["valid for longer"] if present.left() < datetime.timedelta(days=LONGEST_DAYS) else []
    if reasons:
        result.changes.append(f"renewed the root with the same key ({', '.join(reasons)})")
        if not check:
            paths = "-in", str(config.ca_certificate), "-signkey", str(config.ca_key)
            make_root(config, openssl("x509", "-x509toreq", *paths), present.scope | config.scope)


def make_root(config: Config, request: str, scope: Scope) -> None:
    """Make the self-signed root certificate."""
    extensions = (
        "basicConstraints = critical, CA:true, pathlen:0\nkeyUsage = critical, keyCertSign, cRLSign\n"
        f"subjectKeyIdentifier = hash\nnameConstraints = critical, @scope\n[scope]\n{scope.section()}"
    )
    write(config.ca_certificate, certify(config.directory, request, extensions, config.ca_days, root=True), 0o444)


def sign(config: Config, leaf: Leaf, request: str) -> str:
    """Certify a request and take it into the record.

    Raises:
        RefusalError: the authority is missing, or may not certify one of the names.
    """
    if not config.ca_key.exists() or not config.ca_certificate.exists():
        raise RefusalError(f"There is no authority in {config.directory}: run the playbook for this host first.")
    authority = Certificate.parse(read(config.ca_certificate))
    if strange := authority.scope.outside(leaf.names):
        raise RefusalError(
            f"The root may not certify {', '.join(strange)}: run the playbook for the host of the authority, which"
            " widens it."
        )
    extensions = (
        "basicConstraints = critical, CA:false\nkeyUsage = critical, digitalSignature\n"
        f"extendedKeyUsage = {leaf.usage}\nsubjectKeyIdentifier = hash\nauthorityKeyIdentifier = keyid:always\n"
        f"subjectAltName = {leaf.names.extension()}"
    )
    pem = certify(config.directory, request, extensions, config.days)
    made = Certificate.parse(pem)
    line = {
        "serial": made.serial,
        "name": leaf.name,
        "names": leaf.names.extension(),
        "until": made.not_after.isoformat(),
    }
    with config.issued.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
    return pem


def due(config: Config, leaf: Leaf, root: Path) -> str:
    """Say why a certificate must be issued; empty if the present one will do."""
    if not leaf.key.exists() or not leaf.certificate.exists():
        return "there is none"
    try:
        present = Certificate.parse(read(leaf.certificate))
        fits = public_key(leaf.key) == present.public_key
    except (RefusalError, UnicodeDecodeError):
        fits = False
    if not fits:
        return "it is damaged or of another key"
    if present.names != leaf.names:
        return "the names changed"
    if present.left() < datetime.timedelta(days=config.renew_before):
        return f"it ends on {present.not_after.date()}"
    try:
        openssl("verify", "-no-CApath", "-no-CAstore", "-CAfile", str(root), str(leaf.certificate))
    except RefusalError:
        return "it is not of this authority"
    return ""


def install(leaf: Leaf, pem: str, root: Path) -> None:
    """Put a certificate in place after checking that it fits the key and the authority.

    Raises:
        RefusalError: it does not.
    """
    if Certificate.parse(pem).public_key != public_key(leaf.key):
        raise RefusalError(f"The certificate for {leaf.name} is not of the key {leaf.key}.")
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".pem") as candidate:
        candidate.write(pem)
        candidate.flush()
        openssl("verify", "-no-CApath", "-no-CAstore", "-CAfile", str(root), candidate.name)
    write(leaf.certificate, pem, 0o444)


def issue(config: Config, result: Result, *, check: bool) -> None:
    """Make sure of the certificates of the host on which the authority is.

    A key that exists is kept: then only one file changes, and whoever reads certificate and key never sees two that do
    not belong together.
    """
    for leaf in config.leaves:
        if reason := due(config, leaf, config.ca_certificate):
            result.changes.append(f"issued {leaf.certificate} ({reason})")
            if not check:
                prepare_key(leaf)
                install(leaf, sign(config, leaf, make_request(leaf.key, leaf.name)), config.ca_certificate)


def prepare_key(leaf: Leaf) -> None:
    """Make sure of a usable key."""
    try:
        public_key(leaf.key)
    except RefusalError:
        make_key(leaf.key)


def hand_out(config: Config, root: str, result: Result, *, check: bool) -> None:
    """Put the root certificate where services and the system's programs look for it."""
    if read(config.root) != root:
        result.changes.append(f"wrote {config.root}")
        if not check:
            write(config.root, root, 0o444)
    if config.trust_store and read(config.trust_store) != root:
        result.changes.append(f"wrote {config.trust_store}")
        if not check:
            write(config.trust_store, root, 0o644)
            try:
                program("update-ca-certificates")
            except RefusalError:
                config.trust_store.unlink()
                raise


def request(config: Config, given: dict[str, Any], result: Result, *, check: bool) -> None:
    """Take the root over and ask for the certificates that are due.

    Raises:
        RefusalError: this host trusts another authority of the platform.
    """
    root = str(given["ca"])
    if config.root.exists():
        keys = Certificate.parse(read(config.root)).public_key, Certificate.parse(root).public_key
        if keys[0] != keys[1]:
            raise RefusalError(
                f"This host trusts another authority ({config.root}) than the one that would certify it now: restore"
                f" {config.directory} on the primary host from the backup, or remove {config.root.parent} on every host"
                " to start over with the new one."
            )
    hand_out(config, root, result, check=check)
    requests = {}
    for leaf in config.leaves:
        reason = "there is none" if not config.root.exists() else due(config, leaf, config.root)
        if reason:
            result.changes.append(f"asked for {leaf.certificate} ({reason})")
            if not check:
                prepare_key(leaf)
                requests[str(leaf.certificate)] = make_request(leaf.key, leaf.name)
    result.more["requests"] = requests


def sign_all(config: Config, given: dict[str, Any], result: Result) -> None:
    """Certify the requests of another host. Names come from the playbook's side, only the key from the request."""
    certificates = {}
    for leaf in map(Leaf.parse, given["leaves"]):
        if pending := given["requests"].get(str(leaf.certificate)):
            openssl("req", "-verify", "-noout", stdin=pending)
            certificates[str(leaf.certificate)] = sign(config, leaf, pending)
            result.changes.append(f"certified {leaf.name}")
    result.more["certificates"] = certificates


def install_all(config: Config, given: dict[str, Any], result: Result) -> None:
    """Put the certificates that were asked for in place."""
    for leaf in config.leaves:
        if pem := given["certificates"].get(str(leaf.certificate)):
            install(leaf, str(pem), config.root)
            result.changes.append(f"installed {leaf.certificate}")


def show(config: Config, result: Result) -> None:
    """List the root and the certificates of this host."""
    listed = []
    for name, path in [("ca", config.root), *((leaf.name, leaf.certificate) for leaf in config.leaves)]:
        if not path.exists():
            listed.append({"name": name, "path": str(path), "present": False})
            continue
        found = Certificate.parse(read(path))
        listed.append(
            {
                "name": name,
                "path": str(path),
                "present": True,
                "serial": found.serial,
                "sha256": found.fingerprint,
                "names": [*found.names.dns, *found.names.ips],
                "not_after": found.not_after.isoformat(),
                "days_left": found.left().days,
            }
        )
    result.more["certificates"] = listed


def run(command: str, config: Config, *, initial: bool, check: bool) -> Result:
    """Carry out one command."""
    result = Result()
    given = json.load(sys.stdin) if command in ("request", "sign", "install") else {}
    if command == "issue":
        with alone(config.directory):
            if initial:
                init(config, result, check=check)
            if initial and config.ca_certificate.exists():
                hand_out(config, read(config.ca_certificate), result, check=check)
            issue(config, result, check=check)
    elif command == "request":
        request(config, given, result, check=check)
    elif command == "sign":
        with alone(config.directory):
            sign_all(config, given, result)
    elif command == "install":
        install_all(config, given, result)
    else:
        show(config, result)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path(DEFAULT_CONFIG))
    parser.add_argument("--check", action="store_true", help="only say what would be done")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("issue", "request", "sign", "install", "show"):
        command = commands.add_parser(name)
        if name == "issue":
            command.add_argument("--init", action="store_true", help="make or renew the authority, too")
    options = parser.parse_args(arguments)
    try:
        config = Config.load(options.config)
        result = run(options.command, config, initial=getattr(options, "init", False), check=options.check)
    except RefusalError as refusal:
        print(refusal, file=sys.stderr)
        return REFUSED
    print(result.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())

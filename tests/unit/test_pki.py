# SPDX-License-Identifier: GPL-3.0-or-later
"""The program of the certificate authority, run for real with openssl."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shutil
import socket
import ssl
import stat
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).parents[2] / "roles/pki/files"
SCOPE = ["example.test", "localhost", "10.0.0.0/8", "127.0.0.0/8", "::1/128", "fc00::/7"]
NAMES = ["a.example.test", "localhost", "127.0.0.1", "::1"]


# The program imports its other half from the directory it lies in, as Python lets every script do.
sys.path.insert(0, str(SOURCE))
pki: Any = importlib.import_module("pki")
x509: Any = importlib.import_module("pki_x509")


class Machine:
    """A host with its configuration file."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.authority, self.tls = root / "pki", root / "tls"
        for directory in (self.authority, self.tls):
            directory.mkdir(parents=True)
        self.monkeypatch = monkeypatch
        self.config: dict[str, Any] = {
            "directory": str(self.authority),
            "name": "n8n platform (test)",
            "scope": SCOPE,
            "ca_days": 3650,
            "days": 60,
            "renew_before": 20,
            "root": str(self.tls / "ca.crt"),
            "trust_store": None,
            "leaves": [
                {
                    "name": "host",
                    "names": NAMES,
                    "certificate": str(self.tls / "host.crt"),
                    "key": str(self.tls / "host.key"),
                    "usage": "serverAuth, clientAuth",
                }
            ],
        }

    def run(self, *arguments: str, stdin: Any = None, code: int = 0, **changes: Any) -> Any:
        """Run the program with a changed configuration; return its JSON, or what it refused."""
        path = self.authority.parent / "pki.json"
        path.write_text(json.dumps({**self.config, **changes}), encoding="utf-8")
        output, error = io.StringIO(), io.StringIO()
        self.monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(stdin)))
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
            assert pki.main(["--config", str(path), *arguments]) == code, error.getvalue()
        return json.loads(output.getvalue()) if code == 0 else error.getvalue()

    def names(self, *names: str) -> list[dict[str, Any]]:
        """Return the leaves with other names."""
        return [{**self.config["leaves"][0], "names": list(names)}]

    def certificate(self, name: str = "host.crt") -> Any:
        return pki.Certificate.parse((self.tls / name).read_text(encoding="utf-8"))

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for folder in (self.authority, self.tls) for path in folder.iterdir()}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "a", monkeypatch)


@pytest.fixture
def issued(machine: Machine) -> Machine:
    """Return a host that has its authority and certificate."""
    machine.run("issue", "--init")
    return machine


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a host without an authority."""
    machine = Machine(tmp_path / "b", monkeypatch)
    machine.config["leaves"][0]["names"] = ["b.example.test", "10.0.0.2"]
    return machine


def handshake(machine: Machine, name: str) -> None:
    """Connect to a server that has the host's certificate, as a client that trusts the root, under a name."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(machine.tls / "host.crt", machine.tls / "host.key")
    client = ssl.create_default_context(cafile=str(machine.tls / "ca.crt"))
    near, far = socket.socketpair()

    def serve() -> None:
        with contextlib.suppress(ssl.SSLError, OSError), server.wrap_socket(far, server_side=True) as accepted:
            accepted.unwrap()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with near, client.wrap_socket(near, server_hostname=name) as connected:
            assert connected.version() == "TLSv1.3"
    finally:
        near.close()
        thread.join(timeout=10)


def test_first_run_makes_all_and_the_second_nothing(machine: Machine) -> None:
    planned = machine.run("--check", "issue", "--init")
    assert planned["changed"]
    assert machine.files() == {}
    assert machine.run("issue", "--init")["changes"] == [
        "made the authority",
        f"wrote {machine.tls}/ca.crt",
        f"issued {machine.tls}/host.crt (there is none)",
    ]
    before = machine.files()
    for arguments in (["issue", "--init"], ["issue"], ["--check", "issue", "--init"]):
        assert machine.run(*arguments) == {"changed": False, "changes": []}
    assert machine.files() == before
    for key in (machine.authority / "ca.key", machine.tls / "host.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o400


def test_certificate_has_the_names_and_the_time_asked_for(issued: Machine) -> None:
    found = issued.certificate()
    assert found.names == pki.Names.parse(NAMES)
    assert timedelta(days=59, hours=23) < found.left() <= timedelta(days=60)
    assert found.serial in (issued.authority / "issued.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["a.example.test", "localhost", "127.0.0.1"])
def test_a_client_that_trusts_the_root_connects(issued: Machine, name: str) -> None:
    handshake(issued, name)


@pytest.mark.parametrize("name", ["b.example.test", "127.0.0.2"])
def test_a_client_refuses_another_name(issued: Machine, name: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(issued, name)


def test_a_stolen_key_cannot_impersonate_the_rest_of_the_internet(
    issued: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Certify a foreign name behind the program's back: clients refuse it by the root's name constraints."""
    monkeypatch.setattr(pki.Scope, "outside", lambda _scope, _names: [])
    monkeypatch.setattr(pki, "install", lambda leaf, pem, _root: pki.write(leaf.certificate, pem, 0o444))
    issued.run("issue", leaves=issued.names("www.bank.test"))
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
        handshake(issued, "www.bank.test")


def test_renews_in_time_with_the_same_key(issued: Machine) -> None:
    key = (issued.tls / "host.key").read_bytes()
    before = issued.certificate()
    assert "it ends on" in issued.run("issue", days=90, renew_before=61)["changes"][0]
    assert issued.certificate().serial != before.serial
    assert issued.certificate().left() > timedelta(days=89)
    assert (issued.tls / "host.key").read_bytes() == key


def test_an_expired_certificate_is_replaced(issued: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    issued.run("issue", leaves=issued.names("a.example.test"), days=2, renew_before=1)
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(days=30)
    monkeypatch.setattr(x509, "now", lambda: later)
    assert "it ends on" in issued.run("--check", "issue", leaves=issued.names("a.example.test"))["changes"][0]


def test_changed_names_are_certified_anew(issued: Machine) -> None:
    result = issued.run("issue", leaves=issued.names(*NAMES, "new.example.test"))
    assert result["changes"] == [f"issued {issued.tls}/host.crt (the names changed)"]
    assert "new.example.test" in issued.certificate().names.dns


@pytest.mark.parametrize("damage", ["text", "binary", "key", "gone"])
def test_damaged_files_are_replaced(issued: Machine, damage: str) -> None:
    if damage == "text":
        (issued.tls / "host.crt").chmod(0o644)
        (issued.tls / "host.crt").write_text("nonsense", encoding="utf-8")
    elif damage == "binary":
        (issued.tls / "host.crt").chmod(0o644)
        (issued.tls / "host.crt").write_bytes(b"\xff\xfe")
    elif damage == "key":
        (issued.tls / "host.key").chmod(0o600)
        (issued.tls / "host.key").write_text("nonsense", encoding="utf-8")
    else:
        (issued.tls / "host.key").unlink()
    assert issued.run("issue")["changed"]
    handshake(issued, "localhost")
    assert not issued.run("issue")["changed"]


@pytest.mark.parametrize("lost", [["ca.key"], ["ca.crt"], ["ca.key", "ca.crt", "issued.jsonl"]])
def test_a_lost_authority_is_refused_not_made_anew(issued: Machine, lost: list[str]) -> None:
    for name in lost:
        (issued.authority / name).unlink()
    before = issued.files()
    refusal = issued.run("issue", "--init", code=3)
    assert f"{issued.authority}/{lost[0]} of the internal certificate authority is missing" in refusal
    assert "restore" in refusal
    assert issued.files() == before


def test_an_interrupted_first_run_goes_on(machine: Machine) -> None:
    pki.make_key(machine.authority / "ca.key")
    key = (machine.authority / "ca.key").read_bytes()
    assert machine.run("issue", "--init")["changed"]
    assert (machine.authority / "ca.key").read_bytes() == key


def test_a_foreign_key_is_refused(issued: Machine) -> None:
    pki.make_key(issued.authority / "ca.key")
    assert "is not the key of" in issued.run("issue", "--init", code=3)


def test_more_names_widen_the_root_and_old_certificates_stay_valid(issued: Machine) -> None:
    old_root, serial = (issued.tls / "ca.crt").read_bytes(), issued.certificate().serial
    new = issued.names(*NAMES, "n8n.other.test", "192.0.2.7")
    assert "may not certify n8n.other.test, 192.0.2.7" in issued.run("issue", leaves=new, code=3)
    result = issued.run("issue", "--init", scope=["n8n.other.test", "192.0.2.7"])
    assert result["changes"][0] == "renewed the root with the same key (may certify more names)"
    assert issued.certificate().serial == serial
    handshake(issued, "localhost")
    assert issued.run("issue", leaves=new)["changed"]
    handshake(issued, "n8n.other.test")
    assert not issued.run("issue", "--init", leaves=new)["changed"]
    # A client that still has the old root keeps working for the names it permits.
    issued.run("issue")
    (issued.tls / "ca.crt").chmod(0o644)
    (issued.tls / "ca.crt").write_bytes(old_root)
    handshake(issued, "a.example.test")


def test_the_root_is_renewed_a_year_before_its_end(machine: Machine) -> None:
    machine.run("issue", "--init", ca_days=100)
    serial = machine.certificate().serial
    assert "valid for longer" in machine.run("issue", "--init")["changes"][0]
    assert machine.certificate("ca.crt").left() > timedelta(days=3000)
    assert machine.certificate().serial == serial
    handshake(machine, "localhost")


def exchange(issued: Machine, other: Machine) -> dict[str, Any]:
    """Certify the other host, as the role does."""
    root = (issued.authority / "ca.crt").read_text(encoding="utf-8")
    asked = other.run("request", stdin={"ca": root})
    signed = issued.run("sign", stdin={"leaves": other.config["leaves"], "requests": asked["requests"]})
    other.run("install", stdin=signed)
    return dict(asked)


def test_another_host_is_certified_without_its_key_leaving_it(issued: Machine, other: Machine) -> None:
    assert len(exchange(issued, other)["requests"]) == 1
    handshake(other, "b.example.test")
    assert not (other.authority / "ca.key").exists()
    serial = other.certificate().serial
    asked = other.run("request", stdin={"ca": (issued.tls / "ca.crt").read_text(encoding="utf-8")})
    assert asked == {"changed": False, "changes": [], "requests": {}}
    assert other.certificate().serial == serial


def test_another_host_in_check_mode_is_left_alone(issued: Machine, other: Machine) -> None:
    asked = other.run("--check", "request", stdin={"ca": (issued.tls / "ca.crt").read_text(encoding="utf-8")})
    assert (asked["changed"], asked["requests"]) == (True, {})
    assert other.files() == {}


def test_another_authority_is_refused(issued: Machine, other: Machine, tmp_path: Path) -> None:
    exchange(issued, other)
    stranger = Machine(tmp_path / "c", issued.monkeypatch)
    stranger.run("issue", "--init")
    root = (stranger.tls / "ca.crt").read_text(encoding="utf-8")
    assert "trusts another authority" in other.run("request", stdin={"ca": root}, code=3)


def test_a_certificate_of_another_authority_is_due(issued: Machine, tmp_path: Path) -> None:
    stranger = Machine(tmp_path / "c", issued.monkeypatch)
    stranger.run("issue", "--init")
    for name in ("host.crt", "host.key"):
        shutil.copy(stranger.tls / name, issued.tls / name)
    assert issued.run("issue")["changes"] == [f"issued {issued.tls}/host.crt (it is not of this authority)"]


def test_a_certificate_of_another_key_is_not_installed(issued: Machine, other: Machine) -> None:
    asked = other.run("request", stdin={"ca": (issued.tls / "ca.crt").read_text(encoding="utf-8")})
    signed = issued.run("sign", stdin={"leaves": other.config["leaves"], "requests": asked["requests"]})
    pki.make_key(other.tls / "host.key")
    assert "is not of the key" in other.run("install", stdin=signed, code=3)


def test_signing_needs_an_authority_and_a_genuine_request(issued: Machine, other: Machine) -> None:
    asked = {"leaves": other.config["leaves"], "requests": {str(other.tls / "host.crt"): "nonsense"}}
    assert "openssl req failed" in issued.run("sign", stdin=asked, code=3)
    assert "There is no authority" in other.run("issue", code=3)


def test_shows_what_there_is_and_for_how_long(issued: Machine) -> None:
    leaves = [*issued.config["leaves"], {**issued.config["leaves"][0], "name": "no", "certificate": "/none"}]
    root, host, missing = issued.run("show", leaves=leaves)["certificates"]
    assert (root["name"], root["days_left"] > 3600) == ("ca", True)
    assert (host["names"], host["days_left"] in (59, 60)) == (["a.example.test", "localhost", "127.0.0.1", "::1"], True)
    assert missing == {"name": "no", "path": "/none", "present": False}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"days": 398}, "at most 397"),
        ({"days": 20, "renew_before": 20}, "does not hold"),
        ({"renew_before": 0}, "does not hold"),
        ({"name": "a/b"}, "cannot be in the name"),
        ({"scope": ["exa mple"]}, "neither a host name nor an IP address"),
    ],
)
def test_wrong_settings_are_refused(machine: Machine, changes: dict[str, Any], text: str) -> None:
    assert text in machine.run("issue", "--init", code=3, **changes)


def test_long_names_are_no_problem(issued: Machine) -> None:
    name = f"{'a' * 60}.{'b' * 60}.example.test"
    issued.run("issue", leaves=[{**issued.names(name)[0], "name": name}])
    handshake(issued, name)


@pytest.mark.parametrize("code", [0, 1])
def test_the_systems_trust_store_takes_the_root_up(
    machine: Machine, fake_command: Callable[..., Any], code: int
) -> None:
    update = fake_command("update-ca-certificates", stderr="no room", code=code)
    store = machine.tls / "store.crt"
    machine.run("issue", "--init", trust_store=str(store), code=3 if code else 0)
    assert len(update.calls) == 1
    # Without the file, the next run tries again.
    assert store.exists() == (code == 0)
    assert machine.run("issue", "--init", trust_store=str(store), code=3 if code else 0)
    assert len(update.calls) == 1 + code


def test_missing_programs_are_named(machine: Machine, tmp_path: Path) -> None:
    machine.monkeypatch.setenv("PATH", str(tmp_path))
    assert "openssl is missing: install" in machine.run("issue", "--init", code=3)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")

    def no_space(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        pki.write(path, "new", 0o400)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_scope_knows_what_it_covers() -> None:
    scope = pki.Scope.parse(["example.test", "*.wild.test", "10.0.0.0/8", "fc00::/7"])
    assert (
        scope.outside(pki.Names.parse(["example.test", "a.example.test", "*.wild.test", "10.1.2.3", "fd00::1"])) == []
    )
    assert scope.outside(pki.Names.parse(["badexample.test", "test", "11.0.0.1", "2001:db8::1"])) == [
        "badexample.test",
        "test",
        "11.0.0.1",
        "2001:db8::1",
    ]
    assert scope.covers(pki.Scope.parse(["sub.example.test", "10.9.0.0/16"]))
    assert not scope.covers(pki.Scope.parse(["10.0.0.0/7"]))

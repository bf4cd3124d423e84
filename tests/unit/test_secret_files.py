# SPDX-License-Identifier: GPL-3.0-or-later
"""The module that keeps secrets: what it makes, what it keeps, and above all what it refuses."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from plugins.filter import secrets as secret_filters
from plugins.module_utils import secret_table, tokens
from plugins.modules import secret_files

GIVEN = "given-by-the-inventory"
TABLE: dict[str, Any] = {"key": {"permanent": True}, "password": {"groups": ["redis"]}}


class Host:
    """A host on which the module runs, with its files."""

    def __init__(self, root: Path, run_module: Callable[..., dict[str, Any]]) -> None:
        self.directory, self.registry = root / "etc" / "secrets", root / "lib" / "secrets.json"
        self.data = root / "data"
        self.run_module = run_module

    def run(self, *, check: bool = False, **arguments: Any) -> dict[str, Any]:
        paths = {"directory": str(self.directory), "registry": str(self.registry)}
        return self.run_module(secret_files, {"secrets": TABLE, "generate": True, **paths, **arguments}, check=check)

    def read(self, name: str) -> str:
        return (self.directory / name).read_text(encoding="utf-8")

    def put(self, name: str, text: str) -> None:
        path = self.directory / name
        path.unlink(missing_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o400)

    def snapshot(self) -> dict[str, bytes]:
        root = self.directory.parent.parent
        return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def host(tmp_path: Path, run_module: Callable[..., dict[str, Any]]) -> Host:
    return Host(tmp_path, run_module)


@pytest.fixture
def used(host: Host) -> Host:
    """Return a host on which the secrets were made in an earlier run."""
    assert host.run()["created"] == ["key", "password"]
    return host


def refuses(host: Host, text: str, **arguments: Any) -> None:
    """Check that a run says this and leaves every file as it was."""
    before = host.snapshot()
    result = host.run(**arguments)
    assert not result["changed"]
    assert text in " ".join(result["refused"])
    assert host.snapshot() == before


def test_first_run_makes_all_and_the_second_changes_nothing(host: Host) -> None:
    result = host.run()
    assert (result["changed"], result["created"], result["rotated"]) == (True, ["key", "password"], [])
    assert stat.S_IMODE(host.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((host.directory / "key").stat().st_mode) == 0o400
    assert stat.S_IMODE(host.registry.stat().st_mode) == 0o600
    before = host.snapshot()
    assert not host.run()["changed"]
    assert host.snapshot() == before


def test_check_mode_promises_and_does_nothing(host: Host) -> None:
    result = host.run(check=True)
    assert (result["changed"], result["created"]) == (True, ["key", "password"])
    assert not host.directory.exists()
    assert not host.registry.exists()


def test_nothing_returned_or_recorded_holds_a_value(host: Host) -> None:
    result = json.dumps(host.run(values={"password": GIVEN})) + host.registry.read_text(encoding="utf-8")
    for name in TABLE:
        assert host.read(name) not in result


def test_reveals_only_what_was_asked_for_even_values_ansible_blanks(host: Host) -> None:
    result = host.run(values={"password": GIVEN}, reveal=["password", "unknown"])
    assert result["revealed"] == {"password": base64.b64encode(GIVEN.encode()).decode()}


def test_given_value_wins_and_a_new_one_rotates(used: Host) -> None:
    assert used.run(values={"password": GIVEN})["rotated"] == ["password"]
    assert used.read("password") == GIVEN
    assert not used.run(values={"password": GIVEN})["changed"]
    assert not used.run()["changed"]


def test_a_host_that_does_not_generate_keeps_what_it_is_given(host: Host) -> None:
    result = host.run(generate=False, values={"password": GIVEN})
    assert (result["created"], result["refused"]) == (["password"], [])
    assert not (host.directory / "key").exists()
    assert host.run(generate=False)["in_use"] == ["password"]


@pytest.mark.parametrize("name", ["key", "password"])
def test_a_lost_secret_is_refused_not_made_anew(used: Host, name: str) -> None:
    (used.directory / name).unlink()
    refuses(used, f"{used.directory}/{name} is missing although it seems to be in use (made here on 20")


def test_one_lost_secret_stops_the_others_too(used: Host) -> None:
    (used.directory / "key").unlink()
    refuses(used, "key is missing", values={"password": GIVEN})


def test_a_lost_password_may_be_made_anew_on_request(used: Host) -> None:
    before = used.read("password")
    assert used.run(rotate=["password"])["rotated"] == ["password"]
    assert used.read("password") != before
    (used.directory / "password").unlink()
    assert used.run(rotate=["password"])["rotated"] == ["password"]


def test_a_lost_secret_can_be_given_back(used: Host) -> None:
    key = used.read("key")
    (used.directory / "key").unlink()
    refuses(used, "secrets_values.key is not the value in use", values={"key": GIVEN})
    assert used.run(values={"key": key})["created"] == ["key"]
    assert used.read("key") == key


def test_a_permanent_secret_is_never_replaced(used: Host) -> None:
    refuses(used, "secrets_values.key is not the value in use", values={"key": GIVEN})
    refuses(used, "key must stay", rotate=["key"])
    used.put("key", GIVEN)
    refuses(used, "does not hold the value that its data was encrypted with")


def test_data_without_its_key_is_refused_even_if_the_record_is_lost_too(host: Host) -> None:
    table = {"key": {"permanent": True, "evidence": [f"{host.data}*"]}}
    host.data.mkdir()
    assert host.run(secrets=table, check=True)["created"] == ["key"]
    (host.data / "database").touch()
    refuses(host, f"(data in {host.data}): restore", secrets=table)
    refuses(host, f"remove {host.data}, then run again", secrets=table)
    assert host.run(secrets=table, generate=False)["in_use"] == ["key"]


@pytest.mark.parametrize("name", ["key", "password"])
def test_what_another_host_uses_is_not_generated(host: Host, name: str) -> None:
    refuses(host, "in use on another host of the platform", in_use_elsewhere=[name])


def test_a_password_edited_by_hand_counts_as_rotated_once(used: Host) -> None:
    used.put("password", "edited-on-the-host")
    assert used.run()["rotated"] == ["password"]
    assert not used.run()["changed"]


@pytest.mark.parametrize("damage", ["newline", "mode"])
def test_a_file_restored_by_hand_is_repaired(used: Host, damage: str) -> None:
    key = used.read("key")
    if damage == "newline":
        used.put("key", key + "\n")
    else:
        (used.directory / "key").chmod(0o644)
    result = used.run()
    assert (result["changed"], result["rotated"], result["created"]) == (True, [], [])
    assert used.read("key") == key
    assert stat.S_IMODE((used.directory / "key").stat().st_mode) == 0o400


@pytest.mark.parametrize(
    ("content", "text"), [(b"", "is empty"), (b"\xff\xfe", "is not text"), (None, "is not a plain file")]
)
def test_a_damaged_file_is_refused(used: Host, content: bytes | None, text: str) -> None:
    path = used.directory / "password"
    path.unlink()
    if content is None:
        path.symlink_to("/dev/null")
    else:
        path.write_bytes(content)
    refuses(used, text)


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"key": "zz", "secrets": 1}'])
def test_a_damaged_record_is_refused(used: Host, content: str) -> None:
    used.registry.write_text(content, encoding="utf-8")
    refuses(used, "the record of secrets, cannot be read")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("tiny", "shorter than 12"),
        ("", "shorter than 12"),
        (123456789012, "not text"),
        (None, "not text"),
        ("two\nlines-of-text", "control characters"),
        (" outer-blank-value", "outer blanks"),
    ],
)
def test_unfit_values_are_refused(host: Host, value: Any, text: str) -> None:
    refuses(host, text, values={"password": value})


def test_misspelt_names_are_refused(host: Host) -> None:
    refuses(host, "secrets_values: there is no secret 'pasword'", values={"pasword": GIVEN})
    refuses(host, "secrets_rotate: there is no secret 'pasword'", rotate=["pasword"])
    refuses(host, "change it there", values={"password": GIVEN}, rotate=["password"])


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"Key": {}}, "lower-case"),
        ({"../key": {}}, "lower-case"),
        ({"key": {"permament": True}}, "unknown permament"),
        ({"key": {"length": 4}}, "at least 16"),
        ({"key": {"alphabet": "klingon"}}, "urlsafe, hex, base64"),
        ({"key": {"kind": "magic"}}, "kind is random, rsa_key, token"),
        ({"key": {"kind": "token", "key": "other"}}, "has key and subject"),
        ({"key": {"subject": "alice", "key": "other"}}, "has key and subject"),
    ],
)
def test_a_wrong_table_is_refused(host: Host, table: dict[str, Any], text: str) -> None:
    refuses(host, text, secrets=table)


def test_length_and_alphabet_follow_the_table(host: Host) -> None:
    host.run(secrets={"token": {"alphabet": "hex", "length": 20}, "plain": None})
    assert len(bytes.fromhex(host.read("token"))) == 20
    assert len(host.read("plain")) == 43


def test_other_alphabets_and_a_prefix(host: Host) -> None:
    host.run(secrets={"hook": {"alphabet": "base64", "prefix": "whsec_", "length": 24}})
    assert len(base64.b64decode(host.read("hook").removeprefix("whsec_"), validate=True)) == 24


def test_wrong_modes_of_the_directory_are_repaired(used: Host) -> None:
    used.directory.chmod(0o755)
    assert used.run(check=True)["changed"]
    assert used.run()["changed"]
    assert stat.S_IMODE(used.directory.stat().st_mode) == 0o700


def test_an_interrupted_write_leaves_every_old_value(used: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before = used.snapshot()

    def no_space(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    assert "No space left" in used.run(values={"password": GIVEN})["refused"][0]
    assert used.snapshot() == before


def test_a_run_interrupted_before_the_record_is_taken_in_by_the_next(used: Host) -> None:
    used.registry.unlink()
    result = used.run()
    assert (result["changed"], result["created"], result["rotated"], result["refused"]) == (True, [], [], [])
    assert not used.run()["changed"]


@given(st.integers(min_value=16, max_value=64))
def test_generated_text_suits_password_rules_and_command_lines(length: int) -> None:
    value = secret_table.generate(secret_table.Secret("x", length=length))
    assert value[0].isalnum()
    assert any(letter.isupper() for letter in value)
    assert any(letter.isdigit() for letter in value)
    assert not secret_table.unfit(value)


SIGNED: dict[str, Any] = {
    "a_token": {"kind": "token", "key": "signer", "subject": "alice"},
    "b_token": {"kind": "token", "key": "signer", "subject": "bob"},
    "signer": {"kind": "rsa_key"},
}


def test_tokens_are_signed_by_their_key_and_kept(host: Host) -> None:
    assert sorted(host.run(secrets=SIGNED)["created"]) == ["a_token", "b_token", "signer"]
    signer, token = host.read("signer"), host.read("a_token")
    assert tokens.is_signed(token, signer, "alice")
    assert not tokens.is_signed(token, signer, "bob")
    assert not host.run(secrets=SIGNED)["changed"]
    public = serialization.load_der_public_key(base64.b64decode(tokens.public_key(signer)))
    assert jwt.decode(token, public, algorithms=["RS256"])["sub"] == "alice"  # type: ignore[arg-type]


def test_a_new_key_signs_all_its_tokens_anew(host: Host) -> None:
    host.run(secrets=SIGNED)
    assert sorted(host.run(secrets=SIGNED, rotate=["signer"])["rotated"]) == ["a_token", "b_token", "signer"]
    assert tokens.is_signed(host.read("b_token"), host.read("signer"), "bob")


def test_one_token_can_be_made_anew(host: Host) -> None:
    host.run(secrets=SIGNED)
    host.put("a_token", "not.a.token")
    assert host.run(secrets=SIGNED)["rotated"] == ["a_token"]
    assert tokens.is_signed(host.read("a_token"), host.read("signer"), "alice")


def test_a_host_without_the_key_keeps_the_token_it_was_handed(host: Host) -> None:
    handed = {"a_token": SIGNED["a_token"]}
    host.run(secrets=handed, values={"a_token": "handed.by.another-host"}, generate=False)
    assert not host.run(secrets=handed, generate=False)["changed"]
    assert host.read("a_token") == "handed.by.another-host"


def test_a_token_without_its_key_is_refused(host: Host) -> None:
    refuses(host, "give the token in secrets_values.a_token", secrets={"a_token": SIGNED["a_token"]})


def test_a_given_key_must_be_one(host: Host) -> None:
    refuses(host, "is no RSA private key", secrets=SIGNED, values={"signer": "no-key-at-all"})
    refuses(host, "is no RSA private key", secrets=SIGNED, values={"signer": base64.b64encode(b"nonsense").decode()})


def test_openssl_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="install the package ca-certificates"):
        tokens.new_key()


def test_filter_picks_the_secrets_of_a_host() -> None:
    table = {"a": {"groups": ["x", "y"]}, "b": {"groups": ["z"]}}
    assert secret_filters.FilterModule().filters()["needed_secrets"](table, ["y"]) == {"a": table["a"]}

"""What the firewall asks its host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule

from plugins.modules import nft_info

Run = Callable[..., dict[str, Any]]
Fake = Callable[..., Any]

READS = "cat >/dev/null"
RESOLV_CONF = """# made by hand
search example.org
nameserver 10.0.0.2
nameserver 10.0.0.2
nameserver fe80::1%eth0
nameserver
"""


@pytest.fixture
def ask(run_module: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the module on a host with proved rules."""
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text(RESOLV_CONF, encoding="ascii")
    monkeypatch.setattr(nft_info, "RESOLV_CONF", resolv_conf)
    for name in ("rules", "confirmed"):
        (tmp_path / name).write_text("table inet t {}\n", encoding="ascii")

    def run(**arguments: Any) -> dict[str, Any]:
        given = {"table": "t", "rules": str(tmp_path / "rules"), "confirmed": str(tmp_path / "confirmed")}
        return run_module(nft_info, {**given, **arguments})

    return run


def test_capable_kernel_with_proved_rules(ask: Run, fake_command: Fake) -> None:
    nft = fake_command("nft", script=READS)
    result = ask(users=["root", "no-such-user"])
    assert (result["installed"], result["missing"], result["pending"], result["changed"]) == (True, {}, False, False)
    assert result["users"] == {"root": 0}
    assert result["resolvers"] == ["10.0.0.2", "fe80::1%eth0"]
    assert nft.calls[0] == ["list", "table", "inet", "t"]
    assert len(nft.calls) == 1 + len(nft_info.FEATURES)


def test_missing_features_are_named_with_the_kernels_words(ask: Run, fake_command: Fake) -> None:
    unsupported = 'echo "Error: Operation not supported" >&2; exit 1'
    fake_command("nft", script=f'case "$(cat)" in *"ct count"*) {unsupported};; *log*) exit 3;; esac')
    assert ask()["missing"] == {"connection_limit": "Error: Operation not supported", "log": "exit status 3"}


def test_rules_are_pending_when_the_table_is_not_loaded(ask: Run, fake_command: Fake) -> None:
    fake_command("nft", script='[ "$1" != list ] && cat >/dev/null')
    assert ask()["pending"]


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_rules_are_pending_when_they_were_not_proved(ask: Run, fake_command: Fake, tmp_path: Path, change: str) -> None:
    fake_command("nft", script=READS)
    confirmed = tmp_path / "confirmed"
    confirmed.write_text("older", encoding="ascii") if change == "edit" else confirmed.unlink()
    assert ask()["pending"]


def test_host_without_nft(ask: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda *_, **__: None)
    result = ask()
    assert (result["installed"], result["missing"], result["pending"]) == (False, {}, True)


def test_host_without_resolv_conf(ask: Run, fake_command: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_command("nft", script=READS)
    monkeypatch.setattr(nft_info, "RESOLV_CONF", Path("/no/such/file"))
    assert ask()["resolvers"] == []

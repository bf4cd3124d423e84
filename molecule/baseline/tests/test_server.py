"""What the role baseline does on a host whose kernel takes settings."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

testinfra_hosts = ["ansible://n8n-platform-baseline"]
CERTIFICATES = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])

RunRole = Callable[..., subprocess.CompletedProcess[str]]

# A test that needs only one part of the role runs that part alone.
INSTALL = {"test_part": "install", "_baseline_kind": "container"}
CONFIGURE = {"test_part": "configure", "_baseline_kind": "container"}


def test_kernel_has_the_settings(host: Any) -> None:
    assert host.sysctl("vm.overcommit_memory") == 1
    assert host.sysctl("vm.swappiness") == 10
    assert host.sysctl("net.core.somaxconn") == 2048, "baseline_extra_sysctl wins"
    assert host.sysctl("net.ipv4.tcp_keepalive_time") == 600


def test_settings_return_after_a_boot(host: Any) -> None:
    host.check_output("sysctl --write net.core.somaxconn=100")
    host.check_output("systemctl restart systemd-sysctl.service")
    assert host.sysctl("net.core.somaxconn") == 2048


def test_host_kind_is_seen(limits: dict[str, Any]) -> None:
    assert limits["kind"] == "container"


def test_container_has_no_time_daemon_of_its_own(host: Any) -> None:
    assert not host.package("chrony").is_installed


def test_time_zone_is_set(host: Any) -> None:
    assert host.check_output("date --date=2026-07-01T00:00:00Z +%Z") == "CEST"
    assert host.check_output("timedatectl show --property=Timezone --value") == "Europe/Berlin"


def test_journal_is_limited(host: Any) -> None:
    assert "max 200M" in host.check_output(
        "journalctl --boot --unit systemd-journald.service --grep 'System Journal' -n 1"
    )


def test_extra_packages_are_installed(host: Any) -> None:
    assert host.package("curl").is_installed


def test_services_of_the_platform_run_in_the_limited_slice(host: Any) -> None:
    shown = host.check_output(
        "systemd-run --quiet --wait --pipe --slice=n8n-platform.slice systemctl show n8n-platform.slice"
        " --property=TasksMax,ActiveState"
    )
    assert set(shown.splitlines()) == {"TasksMax=20000", "ActiveState=active"}


def test_only_security_updates_are_installed_and_nothing_of_ours(host: Any) -> None:
    shown = host.run("unattended-upgrade --dry-run --verbose").stderr
    log = shown + host.file("/var/log/unattended-upgrades/unattended-upgrades.log").content_string
    origins = [line for line in log.splitlines() if "Allowed origins are" in line][-1]
    assert "label=Debian-Security" in origins
    assert "label=Debian," not in origins
    assert "postgresql my-package" in [line for line in log.splitlines() if "Initial blacklist" in line][-1]


def test_needrestart_only_lists(host: Any) -> None:
    # Its own parser: the file is Perl.
    program = "our %nrconf; do '/etc/needrestart/needrestart.conf'; print $nrconf{restart}"
    assert host.check_output("perl -e %s", program) == "l"


def test_administrators_log_in_with_keys_and_use_sudo(host: Any) -> None:
    keys = host.file("/home/ada/.ssh/authorized_keys")
    assert (keys.user, keys.mode) == ("ada", 0o600)
    assert keys.content_string.startswith("ssh-ed25519 ")
    assert host.check_output("runuser -u ada -- sudo --non-interactive id --user") == "0"


def serve(host: Any, authority: str) -> str:
    """Make a certificate signed by an authority, serve it, and return what a program of this host says of it."""
    host.check_output("rm -rf /run/tls-test; mkdir /run/tls-test")
    for suffix in ("crt", "key"):
        text = (CERTIFICATES / f"{authority}.{suffix}").read_text(encoding="ascii")
        host.check_output("printf %%s %s >/run/tls-test/ca.%s", text, suffix)
    host.check_output(
        "cd /run/tls-test && openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout host.key"
        " -subj /CN=localhost -addext subjectAltName=DNS:localhost -out host.csr"
        " && openssl x509 -req -in host.csr -CA ca.crt -CAkey ca.key -days 1 -copy_extensions copy -out host.crt"
    )
    host.check_output(
        "systemd-run --quiet --unit=tls-test -p WorkingDirectory=/run/tls-test"
        " openssl s_server -accept 127.0.0.1:8443 -cert host.crt -key host.key -www -quiet"
    )
    try:
        # Wait until it answers at all, then ask again with the host's own trust.
        host.check_output(
            "curl --silent --insecure --retry 20 --retry-delay 1 --retry-connrefused https://localhost:8443/"
        )
        return str(host.run("curl --silent --show-error https://localhost:8443/").stderr)
    finally:
        host.check_output("systemctl stop tls-test.service")


@pytest.mark.parametrize("authority", ["authority-1", "authority-2"])
def test_extra_authorities_are_trusted(host: Any, authority: str) -> None:
    assert serve(host, authority) == ""


def test_authority_that_left_the_list_is_not_trusted_any_more(host: Any, run_role: RunRole) -> None:
    keep = str(CERTIFICATES / "authority-1.crt")
    try:
        assert run_role(**INSTALL, baseline_extra_ca_certificates=[keep]).returncode == 0
        assert serve(host, "authority-1") == ""
        assert "certificate" in serve(host, "authority-2")
    finally:
        assert run_role(**INSTALL).returncode == 0
    assert serve(host, "authority-2") == ""


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "distribution": ({"_baseline_supported": ["Debian 12"]}, "runs Debian 13; supported are Debian 12"),
    "not systemd": ({"test_service_mgr": "sysvinit"}, "was booted by sysvinit, not by systemd"),
    "not a certificate": ({"baseline_extra_ca_certificates": ["/etc/hostname"]}, "holds no PEM certificate"),
    "time zone": (CONFIGURE | {"platform_timezone": "Europe/Atlantis"}, "zoneinfo/Europe/Atlantis does not exist"),
    "apt settings": (CONFIGURE | {"baseline_unattended_upgrades_hold": ['x";};}']}, "was refused by `apt-config"),
    "sudoers": (CONFIGURE | {"baseline_admin_group": "two words"}, "was refused by `visudo"),
    "misspelt option": (
        {"baseline_transparent_hugepages": "sometimes"},
        "baseline_transparent_hugepages must be one of",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_change_nothing(host: Any, run_role: RunRole, case: str) -> None:
    variables, message = REFUSALS[case]
    host.check_output("touch /run/before")
    result = run_role(**variables)
    assert result.returncode != 0
    assert message in " ".join(result.stdout.split())
    changed = host.check_output("find /etc /usr/local /var/lib/n8n-platform -type f -newer /run/before")
    assert changed == ""

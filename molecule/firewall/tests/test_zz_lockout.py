"""Rules that lock Ansible out, over real SSH: the run fails in words and the host lets Ansible in again."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

testinfra_hosts = ["ansible://n8n-platform-firewall"]
Converge = Callable[..., Any]

PORT = 2022
PERMISSIVE = {"firewall_ssh_rate": "200/minute", "firewall_ssh_burst": 100}
# The other host is on the way, because containers need not be reachable from the controller.
PIPE = """
import os, socket, sys, threading
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def send():
    while data := os.read(0, 65536):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while data := connection.recv(65536):
    os.write(1, data)
"""


@pytest.fixture
def by_ssh(
    edge: Any, worker: Any, address: Callable[[Any], str], converge: Converge, tmp_path: Path
) -> Iterator[dict[str, Any]]:
    """Return the variables with which Ansible reaches the edge by SSH."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    edge.check_output("apt-get -qq install --yes --no-install-recommends openssh-server")
    edge.check_output("systemctl stop ssh.service ssh.socket")
    edge.check_output("mkdir -p -m 700 /root/.ssh /run/sshd")
    edge.check_output("printf %%s %s >/root/.ssh/authorized_keys", key.with_suffix(".pub").read_text(encoding="ascii"))
    edge.check_output(f"systemd-run --quiet --collect --unit=sshd-test /usr/sbin/sshd -D -p {PORT}")
    worker.check_output("printf %%s %s >/run/pipe.py", PIPE)
    assert converge(**PERMISSIVE, firewall_ssh_ports=[22, PORT]).returncode == 0
    yield {
        **PERMISSIVE,
        "ansible_connection": "ansible.builtin.ssh",
        "ansible_host": address(edge),
        "ansible_port": PORT,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        " -o ProxyCommand='docker exec --interactive n8n-platform-firewall-n8n python3 /run/pipe.py %h %p'",
    }
    edge.check_output("systemctl stop sshd-test.service")
    assert converge().returncode == 0


def test_ansible_gets_in_again(edge: Any, converge: Converge, by_ssh: dict[str, Any]) -> None:
    limit = ("--limit", "n8n-platform-firewall")
    assert "changed=0" in converge(*limit, **by_ssh).stdout

    locked_out = converge(*limit, **by_ssh, firewall_ssh_ports=[22], firewall_revert_seconds=12)
    said = " ".join(locked_out.stdout.split())
    assert locked_out.returncode != 0
    assert "did not let Ansible in again" in said
    assert "takes them back by itself within 12 seconds" in said

    follow = "journalctl --follow --since=-60s --unit=n8n-platform-firewall-revert.service"
    edge.check_output(f"timeout 30 bash -c 'grep -m 1 \"the previous ones are back\" < <({follow})'")
    back = converge(*limit, **by_ssh)
    assert back.returncode == 0, back.stdout

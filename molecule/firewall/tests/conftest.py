"""Two hosts that listen and knock: `edge` runs databases and Traefik's ports, `worker` runs n8n's."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import testinfra

LISTENER = """
import os, select, socket, sys
sockets = [socket.create_server(("", int(port)), backlog=64) for port in sys.argv[1:]]
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\\0", 1))
held = []
while True:
    for ready in select.select(sockets + held, [], [])[0]:
        if ready in sockets:
            held.append(ready.accept()[0])
        else:
            held.remove(ready)
            ready.close()
"""

# Prints what became of each connection and how long it took; connections stay open until the end.
KNOCK = """
import errno, socket, sys, time
held = []
for target in sys.argv[1:]:
    address, port = target.rsplit("/", 1)
    begun = time.monotonic()
    try:
        held.append(socket.create_connection((address, int(port)), timeout=1.5))
        result = "open"
    except TimeoutError:
        result = "dropped"
    except OSError as error:
        result = errno.errorcode.get(error.errno, str(error))
    print(result, "fast" if time.monotonic() - begun < 1 else "slow")
"""

Knock = Callable[..., list[str]]


def connect(name: str) -> Any:
    return testinfra.get_host(f"ansible://{name}?ansible_inventory={os.environ['MOLECULE_INVENTORY_FILE']}")


@pytest.fixture(scope="session")
def edge() -> Any:
    """Return the host of the databases and Traefik."""
    return connect("n8n-platform-firewall")


@pytest.fixture(scope="session")
def worker() -> Any:
    """Return the host of n8n."""
    return connect("n8n-platform-firewall-n8n")


@pytest.fixture(scope="session")
def address() -> Callable[[Any], str]:
    """Return a function that gives a host's address in the network the hosts share."""
    return lambda host: str(host.check_output("hostname --all-ip-addresses").split()[0])


@pytest.fixture(scope="session", autouse=True)
def _listeners(edge: Any, worker: Any) -> Iterator[None]:
    """Listen on allowed and other ports of both hosts; PostgreSQL's port as its own user."""
    wanted = {
        edge: {"postgres": "5432", "root": "22 80 443 5678 6379 6380 9100 9200 9201 9999"},
        worker: {"n8n": "5678", "root": "22 443 5432 5701 5702 5703 5704 5721 9090"},
    }
    for host, users in wanted.items():
        for user, ports in users.items():
            # It returns when the program says that it listens.
            host.check_output(
                f"systemd-run --quiet --collect --service-type=notify --unit=listen-{user} --uid={user}"
                f" python3 -c {shlex.quote(LISTENER)} {ports}"
            )
    yield
    for host, users in wanted.items():
        for user in users:
            host.check_output(f"systemctl stop listen-{user}")


@pytest.fixture(scope="session")
def knock() -> Knock:
    """Return `knock(host, *targets, user="root")`: what happens to connections to `address/port`, in order.

    Results: `open`, `dropped` (no answer) or the name of the error, each followed by `fast` or `slow`.
    """

    def run(host: Any, *targets: str, user: str = "root") -> list[str]:
        command = shlex.join(["runuser", "-u", user, "--", "python3", "-c", KNOCK, *targets])
        return str(host.check_output(command)).splitlines()

    return run


@pytest.fixture
def tables() -> Callable[[Any], set[str]]:
    """Return a function that lists the tables the kernel of a host has."""

    def list_them(host: Any) -> set[str]:
        return {line.removeprefix("table ") for line in host.check_output("nft list tables").splitlines()}

    return list_them

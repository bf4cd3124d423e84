# SPDX-License-Identifier: GPL-3.0-or-later
"""The two platforms that are compared: the collection's, and the same n8n started by hand with its defaults.

Both live in the same host and use the same cores. While one is measured all processes of the other are stopped
(SIGSTOP), so that changing over costs no restart and the order can alternate.
"""

from __future__ import annotations

import itertools
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

from tests.bench import host

WORKFLOWS = {
    "expression": "webhook, Set with one expression, NoOp",
    "plain": "webhook, Set without an expression, NoOp",
    "code": "webhook, Code node (JavaScript in the task runner), NoOp",
}
WAIT_S = 120.0


def workflow(kind: str) -> dict[str, Any]:
    """Return a workflow of the bench as n8n imports it: it answers at once, then works."""
    value = "={{ $json.body.id }}" if kind == "expression" else "fixed"
    middle: dict[str, Any] = {
        "name": "Work",
        "type": "n8n-nodes-base.set",
        "typeVersion": 3.4,
        "parameters": {
            "assignments": {"assignments": [{"id": "1", "name": "id", "value": value, "type": "string"}]},
            "options": {},
        },
    }
    if kind == "code":
        code = (
            "const words = $input.first().json.body.data.match(/.{1,8}/g);\n"
            "return [{ json: { words: words.sort().join(' ') } }];"
        )
        middle = {"name": "Work", "type": "n8n-nodes-base.code", "typeVersion": 2, "parameters": {"jsCode": code}}
    nodes: list[dict[str, Any]] = [
        {
            "name": "Webhook",
            "type": "n8n-nodes-base.webhook",
            "typeVersion": 2,
            "webhookId": f"bench-{kind}",
            "parameters": {"httpMethod": "POST", "path": f"bench-{kind}", "responseMode": "onReceived", "options": {}},
        },
        middle,
        {"name": "Last", "type": "n8n-nodes-base.noOp", "typeVersion": 1, "parameters": {}},
    ]
    for number, node in enumerate(nodes):
        node |= {"id": f"bench-{kind}-{number}", "position": [220 * number, 0]}
    names = [node["name"] for node in nodes]
    links = {a: {"main": [[{"node": b, "type": "main", "index": 0}]]} for a, b in itertools.pairwise(names)}
    return {
        "id": f"bench{kind}",
        "name": f"Bench {kind}",
        "active": False,
        "nodes": nodes,
        "connections": links,
        "settings": {"executionOrder": "v1"},
        "pinData": {},
        "meta": {},
    }


@dataclass
class Site:
    """A running platform: how to reach, ask, stop and continue it."""

    name: str
    base_url: str
    ca: str
    psql: list[str]
    # In the order in which they are stopped; continued the other way round.
    units: list[str] = field(default_factory=list)
    ready: list[str] = field(default_factory=list)

    def job(self, kind: str, **more: Any) -> dict[str, Any]:
        """Return a job for the driver."""
        base = {"url": f"{self.base_url}/webhook/bench-{kind}", "address": "127.0.0.1", "ca": self.ca}
        return {**base, "psql": self.psql, "workflow": f"bench{kind}", **more}

    def pause(self) -> None:
        """Stop all processes where they are."""
        host.signal("STOP", self.units)

    def resume(self) -> None:
        """Let all processes go on, and wait until each says it is ready."""
        host.signal("CONT", reversed(self.units))
        host.wait_for(self.ready, WAIT_S, self.name)

    def published(self, kind: str) -> bool:
        """Return whether a workflow answers over the entrance."""
        extra = ["--cacert", self.ca] if self.ca else []
        host_name = self.base_url.split("//")[1].split(":")[0]
        port = self.base_url.rsplit(":", 1)[1] if self.base_url.count(":") > 1 else "443"
        code = host.run(
            *(
                "curl",
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                "-m",
                "10",
                "--json",
                '{"body": {"id": 0}, "data": "warm-up"}',
            ),
            *("--resolve", f"{host_name}:{port}:127.0.0.1", *extra, f"{self.base_url}/webhook/bench-{kind}"),
            check=False,
        )
        return code == "200"

    def sql(self, query: str) -> str:
        """Return what psql prints for a query."""
        return host.run(*self.psql, text=query).strip()


def psql(port: int) -> list[str]:
    """Return the command that asks the database behind a port."""
    return [
        "runuser",
        "-u",
        "postgres",
        "--",
        "psql",
        "-X",
        "-q",
        "-A",
        "-t",
        "-v",
        "ON_ERROR_STOP=1",
        "-p",
        str(port),
        "-d",
        "n8n",
    ]


def platform() -> Site:
    """Return the platform this collection set up."""
    ports = host.PORTS
    webhooks, workers = host.service_units("n8n-webhook@*"), host.service_units("n8n-worker@*")
    edge = host.service_units("traefik*")
    data = host.service_units("redis-*") + host.service_units("postgresql@17-main*")
    numbered = [
        ports[f"n8n_{kind}_base"] + int(unit.split("@")[1].split(".")[0])
        for kind, units in (("webhook", webhooks), ("worker", workers))
        for unit in units
    ]
    https = ports["traefik_https"]
    return Site(
        name="platform",
        base_url=f"https://{host.setting('N8N_HOST')}" + ("" if https == 443 else f":{https}"),
        ca="/etc/n8n-platform/tls/ca.crt",
        psql=psql(ports["postgres"]),
        units=[
            *edge,
            *webhooks,
            *host.service_units("n8n-main*"),
            *workers,
            *host.service_units("n8n-runner@*"),
            *data,
        ],
        ready=[f"http://127.0.0.1:{port}/healthz/readiness" for port in (ports["n8n_main"], *numbered)],
    )


def install_workflows(site: Site, command: list[str], folder: str) -> None:
    """Import and publish the bench's workflows where they are not yet, with n8n's own command line."""
    missing = [kind for kind in WORKFLOWS if not site.published(kind)]
    for kind in missing:
        host.write(f"{folder}/bench-{kind}.json", json.dumps(workflow(kind)), owner="n8n")
        host.run(*command, "import:workflow", f"--input={folder}/bench-{kind}.json")
        host.run(*command, "publish:workflow", f"--id=bench{kind}")
        host.run("rm", "-f", f"{folder}/bench-{kind}.json")


def switch_workers(overrides: dict[str, str]) -> None:
    """Restart the platform's workers with some variables changed; none: as the collection set them up."""
    folder = "/run/systemd/system/n8n-worker@.service.d"
    if overrides:
        # A later EnvironmentFile wins over an earlier one, and over Environment=.
        host.write(f"{host.WORK}/worker.env", "".join(f'{name}="{value}"\n' for name, value in overrides.items()))
        host.write(f"{folder}/90-bench.conf", f"[Service]\nEnvironmentFile={host.WORK}/worker.env\n")
    else:
        host.run("rm", "-rf", folder, f"{host.WORK}/worker.env")
    units = host.service_units("n8n-worker@*")
    host.shell(f"systemctl daemon-reload; systemctl restart {' '.join(units)}", timeout=400)
    host.wait_for(platform().ready, WAIT_S, "platform")


# --- n8n by hand ---
# What a person does who follows n8n's documentation of queue mode: one main process, one worker with the default
# concurrency of 10, Debian's PostgreSQL cluster and redis-server with the settings they come with, over TCP on
# loopback, no proxy before n8n. Only what two installations on one host force is different: ports, folders, and the
# three variables that keep n8n from calling home. NODE_ENV is not set, pools and saving are n8n's defaults (save all).
HAND = {
    "main": 5699,
    "main_broker": 5697,
    "worker_health": 5698,
    "worker_broker": 5696,
    "postgres": 5499,
    "redis": 6499,
}
DATA = "/var/lib/n8n-bench"
# Not the platform's user n8n: the firewall lets that one reach the platform's own ports only.
USER = "nobody"
UNITS = ("n8n-bench-main", "n8n-bench-worker", "n8n-bench-redis", "n8n-bench-postgres")


def by_hand() -> Site:
    """Return n8n by hand, whether it runs or not."""
    return Site(
        name="by hand",
        base_url=f"http://127.0.0.1:{HAND['main']}",
        ca="",
        psql=psql(HAND["postgres"]),
        units=[f"{unit}.service" for unit in UNITS],
        ready=[f"http://127.0.0.1:{HAND[port]}/healthz/readiness" for port in ("main", "worker_health")],
    )


def start_unit(name: str, user: str, command: list[str], *options: str) -> None:
    """Start a transient unit without limits."""
    host.run(
        "systemd-run",
        "--quiet",
        "--collect",
        f"--unit={name}",
        f"--uid={user}",
        "--property=LimitNOFILE=65536",
        *options,
        *command,
    )


def stop_unit(name: str) -> None:
    """Stop a transient unit, also when its processes are stopped by a signal."""
    host.shell(f"systemctl kill --signal=KILL {name} 2>/dev/null || true; systemctl stop {name} 2>/dev/null || true")


def n8n_environment() -> str:
    """Return the environment of n8n by hand."""
    variables = {
        "DB_TYPE": "postgresdb",
        "DB_POSTGRESDB_HOST": "127.0.0.1",
        "DB_POSTGRESDB_PORT": HAND["postgres"],
        "DB_POSTGRESDB_DATABASE": "n8n",
        "DB_POSTGRESDB_USER": "n8n",
        "DB_POSTGRESDB_PASSWORD": secrets.token_hex(16),
        "EXECUTIONS_MODE": "queue",
        "QUEUE_BULL_REDIS_HOST": "127.0.0.1",
        "QUEUE_BULL_REDIS_PORT": HAND["redis"],
        "QUEUE_HEALTH_CHECK_ACTIVE": "true",
        "QUEUE_HEALTH_CHECK_PORT": HAND["worker_health"],
        "N8N_ENCRYPTION_KEY": secrets.token_hex(16),
        "N8N_PORT": HAND["main"],
        "N8N_DIAGNOSTICS_ENABLED": "false",
        "N8N_VERSION_NOTIFICATIONS_ENABLED": "false",
        "N8N_TEMPLATES_ENABLED": "false",
        "PATH": f"{host.NODE}:/usr/bin:/bin",
    }
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def n8n_command(*words: str) -> list[str]:
    """Return n8n's command line from the same release."""
    return [f"{host.NODE}/node", f"{host.RELEASE}/node_modules/n8n/bin/n8n", *words]


def start_n8n(overrides: dict[str, str] | None = None) -> None:
    """Start (again) main and worker by hand, with some variables changed."""
    for kind, words in (("main", ["start"]), ("worker", ["worker"])):
        stop_unit(f"n8n-bench-{kind}")
        options = [
            f"--property=EnvironmentFile={DATA}/n8n.env",
            f"--setenv=N8N_USER_FOLDER={DATA}/{kind}",
            f"--setenv=HOME={DATA}/{kind}",
            f"--setenv=N8N_RUNNERS_BROKER_PORT={HAND[f'{kind}_broker']}",
            *(f"--setenv={name}={value}" for name, value in (overrides or {}).items()),
        ]
        start_unit(f"n8n-bench-{kind}", USER, n8n_command(*words), *options)
        # The first start of main migrates the database; the worker expects that done.
        host.wait_for([by_hand().ready[0 if kind == "main" else 1]], 240, f"n8n by hand ({kind})")


def open_firewall() -> None:
    """Let the user n8n reach the ports of n8n by hand; a reload of the platform's firewall ends that."""
    chain = "inet n8n_platform egress_n8n"
    ports = ", ".join(str(port) for port in HAND.values())
    host.shell(
        f"""
        rules=$(nft list chain {chain} 2>/dev/null) || exit 0
        case $rules in *{HAND["postgres"]}*) exit 0 ;; esac
        nft insert rule {chain} oif lo tcp dport '{{ {ports} }}' accept
        """
    )


def set_up_by_hand() -> Site:
    """Set n8n up by hand, unless an earlier run left it, and return it running."""
    site = by_hand()
    open_firewall()
    if set(site.units) <= set(host.service_units("n8n-bench-*")):
        site.resume()
        if all(site.published(kind) for kind in WORKFLOWS):
            return site
    remove_by_hand()
    for folder, owner in (
        (DATA, "root"),
        (f"{DATA}/main", USER),
        (f"{DATA}/worker", USER),
        (f"{DATA}/redis", "redis"),
    ):
        host.run("install", "-d", "-m", "0755", "-o", owner, folder)
    environment = n8n_environment()
    host.write(f"{DATA}/n8n.env", environment, mode="0640")
    # Debian's own defaults, not the options the platform puts into createcluster.conf.
    host.write(f"{host.WORK}/createcluster.conf", "ssl = on\nstats_temp_directory = ''\n")
    host.run(
        *("pg_createcluster", f"--createclusterconf={host.WORK}/createcluster.conf", "--start-conf=manual"),
        *("--encoding=UTF8", "--locale=C.UTF-8"),
        *("--port", str(HAND["postgres"]), "17", "bench"),
    )
    postgres = ["/usr/lib/postgresql/17/bin/postgres", "-c", "config_file=/etc/postgresql/17/bench/postgresql.conf"]
    start_unit("n8n-bench-postgres", "postgres", postgres)
    redis = ["/usr/bin/redis-server", "--port", str(HAND["redis"]), "--bind", "127.0.0.1", "--dir", f"{DATA}/redis"]
    start_unit("n8n-bench-redis", "redis", redis)
    password = environment.split("DB_POSTGRESDB_PASSWORD=")[1].split("\n")[0]
    admin = [*site.psql[:-1], "postgres"]
    host.shell(
        f"for i in $(seq 60); do {' '.join(admin)} -c 'SELECT 1' >/dev/null 2>&1 && exit 0; sleep 0.5; done; exit 1"
    )
    host.run(*admin, text=f"CREATE ROLE n8n LOGIN PASSWORD '{password}';\nCREATE DATABASE n8n OWNER n8n;\n")
    start_n8n()
    cli = [
        "runuser",
        "-u",
        USER,
        "--",
        "env",
        *environment.split(),
        f"N8N_USER_FOLDER={DATA}/main",
        f"HOME={DATA}/main",
        *n8n_command(),
    ]
    install_workflows(site, cli, f"{DATA}/main")
    if not all(site.published(kind) for kind in WORKFLOWS):
        # Main reads what the command line published when it starts.
        start_n8n()
    return site


def remove_by_hand() -> None:
    """Remove n8n by hand with all its data."""
    for unit in UNITS:
        stop_unit(unit)
    host.shell(
        "systemctl reset-failed 'n8n-bench-*' 2>/dev/null || true;"
        " ! pg_lsclusters -h | grep -q '^17 *bench ' || pg_dropcluster 17 bench; rm -rf /etc/postgresql/17/bench "
        + DATA
    )

# SPDX-License-Identifier: GPL-3.0-or-later
"""The bridge beside Pulsar's own client, on the same broker and the same cores.

    make bench                                       as one of its parts, when the sandbox has a bridge
    .venv/bin/python -m tests.bench.bridge NAME      alone, in the container NAME; prints the result

Publishing is measured with the consumers stopped, then they work off what was published, then both run together.
Everything the bench makes (a topic, a workflow, two routes) is taken out again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from tests.bench import host
from tests.bench.throughput import ratio, spread

Say = Callable[[str], None]
CONFIG = "/etc/n8n-platform/bridge"
SECRETS = "/etc/n8n-platform/secrets"
LIBRARIES = "/opt/n8n-platform/bridge/current/site-packages"
TOPIC = "dealscale/analytics/bench"
CONSUMERS = "n8n-bridge-consumer@*"
ACCOUNT = "n8n"
WORKFLOW = "bridgeBench00001"
ROUTES: list[dict[str, Any]] = [
    {"name": "bench-listen", "match": {"type": "bench-listen.*"}, "topic": "dealscale.analytics.events"},
    {
        "name": "bench-call",
        "match": {"type": "bench-call.*"},
        "topic": "dealscale.workflow.short",
        "webhook": "/webhook/bridge/bench",
    },
]
TURNS = 3
LIGHT_PER_S = 5.0
OUTAGE_PER_S = 50.0


def sql(query: str) -> str:
    """Ask the bridge's database."""
    return host.run("runuser", "-u", "postgres", "--", "psql", "-XAtqd", "n8n_bridge", text=query).strip()


def settings() -> dict[str, Any]:
    """Return the bridge's settings."""
    found: dict[str, Any] = json.loads(host.run("cat", f"{CONFIG}/settings.json"))
    return found


def admin(method: str, path: str) -> str:
    """Ask Pulsar's administration; return the status."""
    return host.shell(
        f'curl -s -o /dev/null -w "%{{http_code}}" -X {method} -H "content-type: application/json"'
        f' -H "authorization: Bearer $(cat {SECRETS}/pulsar_admin_token)"'
        f" {settings()['pulsar']['admin_url']}/admin/v2/{path}"
    )


def job(phase: str, **more: Any) -> str:
    """Return a job for the driver."""
    found = settings()
    api = found["api"]
    count = len(host.service_units("n8n-bridge-api@*"))
    return json.dumps(
        {
            "phase": phase,
            "apis": [(api["host"], api["port_base"] + number) for number in range(1, count + 1)],
            "client": ACCOUNT,
            "secret": host.run("cat", f"{SECRETS}/bridge_client_{ACCOUNT}").strip(),
            "pulsar_url": found["pulsar"]["url"],
            "token_file": f"{SECRETS}/pulsar_admin_token",
            "topic": f"persistent://{TOPIC}",
            **more,
        }
    )


DRIVER = ("sh", "-c", f'cd {host.WORK} && PYTHONPATH={LIBRARIES} exec python3 -m inside.bridge "$(cat)"')


def drive(phase: str, **more: Any) -> dict[str, Any]:
    """Run the driver in the host; the job, which holds a secret, goes by its standard input."""
    found: dict[str, Any] = json.loads(host.run(*DRIVER, text=job(phase, **more), timeout=300).splitlines()[-1])
    return found


@contextmanager
def prepared() -> Iterator[None]:
    """Make a topic, a workflow and routes for the bench, and take them out again."""
    before = host.run("cat", f"{CONFIG}/routes.yml")
    routes = yaml.safe_load(before)
    routes["routes"] = ROUTES + routes["routes"]
    flow = {
        "id": WORKFLOW,
        "name": "Bench bridge",
        "active": False,
        "nodes": [
            {
                "id": "bench-bridge",
                "name": "Webhook",
                "type": "n8n-nodes-base.webhook",
                "typeVersion": 2,
                "position": [0, 0],
                "webhookId": "bench-bridge",
                "parameters": {"httpMethod": "POST", "path": "bridge/bench", "responseMode": "onReceived"},
            }
        ],
        "connections": {},
        "settings": {"executionOrder": "v1"},
    }
    host.run("mkdir", "-p", "/srv/n8n/exports")
    host.write("/srv/n8n/exports/bench-bridge.json", json.dumps(flow))
    host.run("n8n", "import:workflow", "--input=/srv/n8n/exports/bench-bridge.json")
    host.run("n8n", "publish:workflow", f"--id={WORKFLOW}")
    replace_routes(yaml.safe_dump(routes))
    admin("PUT", f"persistent/{TOPIC}")
    try:
        time.sleep(15)  # until n8n's webhook processes know the workflow, and the publishers the routes
        yield
    finally:
        host.run("systemctl", "start", "--all", CONSUMERS, check=False)
        wait_until_worked_off(600)
        replace_routes(before)
        admin("DELETE", f"persistent/{TOPIC}?force=true")
        host.run("rm", "-f", "/srv/n8n/exports/bench-bridge.json")
        removed = f"""DELETE FROM webhook_entity WHERE "workflowId" = '{WORKFLOW}';
            DELETE FROM workflow_published_version WHERE "workflowId" = '{WORKFLOW}';
            DELETE FROM workflow_entity WHERE id = '{WORKFLOW}'"""
        host.run("runuser", "-u", "postgres", "--", "psql", "-Xqd", "n8n", text=removed, check=False)


def replace_routes(text: str) -> None:
    """Replace the content of the file of routes; owner and mode stay."""
    host.run("sh", "-c", f"cat > {CONFIG}/routes.yml", text=text)


def open_events() -> int:
    """Return how many events of the bench have not come to their end."""
    return int(
        sql(
            """SELECT count(*) FROM bridge.event e LEFT JOIN bridge.delivery d ON d.event_id = e.id
               WHERE e.route LIKE 'bench-%' AND coalesce(d.state, 'waiting') NOT IN ('done', 'dead', 'cancelled')"""
        )
    )


def wait_until_worked_off(seconds: float) -> float:
    """Wait until nothing of the bench is open; return how long that took."""
    begin = time.monotonic()
    while open_events() and time.monotonic() - begin < seconds:
        time.sleep(0.2)
    return time.monotonic() - begin


def publishing(say: Say, seconds: float) -> dict[str, Any]:
    """Measure rates in turn, with the consumers stopped, then let them work off what was published."""
    found: dict[str, Any] = {}
    plan = {
        "direct, batched": ("direct", {}),
        "bridge, batches": ("batch", {"connections": 4, "batch": 100}),
        "direct, blocking": ("blocking", {}),
        "bridge, single": ("single", {"connections": 32}),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in plan}
    host.run("systemctl", "stop", "--all", CONSUMERS)
    for _ in range(TURNS):
        for name, (phase, more) in plan.items():
            runs[name].append(drive(phase, seconds=seconds, **more))
            say(f"  {name:17} {runs[name][-1]['per_s']:8.0f}/s, ms {runs[name][-1]['ms']} {runs[name][-1]['answers']}")
    rates = {name: [run["per_s"] for run in many] for name, many in runs.items()}
    found["runs"] = runs
    found["per_s"] = {name: spread(values) for name, values in rates.items()}
    found["batch_ratio"] = ratio(rates["bridge, batches"], rates["direct, batched"])
    found["single_ratio"] = ratio(rates["bridge, single"], rates["direct, blocking"])
    waiting = open_events()
    host.run("systemctl", "start", "--all", *unit_names())
    took = wait_until_worked_off(900)
    found["worked_off"] = {"events": waiting, "seconds": round(took, 1), "per_s": round(waiting / took, 1)}
    say(f"  worked off {waiting} events in {took:.1f} s")
    return found


def unit_names() -> list[str]:
    """Return the units of the consumers, which a pattern finds only while they run."""
    listed = host.run("systemctl", "list-units", "--all", "--plain", "--no-legend", CONSUMERS)
    names = [line.split()[0] for line in listed.splitlines()]
    return names or ["n8n-bridge-consumer@1.service", "n8n-bridge-consumer@2.service"]


def added_latency(say: Say, seconds: float, rate: float) -> dict[str, Any]:
    """Measure latencies at a fixed rate, in turn."""
    runs: dict[str, list[dict[str, Any]]] = {"paced-direct": [], "paced-single": []}
    for _ in range(TURNS):
        for phase, many in runs.items():
            many.append(drive(phase, seconds=seconds, rate=rate))
            say(f"  {phase} at {rate:.0f}/s: ms {many[-1]['ms']} {many[-1]['answers']}")
    p99 = {phase: [run["ms"]["p99"] for run in many] for phase, many in runs.items()}
    direct, single = (spread(p99[phase])["median"] for phase in runs)
    return {"rate_per_s": rate, "runs": runs, "added_p99_ms": round(single - direct, 2)}


def tracing_cost(say: Say, seconds: float) -> dict[str, Any]:
    """Measure single events with and without traces, in turn; everything else stays as it is."""
    path = f"{CONFIG}/settings.json"
    before = host.run("cat", path)
    without = json.loads(before)
    without["tracing"] = {**without.get("tracing", {}), "endpoint": ""}
    texts = {"with": before, "without": json.dumps(without)}
    rates: dict[str, list[float]] = {name: [] for name in texts}
    try:
        for _ in range(TURNS):
            for name, text in texts.items():
                host.run("sh", "-c", f"cat > {path}", text=text)
                restart_api()
                drive("single", seconds=2, connections=32)
                rates[name].append(drive("single", seconds=seconds, connections=32)["per_s"])
                say(f"  single, {name} traces: {rates[name][-1]:.0f}/s")
    finally:
        host.run("sh", "-c", f"cat > {path}", text=before)
        restart_api()
    return {
        "per_s": {name: spread(many) for name, many in rates.items()},
        "ratio": ratio(rates["with"], rates["without"]),
    }


def restart_api() -> None:
    """Restart the processes that take events, and wait until they do."""
    units = host.service_units("n8n-bridge-api@*")
    host.run("systemctl", "restart", *units)
    base = settings()["api"]["ops_base"]
    for number in range(1, len(units) + 1):
        ready = f"http://127.0.0.1:{base + number}/health/ready"
        host.run("curl", "-sf", "--retry", "60", "--retry-delay", "1", "--retry-all-errors", "-o", "/dev/null", ready)


def end_to_end(say: Say, seconds: float) -> dict[str, Any]:
    """Measure the time from acceptance to n8n's answer at light load."""
    before = answer_seconds()
    run = drive("paced-single", seconds=seconds, rate=LIGHT_PER_S, type="bench-call.x", ids=True)
    wait_until_worked_off(60)
    ids = ",".join(f"'{item}'" for item in run.pop("ids"))
    row = sql(
        f"""SELECT count(*), percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (
                ORDER BY extract(epoch FROM d.done_at - e.created_at) * 1000)
            FROM bridge.delivery d JOIN bridge.event e ON e.id = d.event_id AND e.day = bridge.event_day(d.event_id)
            WHERE d.state = 'done' AND d.event_id IN ({ids})"""
    )
    count, _, times = row.partition("|")
    p50, p99 = (float(value) for value in times.strip("{}").split(","))
    total, calls = (after - earlier for after, earlier in zip(answer_seconds(), before, strict=True))
    found = {
        "events": int(count),
        "ms": {"p50": round(p50, 1), "p99": round(p99, 1)},
        "n8n_answers_in_ms": round(total / max(calls, 1) * 1000, 1),
        "accepted": run,
    }
    say(f"  end to end at {LIGHT_PER_S:g}/s: {found['ms']} ms, of which n8n's answer {found['n8n_answers_in_ms']} ms")
    return found


def answer_seconds() -> tuple[float, float]:
    """Return the sum of the seconds n8n took to answer the bench's calls, and their number."""
    base = settings()["consumer"]["ops_base"]
    text = "".join(
        host.run("curl", "-s", f"http://127.0.0.1:{base + number}/metrics", check=False)
        for number in range(1, len(unit_names()) + 1)
    )
    sums = [0.0, 0.0]
    for line in text.splitlines():
        for index, name in enumerate(("sum", "count")):
            if line.startswith(f'bridge_delivery_seconds_{name}{{route="bench-call"}}'):
                sums[index] += float(line.rsplit(" ", 1)[1])
    return sums[0], sums[1]


def outage(say: Say) -> dict[str, Any]:
    """Kill the broker while events arrive at a fixed rate, and see how fast what waited is published."""
    command = ["docker", "exec", "-i", host.CONTAINER, *DRIVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        driver.stdin.write(job("paced-single", seconds=60, rate=OUTAGE_PER_S))
        driver.stdin.close()
        time.sleep(5)
        host.run("systemctl", "kill", "--signal=KILL", "n8n-pulsar-broker.service")
        begin = time.monotonic()
        samples: list[tuple[float, int]] = []
        while driver.poll() is None or (samples and samples[-1][1]):
            samples.append((time.monotonic() - begin, int(sql("SELECT count(*) FROM bridge.outbox"))))
            if samples[-1][0] > 300:
                break
            time.sleep(0.2)
        run = json.loads(driver.stdout.read().splitlines()[-1])
    peak_at, peak = max(samples, key=lambda sample: sample[1])
    empty = next((at for at, rows in samples if at > peak_at and rows <= OUTAGE_PER_S / 10), samples[-1][0])
    took = max(empty - peak_at, 0.1)
    published = peak / took + OUTAGE_PER_S
    found = {
        "arrivals_per_s": OUTAGE_PER_S,
        "answers": run["answers"],
        "ms": run["ms"],
        "longest_queue": peak,
        "published_again_after_s": round(peak_at, 1),
        "worked_off_in_s": round(took, 1),
        "rate_over_arrivals": round(published / OUTAGE_PER_S, 1),
    }
    say(f"  broker killed: {found}")
    return found


def measure(say: Say, seconds: float = 8.0) -> dict[str, Any] | str:
    """Measure everything; a text says why there is nothing to measure."""
    if not host.service_units("n8n-bridge-api@*"):
        return "the sandbox has no bridge (make sandbox FULL=1)"
    if settings().get("limits", {}).get("tenant"):
        return "the tenants of this platform have limits"
    host.install_driver()
    with prepared():
        drive("single", seconds=3)
        found = publishing(say, seconds)
        # With consumers and all else at work, as it is in use.
        maximum = spread([drive("single", seconds=seconds, connections=32)["per_s"] for _ in range(TURNS)])["median"]
        found["latency"] = added_latency(say, seconds, round(maximum / 2))
        wait_until_worked_off(300)
        found["tracing"] = tracing_cost(say, seconds)
        wait_until_worked_off(300)
        found["end_to_end"] = end_to_end(say, 30)
        found["memory_mib"] = {
            unit: size for unit, size in host.memory_mib().items() if unit.startswith(("n8n-bridge-", "n8n-pulsar-"))
        }
        found["outage"] = outage(say)
    return found


def main() -> None:
    """Measure a container and print the result."""
    host.CONTAINER = sys.argv[1] if sys.argv[1:] else host.CONTAINER
    print(json.dumps(measure(lambda line: print(line, file=sys.stderr, flush=True)), indent=1))


if __name__ == "__main__":
    main()

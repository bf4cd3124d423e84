#!/usr/bin/python3
"""Client of the tests, run on the test host: ask Loki and Jaeger, send spans, write many lines.

telemetry.py logs ADDRESS QUERY COUNT [SECONDS]     wait until a question gives at least COUNT lines; print all as JSON
telemetry.py traces ADDRESS COUNT [SECONDS] ID...   wait until COUNT of the traces are stored; print their spans as JSON
telemetry.py count ADDRESS QUERY COUNT [SECONDS]    wait until a question counts at least COUNT lines; print how many
telemetry.py write COUNT RATE PREFIX                write lines to its output, RATE a second (0: as fast as it can)
"""

import json
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

TLS = "/etc/n8n-platform/tls"


def fetch(address):
    """Return the parsed answer of an address, or None while there is none; HTTPS shows the host's certificate."""
    context = None
    if address.startswith("https:"):
        context = ssl.create_default_context(cafile=f"{TLS}/ca.crt")
        context.load_cert_chain(f"{TLS}/host.crt", f"{TLS}/host.key")
    try:
        with urllib.request.urlopen(address, timeout=10, context=context) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 400:
            sys.exit(f"{address}: {error.read().decode()}")
        return None
    except (OSError, ValueError):
        return None


def logs(address, query):
    """Return the lines of the last hour: [{labels, line, time}]."""
    now = time.time_ns()
    arguments = {"query": query, "start": now - 3600 * 10**9, "end": now + 60 * 10**9, "limit": 5000}
    answer = fetch(f"{address}/loki/api/v1/query_range?{urllib.parse.urlencode(arguments)}")
    streams = answer["data"]["result"] if answer else []
    return [
        {"labels": stream["stream"], "line": value[1], "time": value[0]}
        for stream in streams
        for value in stream["values"]
    ]


def count(address, query):
    """Return how many lines of the last hour a question gives, as a list of that length."""
    arguments = {"query": f"sum(count_over_time({query} [1h]))"}
    answer = fetch(f"{address}/loki/api/v1/query?{urllib.parse.urlencode(arguments)}")
    result = answer["data"]["result"] if answer else []
    return range(int(result[0]["value"][1]) if result else 0)


def traces(address, ids):
    """Return the stored ones of some traces: {id: [span]}."""
    found = {}
    for trace in ids:
        answer = fetch(f"{address}/api/traces/{trace}")
        if answer and answer.get("data"):
            found[trace] = [
                {**span, "process": item["processes"][span["processID"]]}
                for item in answer["data"]
                for span in item["spans"]
            ]
    return found


def wait(ask, wanted, seconds, show=json.dumps):
    """Ask until there are enough results or the time is over; print the last ones."""
    deadline = time.monotonic() + seconds
    while True:
        found = ask()
        if len(found) >= wanted or time.monotonic() > deadline:
            print(show(found))
            return
        time.sleep(0.2)


def write(count, rate, prefix):
    """Write numbered lines."""
    started = time.monotonic()
    for number in range(count):
        if rate:
            time.sleep(max(0.0, started + number / rate - time.monotonic()))
        print(f"{prefix} {number}", flush=rate > 0)


def main():
    """Run one command."""
    kind, *rest = sys.argv[1:]
    if kind == "logs":
        address, query, wanted, *more = rest
        wait(lambda: logs(address, query), int(wanted), float(more[0]) if more else 20)
    elif kind == "count":
        address, query, wanted, *more = rest
        wait(lambda: count(address, query), int(wanted), float(more[0]) if more else 20, show=len)
    elif kind == "traces":
        address, wanted, seconds, *ids = rest
        wait(lambda: traces(address, ids), int(wanted), float(seconds))
    elif kind == "write":
        write(int(rest[0]), int(rest[1]), rest[2])
    else:
        sys.exit(__doc__)


main()

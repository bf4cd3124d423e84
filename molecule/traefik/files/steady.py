"""Ask Traefik without pause while a command runs; ``steady.py COMMAND...`` prints what went wrong.

One thread opens a connection per request, one keeps a single connection, as long as the server does. The command begins
when both have had some answers, and they go on until they have had more after its end.
"""

import http.client
import json
import subprocess
import sys
import threading
import time

import client

REQUEST = {"path": "/webhook/steady", "method": "POST", "size": 1000}
done = threading.Event()
result = {"new": 0, "kept": 0, "failed": [], "serials": []}


def fresh():
    """Open a connection for each request."""
    while not done.is_set():
        answer = client.ask(REQUEST)
        if answer.get("status") == http.HTTPStatus.OK:
            result["new"] += 1
        else:
            result["failed"].append(f"new: {answer}")
        if answer.get("serial") not in result["serials"]:
            result["serials"].append(answer.get("serial"))


def kept():
    """Send all requests through one connection, opened again only when the server announced its end."""
    connection = None
    while not done.is_set():
        try:
            connection = connection or client.connect({})
            answer = client.send(connection, REQUEST)
        except (OSError, http.client.HTTPException) as error:
            # A server may close an idle connection; a client then repeats the request on a new one.
            connection = None
            result.setdefault("reopened", []).append(str(error))
            continue
        if answer["status"] == http.HTTPStatus.OK:
            result["kept"] += 1
        else:
            result["failed"].append(f"kept: {answer}")
        if answer["headers"].get("connection") == "close":
            connection = None
        done.wait(0.02)


def wait_for_answers(number):
    """Wait until both threads have had this many more good answers."""
    wanted = {kind: result[kind] + number for kind in ("new", "kept")}
    deadline = time.monotonic() + 60
    while any(result[kind] < wanted[kind] for kind in wanted) and time.monotonic() < deadline:
        time.sleep(0.05)


threads = [threading.Thread(target=target) for target in (fresh, kept)]
for thread in threads:
    thread.start()
wait_for_answers(10)
begin = time.monotonic()
command = subprocess.run(sys.argv[1:], capture_output=True, text=True, check=False)
result["seconds"] = round(time.monotonic() - begin, 2)
result["command"] = [command.returncode, command.stderr]
wait_for_answers(30)
done.set()
for thread in threads:
    thread.join()
print(json.dumps(result))

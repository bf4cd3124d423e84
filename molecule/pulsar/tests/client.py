"""Runs on the test host, with the client library that the bridge uses; prints one line of JSON.

client.py ROLE send TOPIC SECONDS RATE FILE      publish at a rate, at most until FILE.stop is there;
                                                 FILE gets what was acknowledged as stored
client.py ROLE once TOPIC [TEXT]                 publish one message
client.py ROLE drain TOPIC SUBSCRIPTION [FILE]   consume everything; compare with FILE
client.py ROLE latency TOPIC SUBSCRIPTION COUNT  publish one after the other and wait for each to arrive
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, "/opt/n8n-platform/bridge/current/site-packages")
import pulsar

URL = os.environ.get("PULSAR_URL", "pulsar://127.0.0.1:6650")
CA = os.environ.get("PULSAR_CA")
IDLE_MS = 3000


def connect(role: str) -> Any:
    """Return a client with the token of a role; ``none`` and ``forged`` have none that is right."""
    token = "e30.e30.e30" if role == "forged" else ""
    if role not in ("none", "forged"):
        token = Path(f"/etc/n8n-platform/secrets/pulsar_{role}_token").read_text(encoding="utf-8")
    return pulsar.Client(
        URL,
        authentication=pulsar.AuthenticationToken(token) if token else None,
        operation_timeout_seconds=4,
        tls_trust_certs_file_path=CA,
        tls_validate_hostname=True,
        logger=pulsar.ConsoleLogger(pulsar.LoggerLevel.Error),
    )


def send(client: Any, topic: str, seconds: float, rate: float, path: str) -> dict[str, Any]:
    """Publish at a rate; what is not acknowledged as stored is sent again."""
    producer = client.create_producer(
        topic, batching_enabled=True, batching_max_publish_delay_ms=5, send_timeout_millis=10000
    )
    stored: list[int] = []
    again: list[int] = []
    lock = threading.Lock()
    last, gap, not_stored, open_ids = time.monotonic(), 0.0, 0, 0

    def done(number: int, result: Any, message_id: Any) -> None:
        nonlocal last, gap, not_stored, open_ids
        with lock:
            open_ids -= 1
            if result == pulsar.Result.Ok and message_id.ledger_id() >= 0:
                stored.append(number)
                gap, last = max(gap, time.monotonic() - last), time.monotonic()
            else:
                not_stored += 1
                again.append(number)

    started, number = time.monotonic(), 0
    while True:
        elapsed = time.monotonic() - started
        if os.path.exists(f"{path}.stop"):
            seconds = 0
        with lock:
            due = again.pop() if again else None
            busy = open_ids
        if due is None:
            if elapsed > seconds and not busy:
                break
            if elapsed > seconds or number >= elapsed * rate or busy > 5000:
                threading.Event().wait(0.002)
                continue
            due, number = number, number + 1
        else:
            threading.Event().wait(0.002)
        with lock:
            open_ids += 1
        try:
            producer.send_async(str(due).encode(), lambda result, mid, due=due: done(due, result, mid))
        except pulsar.PulsarException:
            with lock:
                open_ids -= 1
                not_stored += 1
                again.append(due)
            threading.Event().wait(0.02)
    Path(path).write_text(json.dumps(stored), encoding="utf-8")
    return {"stored": len(stored), "sent": number, "not_stored": not_stored, "longest_gap": round(gap, 2)}


def drain(client: Any, topic: str, subscription: str, path: str = "") -> dict[str, Any]:
    """Consume until nothing comes for a while."""
    consumer = client.subscribe(topic, subscription, consumer_type=pulsar.ConsumerType.Shared)
    seen: list[str] = []
    while True:
        try:
            message = consumer.receive(timeout_millis=IDLE_MS)
        except pulsar.Timeout:
            break
        seen.append(message.data().decode())
        consumer.acknowledge(message)
    client.close()
    wanted = {str(number) for number in json.loads(Path(path).read_text(encoding="utf-8"))} if path else set()
    missing = sorted(wanted - set(seen))
    return {"seen": len(seen), "missing": missing[:20], "lost": len(missing), "twice": len(seen) - len(set(seen))}


def latency(client: Any, topic: str, subscription: str, count: int) -> dict[str, Any]:
    """Return milliseconds from publishing to receiving, and of publishing alone."""
    consumer = client.subscribe(topic, subscription, consumer_type=pulsar.ConsumerType.Shared)
    producer = client.create_producer(topic, batching_enabled=False)
    publish, arrive = [], []
    for number in range(count):
        begun = time.monotonic()
        producer.send(str(number).encode())
        publish.append(time.monotonic() - begun)
        consumer.acknowledge(consumer.receive(timeout_millis=5000))
        arrive.append(time.monotonic() - begun)
    return {
        name: [round(1000 * sorted(values)[int(count * share)], 2) for share in (0.5, 0.99)]
        for name, values in (("publish", publish), ("arrive", arrive))
    }


def main(role: str, command: str, *words: str) -> dict[str, Any]:
    """Do what is asked; an error of the client is an answer, too."""
    client = connect(role)
    try:
        if command == "send":
            return send(client, words[0], float(words[1]), float(words[2]), words[3])
        if command == "drain":
            return drain(client, *words)
        if command == "latency":
            return latency(client, words[0], words[1], int(words[2]))
        message_id = client.create_producer(words[0]).send((words[1] if len(words) > 1 else "hello").encode())
        return {"ledger": message_id.ledger_id()}
    except pulsar.PulsarException as error:
        return {"error": type(error).__name__}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))

# SPDX-License-Identifier: GPL-3.0-or-later
"""Put messages into Pulsar that the bridge did not write; runs on the test host with the bridge's libraries.

    python3 forge.py EVENT TENANT KIND      KIND: tenant, signature, payload, expired, copy

Takes the message of EVENT out of its topic as an administrator may, changes what KIND says, and sends the result.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pulsar

URL = "pulsar://127.0.0.1:6650"
TOPIC = "persistent://dealscale/workflow/short"
TOKEN = Path("/etc/n8n-platform/secrets/pulsar_admin_token")
WAIT_MS = 5000


def find(client: pulsar.Client, event: str) -> pulsar.Message:
    """Return the message of an event; it is kept for a day after it was acknowledged."""
    for partition in client.get_topic_partitions(TOPIC):
        reader = client.create_reader(partition, pulsar.MessageId.earliest)
        while reader.has_message_available():
            message = reader.read_next(WAIT_MS)
            if event in message.data().decode():
                return message
    raise SystemExit(f"no message of {event} in {TOPIC}")


def main() -> None:
    """Send one forged message."""
    event, tenant, kind = sys.argv[1:]
    client = pulsar.Client(URL, authentication=pulsar.AuthenticationToken(TOKEN.read_text(encoding="utf-8").strip()))
    message = find(client, event)
    properties, payload = dict(message.properties()), message.data()
    if kind == "tenant":
        properties["tenant_id"] = tenant
        payload = json.dumps({**json.loads(payload), "tenant": tenant}).encode()
    elif kind == "signature":
        properties["signature"] = properties["signature"][::-1]
    elif kind == "payload":
        payload = json.dumps({**json.loads(payload), "type": "topic.other"}).encode()
    elif kind == "expired":
        properties["exp"] = str(int(properties["exp"]) - 10**7)
    client.create_producer(TOPIC).send(payload, properties=properties)
    client.close()


if __name__ == "__main__":
    main()

"""Ask Traefik as a browser would; ``client.py`` takes a JSON list of requests and prints one of answers.

Each request has its own connection. One with ``until`` is repeated until its answer has these values, at most 15 s.
"""

import base64
import contextlib
import http.client
import json
import os
import socket
import ssl
import sys
import time
import warnings

warnings.simplefilter("ignore", DeprecationWarning)


def connect(request):
    """Return a connected socket, with TLS unless the request says plain."""
    plain = request.get("plain", False)
    address = ("127.0.0.1", request.get("port", 80 if plain else 443))
    connection = socket.create_connection(address, timeout=15, source_address=(request.get("from", "127.0.0.1"), 0))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if plain:
        return connection
    context = ssl.create_default_context(cafile=request.get("ca", "/etc/n8n-platform/tls/ca.crt"))
    if "tls_max" in request:
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion[request["tls_max"]]
        context.set_ciphers("ALL:@SECLEVEL=0")
    return context.wrap_socket(connection, server_hostname=request.get("sni", "n8n.test"))


def websocket(connection, request):
    """Upgrade, send a frame and return the one that comes back."""
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [f"GET {request['path']} HTTP/1.1", "Host: n8n.test", "Upgrade: websocket", "Connection: Upgrade"]
    lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "Origin: https://n8n.test"]
    lines += [f"{name}: {value}" for name, value in request.get("headers", {}).items()]
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    stream = connection.makefile("rb")
    status = int(stream.readline().split()[1])
    while stream.readline().strip():
        continue
    if status != http.HTTPStatus.SWITCHING_PROTOCOLS:
        return {"status": status}
    text = request["websocket"].encode()
    mask = os.urandom(4)
    frame = bytes([0x81, 0x80 | len(text)]) + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(text))
    connection.sendall(frame)
    length = stream.read(2)[1]
    return {"status": status, "body": stream.read(length).decode()}


def send(connection, request):
    """Send a request on a connection and return the answer."""
    begin = time.monotonic()
    client = http.client.HTTPConnection("n8n.test")
    client.sock = connection
    client.putrequest(request.get("method", "GET"), request["path"], skip_host=True, skip_accept_encoding=True)
    headers = {"Host": "n8n.test", **request.get("headers", {})}
    if "size" in request:
        headers["Content-Length"] = str(request["size"])
    for name, value in headers.items():
        client.putheader(name, value)
    client.endheaders()
    try:
        left = request.get("send", request.get("size", 0))
        while left > 0:
            client.send(b"x" * min(left, 1 << 20))
            left -= 1 << 20
    except OSError:
        pass  # refused before it was all sent; the answer tells
    answer = client.getresponse()
    first = answer.read(1)
    after = time.monotonic() - begin
    body = (first + answer.read()).decode("utf-8", "replace")
    with contextlib.suppress(ValueError):
        body = json.loads(body)
    found = {name.lower(): value for name, value in answer.getheaders()}
    return {"status": answer.status, "headers": found, "body": body, "first_byte_s": after}


def ask(request):
    """Return the answer to one request, or the error that kept it from being asked."""
    try:
        connection = connect(request)
        if "websocket" in request:
            return websocket(connection, request)
        serial = connection.getpeercert()["serialNumber"] if isinstance(connection, ssl.SSLSocket) else None
        return {**send(connection, request), "serial": serial}
    except (OSError, http.client.HTTPException) as error:
        return {"error": f"{type(error).__name__} {error}"}


def patient(request):
    """Repeat a request until it has the wanted answer."""
    deadline = time.monotonic() + 15
    while True:
        answer = ask(request)
        if request.get("until", {}).items() <= answer.items() or time.monotonic() > deadline:
            return answer
        time.sleep(0.1)


if __name__ == "__main__":
    print(json.dumps([patient(request) for request in json.load(sys.stdin)]))

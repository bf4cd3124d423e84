"""A server that stands where n8n would and answers what it was asked: ``echo_server.py PORT``."""

import base64
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(sys.argv[1])


class Echo(BaseHTTPRequestHandler):
    """Answers with the request as JSON; upgrades /rest/push to a WebSocket that echoes one frame."""

    protocol_version = "HTTP/1.1"
    server_version = "Leaky/1.0"

    def log_message(self, *_arguments):
        """Keep the journal quiet."""

    def websocket(self):
        """Shake hands and send one short text frame back."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = hashlib.sha1(key.encode(), usedforsecurity=False)
        self.send_response(101)
        for name, value in (
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Accept", base64.b64encode(accept.digest()).decode()),
        ):
            self.send_header(name, value)
        self.end_headers()
        length = self.rfile.read(2)[1] & 0x7F
        mask, text = self.rfile.read(4), self.rfile.read(length)
        text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(text))
        self.wfile.write(bytes([0x81, len(text)]) + text)
        self.close_connection = True

    def stream(self):
        """Send two chunks, two seconds apart or four."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for text in (b"first", b"last"):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
            self.wfile.flush()
            if text == b"first":
                threading.Event().wait(4 if "slow" in self.path else 2)
        self.wfile.write(b"0\r\n\r\n")

    def answer(self):
        """Answer any method."""
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self.websocket()
            return
        size = int(self.headers.get("Content-Length", 0))
        while size > 0:
            size -= len(self.rfile.read(min(size, 1 << 20)))
        if self.path.startswith("/webhook/stream"):
            self.stream()
            return
        body = json.dumps(
            {"port": PORT, "method": self.command, "path": self.path, "headers": dict(self.headers.items())}
        ).encode()
        self.send_response(200)
        self.send_header("X-Powered-By", "Leaky")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer  # noqa: N815


class Server(ThreadingHTTPServer):
    """Takes bursts."""

    request_queue_size = 512
    daemon_threads = True


Server(("127.0.0.1", PORT), Echo).serve_forever()

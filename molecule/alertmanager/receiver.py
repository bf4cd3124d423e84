#!/usr/bin/python3
"""Take messages by HTTP and by mail and write each down: receiver FILE HTTP_PORT MAIL_PORT."""

from __future__ import annotations

import json
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FILE = Path(sys.argv[1])
LOCK = threading.Lock()


def note(**entry: object) -> None:
    """Write a message down."""
    with LOCK, FILE.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


class Web(BaseHTTPRequestHandler):
    """Any POST is a message."""

    def do_POST(self) -> None:
        """Take one."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        note(path=self.path, authorization=self.headers.get("Authorization", ""), body=body)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


class Mail(socketserver.StreamRequestHandler):
    """The least a mail server must say; it lets anybody in."""

    def handle(self) -> None:
        """Take one mail."""
        self.wfile.write(b"220 test ESMTP\r\n")
        secret, to = "", []
        while line := self.rfile.readline().decode().strip():
            word = line.split(":")[0].split(" ")[0].upper()
            if word == "EHLO":
                self.wfile.write(b"250-test\r\n250 AUTH PLAIN LOGIN\r\n")
            elif word == "AUTH":
                secret = line
                self.wfile.write(b"235 welcome\r\n")
            elif word == "DATA":
                self.wfile.write(b"354 go on\r\n")
                text = ""
                while (part := self.rfile.readline().decode()) not in (".\r\n", ""):
                    text += part
                note(path="mail", authorization=secret, body=text, to=to)
                self.wfile.write(b"250 taken\r\n")
            elif word == "QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                to += [line] if word == "RCPT" else []
                self.wfile.write(b"250 ok\r\n")


class MailServer(socketserver.ThreadingTCPServer):
    """A server that can be started anew at once."""

    allow_reuse_address = True
    daemon_threads = True


threading.Thread(target=MailServer(("127.0.0.1", int(sys.argv[3])), Mail).serve_forever, daemon=True).start()
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Web).serve_forever()

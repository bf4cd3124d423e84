#!/usr/bin/python3
"""Answers like n8n's main process: readiness (red while /run/red exists), login, and retry, which only notes the id."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """The requests the platform's services make."""

    def do_GET(self):
        """Answer the readiness check."""
        self.send_response(503 if Path("/run/red").exists() else 200)
        self.end_headers()

    def do_POST(self):
        """Answer login and retry."""
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        with Path("/run/asked").open("a", encoding="utf-8") as stream:
            stream.write(f"{self.path} {body} {self.headers.get('cookie', '-')}\n")
        self.send_response(200)
        if self.path == "/rest/login":
            self.send_header("set-cookie", "n8n-auth=session; Path=/; HttpOnly; Secure")
        self.end_headers()
        self.wfile.write(b"{}")


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()

# SPDX-License-Identifier: GPL-3.0-or-later
"""A broker's administration over HTTP, as far as the modules use it: it keeps what it is told."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "header.claims.signature"
# Where the broker keeps what is posted to a path of a namespace.
POLICIES = {
    "retention": "retention_policies",
    "messageTTL": "message_ttl_in_seconds",
    "deduplication": "deduplicationEnabled",
    "maxUnackedMessagesPerConsumer": "max_unacked_messages_per_consumer",
    "maxUnackedMessagesPerSubscription": "max_unacked_messages_per_subscription",
}


class RefusalError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, reason: str = "refused") -> None:
        super().__init__(reason)
        self.status = status


class FakePulsar:
    """Use it as a context manager. ``failures`` are answers to give before the real ones."""

    def __init__(self) -> None:
        self.tenants: dict[str, Any] = {}
        self.namespaces: dict[str, dict[str, Any]] = {}
        self.topics: dict[str, dict[str, Any]] = {}
        self.stats: dict[str, Any] = {}
        self.writes: list[str] = []
        self.failures: list[int] = []
        self.owner = ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                text = self.rfile.read(length).decode()
                status, body = outer.respond(self.command, self.path, text, self.headers.get("Authorization", ""))
                self.send_response(status)
                if status in (307, 308):
                    self.send_header("Location", outer.owner + self.path)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, *words: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> FakePulsar:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()

    def respond(self, method: str, target: str, text: str, authorization: str) -> tuple[int, bytes]:
        """Return status and body of an answer."""
        if self.failures:
            return self.failures.pop(0), b"not json"
        if authorization != f"Bearer {TOKEN}":
            return 401, b""
        parts = urlsplit(target)
        path = unquote(parts.path).removeprefix("/admin/v2/")
        if method != "GET":
            self.writes.append(f"{method} {path}")
        try:
            found = self.route(method, path, json.loads(text) if text else None, parse_qs(parts.query))
        except RefusalError as refusal:
            return refusal.status, json.dumps({"reason": str(refusal)}).encode()
        return (200, json.dumps(found).encode()) if found is not None else (204, b"")

    def route(self, method: str, path: str, body: Any, query: dict[str, list[str]]) -> Any:
        """Find who answers."""
        kind, _, rest = path.partition("/")
        if kind == "brokers":
            return "ok"
        if path == "tenants":
            return sorted(self.tenants)
        if kind == "namespaces" and "/" not in rest:
            return [name for name in self.namespaces if name.startswith(f"{rest}/")]
        return {"tenants": self.tenant, "namespaces": self.namespace, "persistent": self.topic}[kind](
            method, rest, body, query
        )

    def tenant(self, method: str, name: str, body: Any, _query: Any) -> Any:
        """Answer about a tenant."""
        if method == "GET":
            if name not in self.tenants:
                raise RefusalError(404)
            return self.tenants[name]
        if method == "PUT" and name in self.tenants:
            raise RefusalError(409)
        self.tenants[name] = body
        return None

    def namespace(self, method: str, rest: str, body: Any, query: dict[str, list[str]]) -> Any:
        """Answer about a namespace and its policies."""
        tenant, space, *place = rest.split("/")
        name = f"{tenant}/{space}"
        if not place:
            if method == "GET" and name not in self.namespaces:
                raise RefusalError(404)
            if method == "PUT":
                rights: dict[str, Any] = {"namespace_auth": {}, "subscription_auth_roles": {}}
                self.namespaces.setdefault(name, {"auth_policies": rights})
            return self.namespaces[name] if method == "GET" else None
        policies = self.namespaces[name]
        if place[0] == "permissions":
            self.rights(method, policies["auth_policies"], place[1:], body)
        elif place[0] == "backlogQuota":
            self.fits(policies.get("retention_policies"), body)
            quota = {**body, "limit": body["limitSize"]}
            policies.setdefault("backlog_quota_map", {})[query["backlogQuotaType"][0]] = quota
        elif place[0] == "publishRate":
            policies["publishMaxMessageRate"] = {"trial": body}
        else:
            if place[0] == "retention":
                self.fits(body, (policies.get("backlog_quota_map") or {}).get("destination_storage"))
            policies[POLICIES[place[0]]] = body
        return None

    def fits(self, retention: Any, quota: Any) -> None:
        """Refuse a backlog above what is kept, as the broker does."""
        if retention and quota and 0 <= retention["retentionSizeInMB"] * 2**20 <= quota["limitSize"]:
            raise RefusalError(412, "Retention Quota must exceed configured backlog quota for namespace.")

    def rights(self, method: str, rights: dict[str, Any], place: list[str], body: Any) -> None:
        """Give or take rights: those of a role are replaced, those of a subscription added to."""
        if place[0] != "subscription":
            if method == "DELETE":
                rights["namespace_auth"].pop(place[0], None)
            else:
                rights["namespace_auth"][place[0]] = body
        elif method == "DELETE":
            rights["subscription_auth_roles"][place[1]].remove(place[2])
        else:
            roles = rights["subscription_auth_roles"].setdefault(place[1], [])
            roles += [role for role in body if role not in roles]

    def topic(self, method: str, rest: str, body: Any, _query: Any) -> Any:
        """Answer about a topic."""
        match = re.fullmatch(r"([^/]+/[^/]+)(?:/([^/]+))?(?:/(.+))?", rest)
        assert match
        space, short, place = match.groups()
        if short is None:
            names = [name for name, topic in self.topics.items() if not topic["partitions"]]
            return [f"persistent://{name}" for name in names if name.startswith(f"{space}/")]
        if short == "partitioned" and method == "GET":
            return [
                f"persistent://{name}"
                for name, topic in self.topics.items()
                if topic["partitions"] and name.startswith(f"{space}/")
            ]
        name = f"{space}/{short}"
        topic = self.topics.get(name)
        if method == "GET":
            if place == "partitions":
                return {"partitions": topic["partitions"] if topic else 0}
            if topic is None:
                raise RefusalError(404, "Topic not found")
            return sorted(topic["subscriptions"]) if place == "subscriptions" else self.stats.get(name, {})
        if method == "DELETE":
            self.topics.pop(name)
        elif place and place.startswith("subscription/"):
            assert topic
            topic["subscriptions"].append(place.removeprefix("subscription/"))
        elif method == "POST":
            assert topic
            topic["partitions"] = body
        else:
            self.topics[name] = {"partitions": body or 0, "subscriptions": []}
        return None

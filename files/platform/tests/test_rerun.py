"""Running executions again, against a small stand-in for n8n."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from n8n_platform import rerun
from n8n_platform.rerun import Api, ApiError, Rerunner
from n8n_platform.settings import Settings


def briefly(seconds: float) -> None:
    """Wait a little less than asked."""
    threading.Event().wait(seconds / 100)


class N8n(BaseHTTPRequestHandler):
    """Answers as n8n does; what was asked is kept in the class."""

    asked: list[tuple[str, dict[str, Any], str]]
    status = 200
    answer = b"{}"
    cookies = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.path, body, self.headers.get("cookie", "")))
        self.send_response(type(self).status)
        if self.path == "/rest/login" and self.cookies:
            self.send_header("set-cookie", "n8n-auth=token; Max-Age=604800; Path=/; HttpOnly; Secure; SameSite=Lax")
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *arguments: Any) -> None:
        return


@pytest.fixture
def n8n() -> Iterator[tuple[type[N8n], str]]:
    handler = type("Handler", (N8n,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class FakeStore:
    """The list as the rerunner sees it: ``begins`` is the id n8n gives, after so many looks."""

    def __init__(self, begins: int | None = 9, looks: int = 1, open_entry: bool = True) -> None:
        self.begins = begins
        self.looks = looks
        self.open_entry = open_entry
        self.done: list[str] = []

    def claim(self, execution_id: int) -> bool:
        self.done.append("claim")
        return self.open_entry

    def restore(self, execution_id: int) -> None:
        self.done.append("restore")

    def release(self, execution_id: int) -> None:
        self.done.append("release")

    def rerun_of(self, execution_id: int) -> int | None:
        self.looks -= 1
        return self.begins if self.looks < 0 else None

    def owner_email(self) -> str | None:
        return "owner@example.org"


def test_owner_signs_in_and_retries(n8n: tuple[type[N8n], str], settings: Settings) -> None:
    handler, url = n8n
    store = FakeStore()
    runner = rerun.connect(Settings(**{**vars(settings), "api_url": url}), store)  # type: ignore[arg-type]
    assert runner.rerun(5) == rerun.Result(5, 9)
    assert store.done == ["claim", "restore"]
    assert handler.asked[0][1] == {"emailOrLdapLoginId": "owner@example.org", "password": "n8n_owner_password-value"}
    assert handler.asked[1] == ("/rest/executions/5/retry", {"loadWorkflow": False}, "n8n-auth=token")


def test_what_is_not_open_is_not_run(n8n: tuple[type[N8n], str]) -> None:
    store = FakeStore(open_entry=False)
    result = Rerunner(store, Api(n8n[1])).rerun(5)  # type: ignore[arg-type]
    assert (result.rerun_id, store.done) == (None, ["claim"])
    assert n8n[0].asked == []


def test_a_refusal_gives_the_entry_back(n8n: tuple[type[N8n], str]) -> None:
    handler, url = n8n
    handler.status, handler.answer = 404, b'{"message": "The execution does not exist."}'
    store = FakeStore(begins=None)
    result = Rerunner(store, Api(url), pause=briefly).rerun(5)  # type: ignore[arg-type]
    assert result.error == "n8n answered 404: The execution does not exist."
    assert store.done == ["claim", "restore", "release"]


def test_no_answer_keeps_the_entry_taken() -> None:
    class Silent(Api):
        def retry(self, execution_id: int) -> None:
            raise TimeoutError("timed out")

    store = FakeStore(begins=None)
    result = Rerunner(store, Silent("http://n8n"), pause=briefly).rerun(5)  # type: ignore[arg-type]
    assert result.error.startswith("timed out; n8n-platform executions lost shows in five minutes")
    assert "release" not in store.done


def test_a_main_process_that_is_down_gives_the_entry_back() -> None:
    store = FakeStore(begins=None)
    result = Rerunner(store, Api("http://127.0.0.1:1"), pause=briefly).rerun(5)  # type: ignore[arg-type]
    assert result.error == "n8n's main process does not answer; is it running?"
    assert "release" in store.done


def test_a_slow_answer_is_no_reason_to_wait(n8n: tuple[type[N8n], str]) -> None:
    store = FakeStore(looks=3)
    assert Rerunner(store, Api(n8n[1]), pause=briefly).rerun(5).rerun_id == 9  # type: ignore[arg-type]


def test_a_payload_that_cannot_be_restored_gives_the_entry_back() -> None:
    class Broken(FakeStore):
        def restore(self, execution_id: int) -> None:
            raise OSError("database is gone")

    store = Broken()
    with pytest.raises(OSError, match="gone"):
        Rerunner(store, Api("http://127.0.0.1:1")).rerun(5)  # type: ignore[arg-type]
    assert store.done == ["claim", "release"]


def test_a_second_factor_is_named(n8n: tuple[type[N8n], str]) -> None:
    n8n[0].cookies = False
    with pytest.raises(ApiError, match="second factor"):
        Api(n8n[1]).login("a@b", "x")


def test_refusals_that_are_not_json(n8n: tuple[type[N8n], str]) -> None:
    n8n[0].status, n8n[0].answer = 502, b"Bad gateway"
    with pytest.raises(ApiError, match="n8n answered 502: Bad gateway"):
        Api(n8n[1]).retry(5)


def test_without_an_owner_there_is_no_session(settings: Settings) -> None:
    store = FakeStore()
    store.owner_email = lambda: None  # type: ignore[method-assign]
    with pytest.raises(ApiError, match="no owner"):
        rerun.connect(settings, store)  # type: ignore[arg-type]


def test_tls_checks_the_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def context(cafile: str) -> ssl.SSLContext:
        made.append(cafile)
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    monkeypatch.setattr(ssl, "create_default_context", context)
    api = Api("https://10.0.0.1:5678", "/etc/tls/ca.crt")
    assert made == ["/etc/tls/ca.crt"]
    assert api.context is not None
    assert api.context.verify_mode == ssl.CERT_REQUIRED

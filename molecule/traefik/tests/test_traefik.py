"""Traefik asked from outside: what it lets through, to whom, and how it takes changes."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest

SOURCES = "/etc/n8n-platform/traefik"
LIVE = "/var/lib/n8n-platform/traefik/live"
TLS = "/etc/n8n-platform/tls"
SECRET = "/etc/n8n-platform/secrets/traefik_editor_password"
PUBLISH = f"/usr/local/lib/n8n-platform/traefik-publish {SOURCES}/publish.json"
MAIN = 5678
HOOKS = {5701, 5702, 5703}
PASSWORD = "correct horse battery staple"
PAYLOAD = 3 * 1024 * 1024
UPLOAD = 8 * 1024 * 1024

Ask = Callable[..., Any]


def login(password: str = PASSWORD, user: str = "guest") -> dict[str, str]:
    """Return the header of basic auth."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def ask(host: Any) -> Ask:
    """Return a function that sends requests from the host and returns their answers."""

    def send(*requests: dict[str, Any] | str) -> Any:
        listed = [{"path": request} if isinstance(request, str) else request for request in requests]
        script = "/usr/local/share/traefik-test/client.py"
        answers = json.loads(host.check_output(f"echo {shlex.quote(json.dumps(listed))} | python3 {script}"))
        return answers if len(answers) > 1 else answers[0]

    return send


@pytest.fixture
def steady(host: Any) -> Callable[[str], dict[str, Any]]:
    """Return a function that runs a command under a steady load and returns what the load saw."""

    def run(command: str) -> dict[str, Any]:
        found = json.loads(host.check_output("python3 /usr/local/share/traefik-test/steady.py sh -c %s", command))
        assert found["command"][0] == 0, found["command"]
        assert min(found["new"], found["kept"]) >= 40, found
        return dict(found)

    return run


# --- the service ------------------------------------------------------------------------------------------------------


def test_runs_in_its_sandbox(host: Any, running: Any, exposure: Any) -> None:
    running("traefik.service")
    running("traefik-publish.path")
    assert exposure("traefik.service") <= 1.5
    assert exposure("traefik-publish.service") <= 1.5
    pid = host.check_output("systemctl show traefik --property MainPID --value")
    status = host.file(f"/proc/{pid}/status").content_string
    assert "CapEff:\t0000000000000000" in status
    assert host.check_output("ps -o user= -p %s", pid) == "traefik"


def test_listens_on_its_ports_only(listeners: Any) -> None:
    fixtures = {("127.0.0.1", port) for port in {MAIN} | HOOKS}
    assert listeners() - fixtures == {("*", 80), ("*", 443), ("127.0.0.1", 8082)}


def test_ops_port_gives_ping_and_metrics_but_no_api(ask: Ask) -> None:
    ping, metrics, api, dashboard = ask(
        *({"path": path, "port": 8082, "plain": True} for path in ("/ping", "/metrics", "/api/rawdata", "/dashboard/"))
    )
    assert ping["status"] == 200
    assert "traefik_config_last_reload_success" in metrics["body"]
    assert api["status"] == dashboard["status"] == 404


def test_keeps_its_secrets_from_other_users(host: Any) -> None:
    for name in ("certificate.yml", "editor-auth.yml"):
        assert "PRIVATE KEY" in host.file(f"{LIVE}/dynamic/{name}").content_string or name == "editor-auth.yml"
        assert host.run(f"runuser -u nobody -- cat {LIVE}/dynamic/{name}").rc != 0
    assert PASSWORD not in host.check_output(f"grep -r . {LIVE}/ {SOURCES}/")


# --- who reaches what -------------------------------------------------------------------------------------------------


def test_editor_asks_for_the_password(ask: Ask) -> None:
    none, wrong, stranger, right = ask(
        "/",
        {"path": "/", "headers": login("wrong")},
        {"path": "/", "headers": login(user="root")},
        {"path": "/", "headers": login()},
    )
    assert [none["status"], wrong["status"], stranger["status"]] == [401, 401, 401]
    assert right["status"] == 200
    assert right["body"]["port"] == MAIN
    assert "Authorization" not in right["body"]["headers"]


def test_editor_is_closed_to_other_networks(ask: Ask) -> None:
    assert ask({"path": "/", "from": "127.0.0.9", "headers": login()})["status"] == 403


def statuses(ask: Ask, paths: list[str], **request: Any) -> dict[str, int]:
    """Return the status of the answer for each path."""
    return {
        path: answer["status"]
        for path, answer in zip(paths, ask(*({"path": path, **request} for path in paths)), strict=True)
    }


def test_hooks_go_to_the_pool_without_a_password(ask: Ask) -> None:
    for path in ("/webhook/a", "/webhook-waiting/a", "/form/a", "/form-waiting/a", "/mcp/a"):
        answers = ask(*[{"path": path, "from": "127.0.0.9"}] * 6)
        assert {answer["body"]["port"] for answer in answers} == HOOKS, path


def test_open_paths_of_main(ask: Ask) -> None:
    paths = [
        "/webhook-test/a", "/form-test/a", "/mcp-test/a", "/rest/oauth1-credential/callback", "/static/form.css",
        "/rest/oauth2-credential/callback?code=1", "/favicon.ico", "/mcp-server/http",
    ]  # fmt: skip
    answers = ask(*({"path": path, "from": "127.0.0.9"} for path in paths))
    assert {path: answer["body"]["port"] for path, answer in zip(paths, answers, strict=True)} == dict.fromkeys(
        paths, MAIN
    )


def test_near_misses_of_open_paths_need_the_password(ask: Ask) -> None:
    paths = [
        "/webhook", "/Webhook/a", "/webhooks/a", "/rest/oauth2-credential/callback/x", "/rest/settings",
        "/webhook/../rest/settings", "/webhook/%2e%2e/rest/settings", "/static/../rest/settings",
    ]  # fmt: skip
    assert statuses(ask, paths) == dict.fromkeys(paths, 401)


def test_status_pages_are_refused_even_with_the_password(ask: Ask) -> None:
    paths = [
        "/metrics", "/METRICS", "/metrics/", "//metrics", "/%6detrics", "/x/../metrics", "/./metrics", "/healthz",
        "/healthz/readiness", "/rest/dev", "/rest/dev/x", "/rest/%64ev", "/Rest/E2E/reset",
    ]  # fmt: skip
    assert statuses(ask, paths, headers=login()) == dict.fromkeys(paths, 404)


def test_encoded_separators_are_refused(ask: Ask) -> None:
    paths = [
        "/webhook/a%2fb", "/webhook/..%2f..%2fmetrics", "/a%5cb", "/a%00b", "/a%3bb", "/a%252fb", "/a%3fb", "/a%23b",
    ]  # fmt: skip
    assert statuses(ask, paths, headers=login()) == dict.fromkeys(paths, 400)


def test_api_has_its_own_address_list(ask: Ask) -> None:
    allowed, refused = ask(
        {"path": "/api/v1/workflows", "from": "127.0.0.2"}, {"path": "/api/v1/workflows", "headers": login()}
    )
    assert allowed["status"] == 200
    assert refused["status"] == 403


def test_websocket_of_the_editor(ask: Ask) -> None:
    push = {"path": "/rest/push?pushRef=x", "websocket": "hello"}
    refused, opened = ask(push, {**push, "headers": login()})
    assert refused["status"] == 401
    assert opened == {"status": 101, "body": "hello"}


def test_own_dynamic_configuration(ask: Ask) -> None:
    assert ask({"path": "/own", "headers": login()})["status"] == 404


# --- TLS and headers --------------------------------------------------------------------------------------------------


def test_other_names_are_unknown(ask: Ask) -> None:
    sni, header = ask({"path": "/", "sni": "other.test"}, {"path": "/webhook/a", "headers": {"Host": "other.test"}})
    assert "UNRECOGNIZED_NAME" in sni["error"]
    assert header["status"] == 404


def test_http_leads_to_the_public_https_port(ask: Ask) -> None:
    get, post = ask({"path": "/a?b=c", "plain": True}, {"path": "/webhook/a", "plain": True, "method": "POST"})
    assert (get["status"], get["headers"]["location"]) == (301, "https://n8n.test:8443/a?b=c")
    assert (post["status"], post["headers"]["location"]) == (308, "https://n8n.test:8443/webhook/a")


def test_tls_versions(ask: Ask) -> None:
    versions = ("TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3")
    answers = ask(*({"path": "/webhook/a", "tls_max": version} for version in versions))
    assert all("PROTOCOL_VERSION" in answer["error"] for answer in answers[:2])
    assert [answer.get("status") for answer in answers[2:]] == [200, 200]


def test_headers(ask: Ask) -> None:
    editor, hook = ask({"path": "/", "headers": login()}, "/webhook/a")
    for answer in (editor, hook):
        assert answer["headers"]["strict-transport-security"] == "max-age=63072000; includeSubDomains"
        assert answer["headers"]["x-content-type-options"] == "nosniff"
        assert not {"server", "x-powered-by", "via"} & set(answer["headers"])
    assert editor["headers"]["x-frame-options"] == "SAMEORIGIN"
    assert editor["headers"]["referrer-policy"] == "same-origin"
    assert editor["headers"]["cross-origin-resource-policy"] == "same-origin"
    assert "camera=()" in editor["headers"]["permissions-policy"]
    assert "content-security-policy" not in editor["headers"]
    assert "x-frame-options" not in hook["headers"]


def test_forged_forwarding_headers_do_not_arrive(ask: Ask) -> None:
    forged = {
        "X-Forwarded-For": "203.0.113.9", "X-Real-Ip": "203.0.113.9", "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "evil.test", "X_Forwarded_For": "203.0.113.9",
    }  # fmt: skip
    answer = ask({"path": "/webhook/a", "headers": forged})
    got = answer["body"]["headers"]
    assert (got["X-Forwarded-For"], got["X-Real-Ip"], got["X-Forwarded-Proto"], got["X-Forwarded-Host"]) == (
        "127.0.0.1", "127.0.0.1", "https", "n8n.test",
    )  # fmt: skip
    assert "X_Forwarded_For" not in got


# --- limits -----------------------------------------------------------------------------------------------------------


def test_body_limits_are_those_of_n8n(ask: Ask) -> None:
    files = {"Content-Type": "multipart/form-data; boundary=x"}
    within, above, form_within, form_above, zeros, editor = ask(
        {"path": "/webhook/a", "method": "POST", "size": PAYLOAD},
        {"path": "/webhook/a", "method": "POST", "size": PAYLOAD + 1, "send": 1},
        {"path": "/form/a", "method": "POST", "size": UPLOAD, "headers": files},
        {"path": "/form/a", "method": "POST", "size": UPLOAD + 1, "send": 1, "headers": files},
        {"path": "/webhook/a", "method": "POST", "headers": {"Content-Length": f"000{PAYLOAD + 1}"}},
        {"path": "/rest/workflows", "method": "POST", "size": PAYLOAD + 1, "send": 1, "headers": login()},
    )
    assert [within["status"], form_within["status"]] == [200, 200]
    assert [above["status"], form_above["status"], zeros["status"], editor["status"]] == [413, 413, 413, 413]


def test_http2_has_the_same_rules(host: Any) -> None:
    def curl(options: str) -> str:
        command = "curl -s -o /dev/null -w '%{http_version} %{http_code}'"
        return str(
            host.check_output(f"{command} --http2 --cacert {TLS}/ca.crt --resolve n8n.test:443:127.0.0.1 {options}")
        )

    assert curl("https://n8n.test/webhook/a") == "2 200"
    assert curl("https://n8n.test/metrics") == "2 404"
    assert curl(f"-X POST -H 'Content-Length: {PAYLOAD + 1}' https://n8n.test/webhook/a") == "2 413"


def test_answers_are_streamed(ask: Ask) -> None:
    answer = ask("/webhook/stream")
    assert answer["body"] == "firstlast"
    assert answer["first_byte_s"] < 1


def test_logins_are_rate_limited_per_address(ask: Ask) -> None:
    attempt = {"path": "/rest/login", "method": "POST", "headers": login("guess"), "from": "127.0.0.3"}
    assert [answer["status"] for answer in ask(*[attempt] * 5)] == [401, 401, 401, 429, 429]
    other, reading = ask(
        {**attempt, "from": "127.0.0.4"}, {"path": "/rest/login", "headers": login(), "from": "127.0.0.3"}
    )
    assert other["status"] == 401
    assert reading["status"] == 200


def test_access_log_has_no_secrets(host: Any, ask: Ask) -> None:
    ask({"path": "/webhook/logged?token=s3cr3t-query", "headers": {"X-Key": "s3cr3t-header", "User-Agent": "probe/1"}})
    ask({"path": "/rest/logged?token=s3cr3t-query", "headers": {**login(), "Cookie": "n8n-auth=s3cr3t-cookie"}})
    lines = host.check_output("journalctl --no-pager -o cat -u traefik --grep logged").splitlines()
    entries = [json.loads(line) for line in lines]
    assert {entry["RequestPath"] for entry in entries} == {"/webhook/logged", "/rest/logged"}
    assert entries[0]["request_User-Agent"] == "probe/1"
    journal = host.check_output("journalctl --no-pager -o cat -u traefik")
    for secret in ("s3cr3t", PASSWORD, login()["Authorization"].split()[1], '"guest"'):
        assert secret not in journal


# --- the pool ---------------------------------------------------------------------------------------------------------


def test_a_dead_instance_costs_no_request_and_comes_back(host: Any, ask: Ask, steady: Any) -> None:
    try:
        found = steady("systemctl kill -s KILL echo@5702; systemctl stop echo@5702")
        # A request the instance was working on may fail; none is sent twice, and none that came later is lost.
        assert len(found["failed"]) <= 1, found["failed"]
        ports = {answer["body"]["port"] for answer in ask(*["/webhook/a"] * 6)}
        assert ports == HOOKS - {5702}
        metrics = ask({"path": "/metrics", "port": 8082, "plain": True})["body"]
        assert 'traefik_service_server_up{service="hooks@file",url="http://127.0.0.1:5702"} 0' in metrics
    finally:
        host.check_output("systemctl start echo@5702")
    ask({"path": "/webhook/a", "until": {"status": 200}})
    found = steady(
        "until curl -s http://127.0.0.1:8082/metrics | grep -q 'url=\"http://127.0.0.1:5702\"} 1'; do sleep 0.1; done"
    )
    assert {answer["body"]["port"] for answer in ask(*["/webhook/a"] * 6)} == HOOKS


def test_without_main_webhooks_go_on(host: Any, ask: Ask) -> None:
    try:
        host.check_output("systemctl stop echo@%s", str(MAIN))
        editor, hook = ask({"path": "/", "headers": login(), "until": {"status": 503}}, "/webhook/a")
        assert (editor["status"], hook["status"]) == (503, 200)
    finally:
        host.check_output("systemctl start echo@%s", str(MAIN))
    assert ask({"path": "/", "headers": login(), "until": {"status": 200}})["status"] == 200


# --- changes ----------------------------------------------------------------------------------------------------------


def started(host: Any) -> str:
    """Return when the running Traefik was started."""
    return str(host.check_output("systemctl show traefik --property ExecMainStartTimestampMonotonic --value"))


@pytest.fixture
def original(host: Any) -> Iterator[None]:
    """Put sources and certificate back after a test that changes them."""
    host.check_output(f"cp -a {SOURCES} /root/sources; cp -a {TLS} /root/tls")
    yield
    host.check_output(f"rm -rf {SOURCES} && mv /root/sources {SOURCES}")
    host.check_output(f"for f in crt key; do mv /root/tls/public.$f {TLS}/public.$f; done; rm -r /root/tls")
    host.check_output(PUBLISH)


BAD_DYNAMIC = {
    "rule": ('http: {routers: {bad: {rule: "Hots(`x`)", service: main}}}', "unsupported function: Hots"),
    "quotes": ('http: {routers: {bad: {rule: "Host(`x", service: main}}}', "bad@file"),
    "middleware": ('http: {routers: {bad: {rule: "Path(`/x`)", service: main, middlewares: [none]}}}', "none@file"),
    "service": ('http: {routers: {bad: {rule: "Path(`/x`)", service: nowhere}}}', "nowhere@file"),
    "entry-point": ('http: {routers: {bad: {rule: "Path(`/x`)", service: main, entryPoints: [none]}}}', "none"),
    "field": ("http: {routres: {}}", "routres"),
    "yaml": ("http: [", "did not find expected node content"),
    "network": ("http: {middlewares: {bad: {ipAllowList: {sourceRange: [300.0.0.0/8]}}}, routers: {bad: "
                "{rule: 'Path(`/x`)', service: main, middlewares: [bad]}}}", "300.0.0.0/8"),
    "regexp": ('http: {routers: {bad: {rule: "PathRegexp(`[`)", service: main}}}', "missing closing ]"),
    "user": ("http: {middlewares: {bad: {basicAuth: {users: [nocolon]}}}, routers: {bad: "
             "{rule: 'Path(`/x`)', service: main, middlewares: [bad]}}}", "error parsing BasicUser"),
}  # fmt: skip


@pytest.mark.usefixtures("original")
@pytest.mark.parametrize("kind", BAD_DYNAMIC)
def test_bad_dynamic_configuration_never_reaches_the_running_traefik(host: Any, ask: Ask, kind: str) -> None:
    text, reason = BAD_DYNAMIC[kind]
    before = host.check_output(f"readlink {LIVE}")
    host.check_output(f"printf %s {shlex.quote(text)} > {SOURCES}/dynamic/bad.yml")
    done = host.run(PUBLISH)
    assert done.rc == 1
    assert reason in done.stderr
    assert "the old one stays active" in done.stderr
    assert host.check_output(f"readlink {LIVE}") == before
    assert ask("/webhook/a")["status"] == 200


@pytest.mark.usefixtures("original")
@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ("s/^ping:/pingg:/", "/ping does not answer"),
        ("s/entryPoint: ops/entryPoint: nowhere/", "nowhere"),
        ("s/format: json/format: [/", "yaml"),
    ],
)
def test_bad_static_configuration_is_refused(host: Any, ask: Ask, edit: str, reason: str) -> None:
    before = host.check_output(f"readlink {LIVE}")
    host.check_output("sed -i %s %s/traefik.yml", edit, SOURCES)
    done = host.run(PUBLISH)
    assert done.rc == 1
    assert reason in done.stderr
    assert host.check_output(f"readlink {LIVE}") == before
    assert ask("/webhook/a")["status"] == 200


@pytest.mark.usefixtures("original")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        ("-days 30 -subj /CN=other -addext subjectAltName=DNS:other.test", "does the certificate hold this name?"),
        (
            "-not_before 20200101000000Z -not_after 20200201000000Z -subj /CN=old -addext subjectAltName=DNS:n8n.test",
            "certificate has expired",
        ),
    ],
)
def test_unfit_certificate_is_refused(host: Any, ask: Ask, make: str, reason: str) -> None:
    serial = ask("/webhook/a")["serial"]
    host.check_output(
        f"cd {TLS} && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes {make}"
        " -keyout new.key -out new.crt 2>/dev/null && mv new.key public.key && mv new.crt public.crt"
    )
    done = host.run(PUBLISH)
    assert done.rc == 1
    assert reason in done.stderr
    assert ask("/webhook/a")["serial"] == serial


@pytest.mark.usefixtures("original")
def test_key_of_another_certificate_is_refused(host: Any, ask: Ask) -> None:
    host.check_output(f"openssl genpkey -algorithm ed25519 -out {TLS}/public.key 2>/dev/null")
    done = host.run(PUBLISH)
    assert done.rc == 1
    assert "do not fit together" in done.stderr
    assert ask("/webhook/a")["status"] == 200


def test_dynamic_change_is_loaded_without_restart(host: Any, ask: Ask) -> None:
    before = started(host)
    rule = 'http: {routers: {more: {priority: 950, rule: "Host(`n8n.test`) && Path(`/more`)", service: main}}}'
    try:
        host.check_output(f"printf %s {shlex.quote(rule)} > {SOURCES}/dynamic/more.yml")
        assert json.loads(host.check_output(PUBLISH)) == {"changed": True, "restart": []}
        assert ask({"path": "/more", "until": {"status": 200}})["status"] == 200
    finally:
        host.check_output(f"rm {SOURCES}/dynamic/more.yml && {PUBLISH}")
    assert ask({"path": "/more", "until": {"status": 401}})["status"] == 401
    assert started(host) == before


def test_renewed_certificate_is_picked_up_without_a_failed_request(host: Any, ask: Ask, steady: Any) -> None:
    before, old = started(host), ask("/webhook/a")["serial"]
    found = steady(f"""rm {TLS}/public.crt && /usr/local/lib/n8n-platform/pki issue >/dev/null
        until curl -sv --cacert {TLS}/ca.crt --resolve n8n.test:443:127.0.0.1 https://n8n.test/webhook/a 2>&1 |
            grep -q "$(openssl x509 -noout -enddate -in {TLS}/public.crt | cut -d= -f2)" &&
            grep -q "$(sed -n 2p {TLS}/public.crt)" {LIVE}/dynamic/certificate.yml; do sleep 0.1; done""")
    assert found["failed"] == []
    assert "reopened" not in found
    assert ask({"path": "/webhook/a"})["serial"] != old
    assert len(found["serials"]) == 2
    assert started(host) == before


def test_changed_password_is_picked_up(host: Any, ask: Ask) -> None:
    before = started(host)
    try:
        host.check_output(f"umask 377; printf %s another > {SECRET}.new && mv {SECRET}.new {SECRET}")
        assert ask({"path": "/", "headers": login("another"), "until": {"status": 200}})["status"] == 200
        assert ask({"path": "/", "headers": login()})["status"] == 401
    finally:
        host.check_output(f"umask 377; printf %s {shlex.quote(PASSWORD)} > {SECRET}.new && mv {SECRET}.new {SECRET}")
    assert ask({"path": "/", "headers": login(), "until": {"status": 200}})["status"] == 200
    assert started(host) == before


def test_publishing_again_changes_nothing(host: Any) -> None:
    users = host.file(f"{LIVE}/dynamic/editor-auth.yml").content_string
    assert json.loads(host.check_output(PUBLISH)) == {"changed": False, "restart": []}
    assert host.file(f"{LIVE}/dynamic/editor-auth.yml").content_string == users


def test_restart_that_was_missed_is_made_up_for(host: Any) -> None:
    host.check_output("touch /etc/systemd/system/traefik.service")
    assert json.loads(host.check_output(PUBLISH)) == {"changed": False, "restart": ["traefik.service"]}
    host.check_output("systemctl daemon-reload && systemctl restart traefik")
    assert json.loads(host.check_output(PUBLISH)) == {"changed": False, "restart": []}


def test_restart_finishes_requests_and_refuses_no_connection(host: Any, ask: Ask, steady: Any) -> None:
    # The test before restarts it, too.
    assert ask({"path": "/webhook/a", "until": {"status": 200}})["status"] == 200
    host.check_output(
        "systemd-run --quiet --collect --unit=slow-request --service-type=exec --property=StandardOutput=file:/run/slow"
        f" curl -sN --cacert {TLS}/ca.crt --resolve n8n.test:443:127.0.0.1 https://n8n.test/webhook/stream/slow"
    )
    host.check_output("timeout 20 sh -c 'until [ -s /run/slow ]; do sleep 0.1; done'")
    before = started(host)
    found = steady("systemctl restart traefik")
    assert started(host) != before
    # Traefik drops TLS handshakes for the moment between its start and its first configuration.
    assert not [failure for failure in found["failed"] if "refused" in failure]
    assert ask({"path": "/webhook/a", "until": {"status": 200}})["status"] == 200
    host.check_output("timeout 20 sh -c 'while systemctl is-active -q slow-request; do sleep 0.1; done'")
    assert host.file("/run/slow").content_string == "firstlast"


def test_killed_traefik_is_back_at_once(host: Any, ask: Ask, steady: Any) -> None:
    before = started(host)
    found = steady(f"""systemctl kill -s KILL traefik
        until [ "$(systemctl show traefik --property ExecMainStartTimestampMonotonic --value)" != {before} ] &&
            curl -sf http://127.0.0.1:8082/ping >/dev/null; do sleep 0.1; done""")
    assert not [failure for failure in found["failed"] if "refused" in failure]
    assert found["seconds"] < 5
    assert ask({"path": "/webhook/a", "until": {"status": 200}})["status"] == 200

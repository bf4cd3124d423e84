"""Send alerts to the running server and see who is told of what."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

TOLD = "/srv/told.jsonl"
CONFIG = "/etc/n8n-platform/alertmanager/alertmanager.yml"
SECRETS = ("token-of-the-test", "password-of-the-test", "key-of-the-test", "/slack", "/deadman", "/hook")
CONVERGE = Callable[..., subprocess.CompletedProcess[str]]
ASK = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9093/api/v2/status').read().decode())"
AMTOOL = "amtool --alertmanager.url=http://127.0.0.1:9093"


@pytest.fixture(scope="module", autouse=True)
def _fresh(host: Any) -> None:
    """Begin with a server that knows nothing, so that the tests can be run again."""
    host.check_output("systemctl stop prometheus-alertmanager.service")
    host.check_output(f"rm -rf /srv/alertmanager/* {TOLD}")
    host.check_output("systemctl start prometheus-alertmanager.service")
    ready = "until n8n-platform-silence list >/dev/null 2>&1; do sleep 0.2; done"
    host.check_output("timeout 30 sh -c %s", ready)


def fire(host: Any, name: str, summary: str = "It is broken (1).", **labels: str) -> None:
    """Send an alert."""
    pairs = " ".join(f"{key}={value}" for key, value in labels.items())
    notes = f"--annotation=summary='{summary}' --annotation=runbook_url=https://runbooks.example.com/{name}"
    host.check_output(f"{AMTOOL} alert add {notes} alertname={name} environment=test {pairs}")


def told(host: Any, needle: str, path: str, seconds: int = 30) -> list[dict[str, Any]]:
    """Return the messages that name something on one way, as soon as there is one."""
    line = f'until grep -e {needle} {TOLD} | grep -q \'"path": "{path}"\'; do sleep 0.2; done'
    host.run("timeout %s sh -c %s", str(seconds), line)
    found = [json.loads(text) for text in host.run("cat %s", TOLD).stdout.splitlines()]
    return [one for one in found if one["path"] == path and needle in one["body"]]


def pid(host: Any) -> str:
    """Return the process of the server."""
    return str(host.check_output("systemctl show -P MainPID prometheus-alertmanager.service"))


def test_unit(running: Callable[[str], None], exposure: Callable[[str], float]) -> None:
    running("prometheus-alertmanager.service")
    assert exposure("prometheus-alertmanager.service") <= 2.0


def test_only_loopback_is_listened_on(listeners: Callable[[], set[tuple[str, int]]]) -> None:
    ours = {(address, port) for address, port in listeners() if port not in (9005, 9025)}
    assert ours == {("127.0.0.1", 9093)}


def test_secrets_are_in_files_of_root_only(host: Any) -> None:
    for path in (CONFIG, "/etc/systemd/system/prometheus-alertmanager.service"):
        text = host.check_output(f"cat {path}")
        assert not [secret for secret in SECRETS if secret in text]
    files = host.check_output("stat -c '%a %U %n' /etc/n8n-platform/secrets/alertmanager_*").splitlines()
    assert len(files) == 6
    assert all(line.startswith("400 root ") for line in files)
    assert not [
        secret for secret in SECRETS[:3] if secret in host.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    ]


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        ("severity=page service=n8n", "page"),
        ("severity=ticket service=host", "ticket"),
        ("severity=none alertname=N8nWatchdog", "deadman"),
        ("service=other", "ticket"),
        ("severity=page team=shop", "shop"),
    ],
)
def test_routes(host: Any, labels: str, receiver: str) -> None:
    host.check_output(f"amtool config routes test --config.file={CONFIG} --verify.receivers={receiver} {labels}")


def test_a_page_reaches_the_program_with_its_token(host: Any) -> None:
    fire(host, "PageOne", severity="page", service="redis", instance="a")
    message = told(host, "PageOne", "/hook")[0]
    assert message["authorization"] == "Bearer token-of-the-test"
    alert = json.loads(message["body"])["alerts"][0]
    assert alert["annotations"]["summary"] == "It is broken (1)."
    assert not told(host, "PageOne", "/slack", seconds=1)


def test_a_ticket_reaches_chat_and_mail(host: Any) -> None:
    fire(host, "TicketOne", severity="ticket", service="backup", instance="a")
    body = json.loads(told(host, "TicketOne", "/slack")[0]["body"])
    assert body["channel"] == "#ops"
    shown = body["attachments"][0]
    assert shown["title"] == "TICKET test: TicketOne"
    assert "What to do: https://runbooks.example.com/TicketOne" in shown["text"]
    mail = told(host, "TicketOne", "mail")[0]
    assert {"ops@example.com", "boss@example.com"} == {line.split("<")[1].split(">")[0] for line in mail["to"]}
    assert "Subject: TICKET test: TicketOne" in mail["body"]
    assert base64.b64decode(mail["authorization"].split()[-1]).endswith(b"password-of-the-test")
    assert not told(host, "TicketOne", "/hook", seconds=1)


def test_the_sign_of_life_goes_on(host: Any) -> None:
    fire(host, "N8nWatchdog", severity="none", service="monitoring")
    told(host, "N8nWatchdog", "/deadman")
    count = f'grep -c \'"path": "/deadman"\' {TOLD}'
    first = int(host.check_output(count))
    fire(host, "N8nWatchdog", severity="none", service="monitoring")
    host.check_output("timeout 30 sh -c %s", f"until [ $({count}) -gt {first + 1} ]; do sleep 0.2; done")
    assert not told(host, "N8nWatchdog", "/slack", seconds=1)


def test_a_cause_silences_its_effects(host: Any) -> None:
    fire(host, "N8nHostDown", severity="page", service="host", instance="gone")
    assert told(host, "N8nHostDown", "/hook")
    fire(host, "EffectOne", severity="ticket", service="disk", instance="gone")
    fire(host, "N8nRedisDown", severity="page", service="redis", instance="b")
    assert told(host, "N8nRedisDown", "/hook")
    fire(host, "EffectTwo", severity="page", service="queue")
    fire(host, "N8nLostExecutions", severity="page", service="n8n")
    assert told(host, "N8nLostExecutions", "/hook"), "what was lost is told whatever the cause"
    said = host.check_output("n8n-platform-silence alerts --output=json")
    states = {one["labels"]["alertname"]: one["status"]["state"] for one in json.loads(said)}
    assert states["EffectOne"] == states["EffectTwo"] == "suppressed"
    messages = host.check_output(f"cat {TOLD}")
    assert "EffectOne" not in messages
    assert "EffectTwo" not in messages


def test_silence(host: Any) -> None:
    assert host.run("n8n-platform-silence add 1h reason").rc == 2, "without a matcher"
    assert host.run("n8n-platform-silence").rc == 2
    number = host.check_output("n8n-platform-silence add 1h 'new disk' service=quiet").strip()
    fire(host, "Hushed", severity="page", service="quiet")
    fire(host, "Loud", severity="page", service="loud")
    assert told(host, "Loud", "/hook")
    listed = host.check_output("n8n-platform-silence list")
    assert "new disk" in listed
    assert "root" in listed
    assert not told(host, "Hushed", "/hook", seconds=2)
    host.check_output(f"n8n-platform-silence end {number}")
    assert told(host, "Hushed", "/hook")


def test_it_remembers_silences(host: Any, running: Callable[[str], None]) -> None:
    host.check_output("n8n-platform-silence add 1h 'to be kept' service=kept")
    host.check_output("systemctl restart prometheus-alertmanager.service")
    running("prometheus-alertmanager.service")
    ready = "until n8n-platform-silence list 2>/dev/null | grep -q 'to be kept'; do sleep 0.2; done"
    host.check_output("timeout 30 sh -c %s", ready)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"alertmanager_extra_routes": [{"matchers": ['a="b"'], "receiver": "nobody-knows"}]}, "nobody-knows"),
        ({"alertmanager_extra_inhibit_rules": [{"source_matchers": ["a b"]}]}, "alertmanager.yml was refused by"),
        ({"alertmanager_email": {"to": ["a@example.com"]}}, "alertmanager_email lacks from, smarthost"),
        ({"alertmanager_page": ["pigeon"]}, "not pigeon"),
    ],
)
def test_what_is_wrong_never_reaches_the_server(
    host: Any, converge: CONVERGE, wrong: dict[str, Any], reason: str
) -> None:
    before, process = host.check_output(f"sha256sum {CONFIG}"), pid(host)
    done = converge(**wrong)
    assert done.returncode != 0
    assert reason in done.stdout
    assert (host.check_output(f"sha256sum {CONFIG}"), pid(host)) == (before, process)


def test_routes_change_without_a_restart_and_secrets_with_one(host: Any, converge: CONVERGE) -> None:
    process = pid(host)
    done = converge(alertmanager_extra_routes=[])
    assert done.returncode == 0, done.stdout[-4000:]
    assert 'team="shop"' not in host.check_output("python3 -c %s", ASK)
    assert pid(host) == process
    assert "token-of-the-test" not in done.stdout
    done = converge("--diff", alertmanager_webhook_token="another-token")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "another-token" not in done.stdout
    assert pid(host) != process
    fire(host, "AfterChange", severity="page", service="redis", instance="z")
    assert told(host, "AfterChange", "/hook")[0]["authorization"] == "Bearer another-token"

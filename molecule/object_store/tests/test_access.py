"""Who reaches the store, who does not, and what may be seen of its secrets."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, SSLError

testinfra_hosts = ["n8n-platform-object-store"]
SECRETS = "/etc/n8n-platform/secrets"
UI = "objects.n8n.localhost"
UNITS = (
    "object-store.service",
    "object-store-keep.service",
    "object-store-guard.service",
    "object-store-certificate.service",
)


def test_units_run_in_a_sandbox(host: Any, running: Callable[[str], None], exposure: Callable[[str], float]) -> None:
    for unit in (
        "object-store.service",
        "object-store-certificate.path",
        "object-store-keep.timer",
        "object-store-guard.timer",
    ):
        running(unit)
    for unit in UNITS:
        assert exposure(unit) <= 2.0, unit


def test_only_the_wanted_ports_are_open(listeners: Callable[[], set[tuple[str, int]]], server: Any) -> None:
    address = server.check_output("hostname -I").split()[0]
    ours = {(at, port) for at, port in listeners() if port in (7070, 7071, 7072)}
    assert ours == {(at, port) for at in ("127.0.0.1", address) for port in (7070, 7071)}


def test_the_writer_needs_the_right_secret(ours: Any, refused: Any) -> None:
    wrong = ours.client(aws_secret_access_key="not-the-secret")
    assert refused(wrong.list_objects_v2, Bucket=ours.bucket) == "SignatureDoesNotMatch"
    stranger = ours.client(aws_access_key_id="stranger")
    assert refused(stranger.list_objects_v2, Bucket=ours.bucket) == "InvalidAccessKeyId"
    nobody = ours.client(Config(signature_version=UNSIGNED))
    assert refused(nobody.list_objects_v2, Bucket=ours.bucket) == "AccessDenied"
    assert refused(nobody.put_object, Bucket=ours.bucket, Key="x", Body=b"") == "AccessDenied"


def test_another_authority_is_not_believed(ours: Any) -> None:
    with pytest.raises(SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        ours.client(verify=True).list_objects_v2(Bucket=ours.bucket)


def test_plain_text_gets_no_answer(ours: Any) -> None:
    plain = ours.client(endpoint_url=ours.settings["url"].replace("https:", "http:"))
    with pytest.raises((ConnectionClosedError, ClientError)):
        plain.list_objects_v2(Bucket=ours.bucket)
    where = urlsplit(ours.settings["url"])
    with socket.create_connection((where.hostname, where.port), timeout=5) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not connection.recv(100).startswith(b"HTTP/1.1 200")


def test_accounts_are_not_managed_over_the_network(ours: Any, root: Any) -> None:
    """The administrative calls of versitygw would be answered with 200 on the port of the store."""
    seen = []
    root.meta.events.register("before-sign.s3.ListBuckets", lambda request, **_: request.__setattr__("method", "PATCH"))
    root.meta.events.register("needs-retry.s3.ListBuckets", lambda response, **_: seen.append(response))
    with pytest.raises(ClientError) as error:
        root.list_buckets()
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] in (403, 404, 405)


def test_secrets_are_for_the_service_only(host: Any, backup_host: Any) -> None:
    pid = host.check_output("systemctl show -P MainPID object-store.service")
    assert host.check_output("ps -o user= -p %s", pid) == "object-store"
    line = host.file(f"/proc/{pid}/cmdline").content
    for name in ("object_store_root_secret", "object_store_backup_secret"):
        secret = host.file(f"{SECRETS}/{name}").content_string
        assert secret.encode() not in line
        assert host.run("grep -rqsF -e %s /etc/n8n-platform/object-store /etc/systemd/system", secret).rc == 1
        shown = host.check_output("systemctl show object-store.service")
        assert secret not in shown
        assert host.run(f"journalctl -u object-store.service --no-pager | grep -qF -e '{secret}'").rc == 1
        assert host.run(f"runuser -u nobody -- cat /run/credentials/object-store.service/{name}").rc != 0
    assert host.run(f"runuser -u nobody -- cat /proc/{pid}/environ").rc != 0
    assert host.run("runuser -u nobody -- ls /run/object-store /srv/test/object-store").rc != 0
    assert not backup_host.file(f"{SECRETS}/object_store_root_secret").exists
    assert backup_host.file(f"{SECRETS}/object_store_backup_secret").exists


def test_the_journal_says_who_did_what(host: Any, ours: Any, prefix: str) -> None:
    ours.client().put_object(Bucket=ours.bucket, Key=f"{prefix}seen", Body=b"1")
    line = host.check_output(f"journalctl -u object-store.service --no-pager | grep -F '{prefix}seen'")
    assert "| 200 |" in line
    assert "| PUT |" in line


def test_writes_reach_the_disk(host: Any, ours: Any, prefix: str) -> None:
    ours.client().put_object(Bucket=ours.bucket, Key=f"{prefix}synced", Body=b"1")
    path = f"/srv/test/object-store/objects/{ours.bucket}/{prefix}synced"
    assert "S" in host.check_output("lsattr %s", path).split()[0]
    assert host.file(path).mode == 0o600


def ask(host: Any, path: str, options: str = "") -> str:
    """Return the status code of a request to the address for people."""
    ca = "/etc/n8n-platform/tls/ca.crt"
    command = f"curl -sS -o /dev/null -w '%{{http_code}}' --cacert {ca} --resolve {UI}:443:127.0.0.1 {options}"
    return str(host.check_output(f"{command} 'https://{UI}{path}'"))


def test_people_need_a_password_to_see_the_pages(host: Any) -> None:
    for path in ("/ui", "/ui/", "/ui/index.html", "/ui/js/api.js", "/ui/buckets.html"):
        assert ask(host, path) == "401", path
    # Whatever else is asked for without a signed request is not there.
    for path in ("/backups-of-the-test", "/backups-of-the-test/x", "/health", "/list-users", "/ui../health"):
        assert ask(host, path) in ("401", "404"), path
    login = f'--user "admin:$(cat {SECRETS}/traefik_editor_password)"'
    assert ask(host, "/ui/", login) == "200"
    assert ask(host, "/ui/js/api.js", login) == "200"
    assert ask(host, "/", "") == "302"


def test_people_can_only_read(host: Any, ours: Any) -> None:
    signed = (
        f'--aws-sigv4 aws:amz:{ours.settings["region"]}:s3 --user "writer:$(cat {SECRETS}/object_store_backup_secret)"'
    )
    assert ask(host, f"/{ours.bucket}?list-type=2", signed) == "200"
    assert ask(host, f"/{ours.bucket}?list-type=2", signed.replace("writer:", "writer:x")) == "403"
    assert ask(host, f"/{ours.bucket}/by-the-browser", f"{signed} -X PUT --data x") == "404"
    assert ask(host, f"/{ours.bucket}/by-the-browser", f"{signed} -X DELETE") == "404"

"""A host that is gone comes back from the object store, the inventory and the age identity alone."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import testinfra

HERE = Path(__file__).parents[1]
LOST, STORE = "n8n-platform-disaster", "n8n-platform-disaster-store"
SECRETS = "/etc/n8n-platform/secrets"
CALL = "curl -sf --insecure --max-time 30 --retry 20 --retry-all-errors --json %s %s"


def connect(name: str) -> Any:
    """Return a host."""
    return testinfra.get_host(f"ansible://{name}?ansible_inventory={os.environ['MOLECULE_INVENTORY_FILE']}")


def sql(host: Any, statement: str) -> str:
    """Ask the live database."""
    return str(host.check_output("cd / && runuser -u postgres -- psql -XAtq -d n8n -c %s", statement))


def call(host: Any, token: str) -> int:
    """Send the check workflow its webhook; return the execution n8n acknowledged."""
    address = str(host.check_output("ip -4 -o addr show dev eth0")).split()[3].split("/")[0]
    body = json.dumps({"numbers": [1, 2], "token": token})
    answer = json.loads(host.check_output(CALL, body, f"https://{address}:5701/webhook/platform-verify"))
    return int(answer["execution"])


@pytest.fixture(scope="module")
def safe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what is in the safe: paths on the controller, and the public half of the identity."""
    lost, store, folder = connect(LOST), connect(STORE), tmp_path_factory.mktemp("safe")
    kept = {
        "restore_identity": store.file("/root/identity").content_string,
        "restore_s3_secret": lost.file(f"{SECRETS}/object_store_backup_secret").content_string,
        "restore_s3_ca": lost.file("/etc/n8n-platform/tls/ca.crt").content_string,
    }
    for name, text in kept.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: str(folder / name) for name in kept} | {"public": store.check_output("age-keygen -y /root/identity")}


@pytest.fixture(scope="module")
def before(safe: dict[str, str]) -> dict[str, Any]:
    """Return what the platform held when it was lost, minutes after its last backup."""
    assert safe
    lost = connect(LOST)
    for command in (
        "cp /usr/local/lib/n8n-platform/drill-workflow.json /srv/n8n/exports/check.json",
        'printf \'[{"id":"disasterTest0001","name":"Key","type":"httpHeaderAuth","data":{"name":"a","value":"b"}}]\''
        " > /srv/n8n/exports/key.json",
        "n8n import:workflow --input=/srv/n8n/exports/check.json",
        "n8n import:credentials --input=/srv/n8n/exports/key.json",
        "n8n publish:workflow --id=platformVerify01",
        "n8n-platform-backup run",
    ):
        lost.check_output(command)
    acknowledged = [call(lost, f"after the backup {number}") for number in range(10)]
    switched = sql(lost, "SELECT pg_walfile_name(pg_switch_wal())")
    archived = f"SELECT last_archived_wal >= '{switched}' FROM pg_stat_archiver"
    ask = f'cd / && runuser -u postgres -- psql -XAtc "{archived}"'
    lost.check_output("bash -c %s", f'for i in $(seq 300); do [ "$({ask})" = t ] && exit 0; sleep 0.1; done; exit 1')
    key = lost.file(f"{SECRETS}/n8n_encryption_key").content_string
    return {"acknowledged": acknowledged, "key": key}


def test_without_the_keys_it_says_what_is_missing(play: Callable[..., Any]) -> None:
    done = play(HERE.parents[1] / "playbooks/restore_disaster.yml")
    assert done.returncode != 0
    assert "AGE-SECRET-KEY" in done.stdout


def test_a_host_that_has_secrets_is_refused(play: Callable[..., Any], safe: dict[str, str]) -> None:
    files = {name: safe[name] for name in ("restore_identity", "restore_s3_secret", "restore_s3_ca")}
    done = play(
        HERE.parents[1] / "playbooks/restore_disaster.yml", "-e", f"@{HERE / 'vars.yml'}", confirm=LOST, **files
    )
    assert done.returncode != 0
    assert "is not empty" in " ".join(done.stdout.split())


def test_everything_comes_back_on_an_empty_host(
    play: Callable[..., Any], safe: dict[str, str], before: dict[str, Any], tmp_path: Path
) -> None:
    subprocess.run(["docker", "rm", "--force", "--volumes", LOST], check=True, capture_output=True)
    started = play("new_host.yml")
    assert started.returncode == 0, started.stdout[-3000:]
    report = tmp_path / "verify.json"
    files = {name: safe[name] for name in ("restore_identity", "restore_s3_secret", "restore_s3_ca")}
    done = play(
        HERE.parents[1] / "playbooks/restore_disaster.yml",
        "-e",
        f"@{HERE / 'vars.yml'}",
        confirm=LOST,
        backup_age_recipients=[safe["public"].strip()],
        verify_report=str(report),
        **files,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    new = connect(LOST)
    listed = ",".join(map(str, before["acknowledged"]))
    stored = sql(new, f"SELECT count(*) FROM execution_entity WHERE status = 'success' AND id IN ({listed})")
    assert int(stored) == len(before["acknowledged"])
    assert new.file(f"{SECRETS}/n8n_encryption_key").content_string == before["key"]
    assert new.check_output("n8n export:credentials --all --decrypted --output=/srv/n8n/exports/out.json") is not None
    assert '"value":"b"' in new.file("/srv/n8n/exports/out.json").content_string
    assert json.loads(report.read_text(encoding="utf-8"))["execution"]
    assert not new.file("/run/n8n-platform-restore").exists
    status = new.run("n8n-platform-backup status")
    assert status.rc == 0, status.stdout

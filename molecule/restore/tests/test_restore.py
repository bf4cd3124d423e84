"""What was backed up comes back, to the second; what fails goes back by itself; what cannot work is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from molecule.restore.tests.conftest import DATA, NAME, SEEDED, Platform

MANIFEST = "/srv/n8n-platform/backups/sets/%s/manifest.json"


@pytest.fixture(scope="module")
def newest_set(platform: Platform) -> str:
    """Return the id of the set."""
    return platform.run("ls /srv/n8n-platform/backups/sets").split()[-1]


@pytest.fixture(scope="module")
def acknowledged(platform: Platform) -> list[int]:
    """Return executions n8n acknowledged after the backup."""
    return [platform.call(f"after {number}") for number in range(20)]


@pytest.fixture(scope="module")
def moments(platform: Platform, acknowledged: list[int]) -> dict[str, Any]:
    """Return a moment between two known writes, and both."""
    assert len(platform.stored(acknowledged)) == len(acknowledged)
    before = platform.call("before")
    moment = platform.now()
    return {"before": before, "moment": moment, "after": platform.call("after")}


def test_the_list_shows_both_kinds_of_backups(platform: Platform, newest_set: str) -> None:
    said = platform.playbook("restore.yml")
    assert newest_set in said
    assert "full + WAL" in said
    assert "checksums" in said


def test_a_plan_says_what_would_be_lost_and_changes_nothing(platform: Platform, moments: dict[str, Any]) -> None:
    started = platform.run("systemctl show -P ActiveEnterTimestampMonotonic postgresql@17-main n8n-main")
    said = platform.playbook("restore.yml", restore_time=moments["moment"])
    assert "1 executions, 0 workflows, 0 credentials" in said
    assert f"confirm={NAME}" in said
    assert platform.run("systemctl show -P ActiveEnterTimestampMonotonic postgresql@17-main n8n-main") == started
    assert platform.copies() == []


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        (("--time", "2026-11-22 14:05:00"), "can mean several moments"),
        (("--time", "2026-11-22 14:05 Europe/Berlin"), "can mean several moments"),
        (("--time", "11/12/2026 14:05+00:00"), "can mean several moments"),
        (("--time", "2999-01-01 00:00:00+00:00"), "in the future"),
        (("--time", "2020-01-01 00:00:00+00:00"), "No backup is older"),
        (("--set", "yesterday"), "is neither"),
        (("--set", "20200101-000000F"), "There is no backup"),
        (("--set", "20200101T000000Z-nowhere"), "There is no set"),
    ],
)
def test_wishes_that_cannot_be_met(platform: Platform, wish: tuple[str, str], sentence: str) -> None:
    assert sentence in " ".join(platform.plan(*wish)["refused"])


def test_another_hosts_name_is_no_confirmation(platform: Platform) -> None:
    said = platform.playbook("restore.yml", code=1, restore_set="latest", confirm="n8n-production-1")
    assert "confirm is n8n-production-1, but this would restore" in said
    assert platform.copies() == []


def test_a_wrong_encryption_key_is_refused(platform: Platform) -> None:
    secret = "/etc/n8n-platform/secrets/n8n_encryption_key"
    platform.run("cp -p %s /root/key && printf wrong-key-of-another-host > %s", secret, secret)
    try:
        assert "encryption key of this host is not the one" in " ".join(platform.plan("--set", "latest")["refused"])
    finally:
        platform.run("cp -p /root/key %s && rm /root/key", secret)


def changed_manifest(platform: Platform, set_id: str, sign: bool, **changes: Any) -> str:
    """Return what the plan refuses with a changed manifest, which is put back afterwards."""
    path = MANIFEST % set_id
    code = (
        "import json, sys; from n8n_platform.backup import manifest; from pathlib import Path;"
        "path, sign, changes = Path(sys.argv[1]), sys.argv[2] == '1', json.loads(sys.argv[3]);"
        "found = json.loads(path.read_text()); found['database'].update(changes);"
        "key = Path('/etc/n8n-platform/secrets/backup_manifest_key').read_text().strip();"
        "path.write_bytes(manifest.encode(manifest.sign(found, key) if sign else found))"
    )
    platform.run("cp -p %s /root/manifest", path)
    program = "PYTHONPATH=/opt/n8n-platform/platform python3 -c %s %s %s %s"
    platform.run(program, code, path, str(int(sign)), json.dumps(changes))
    try:
        return " ".join(platform.plan("--set", set_id)["refused"])
    finally:
        platform.run("cp -p /root/manifest %s", path)


def test_a_changed_manifest_is_refused(platform: Platform, newest_set: str) -> None:
    assert "was changed after it was signed" in changed_manifest(platform, newest_set, sign=False, size_bytes=1)


def test_a_newer_schema_is_refused(platform: Platform, newest_set: str) -> None:
    future = {"name": "FromTheFuture2999999999999", "timestamp": 2999999999999}
    refused = changed_manifest(platform, newest_set, sign=True, last_migration=future)
    assert "was last migrated by a newer n8n" in refused


def test_too_little_space_is_refused(platform: Platform, newest_set: str) -> None:
    assert "Too little space" in changed_manifest(platform, newest_set, sign=True, size_bytes=10**15)


def test_missing_log_is_refused(platform: Platform, moments: dict[str, Any]) -> None:
    platform.sql("SELECT pg_current_xact_id()", "postgres")
    platform.sql("SELECT pg_switch_wal()", "postgres")
    archive = "/srv/n8n-platform/backups/pgbackrest/archive"
    last = platform.sql("SELECT last_archived_wal FROM pg_stat_archiver", "postgres")
    found = platform.run("find %s -name %s", archive, f"{last}-*")
    platform.sql("SELECT pg_current_xact_id()", "postgres")
    platform.sql("SELECT pg_switch_wal()", "postgres")
    platform.wait(f"[ $(find {archive} -newer {found} -name '0000*' | wc -l) -gt 0 ]")
    platform.run("mv %s /root/segment", found)
    try:
        refused = " ".join(platform.plan("--set", "latest")["refused"])
        assert f"Segment {last} of the write-ahead log is in no repository" in refused
    finally:
        platform.run("mv /root/segment %s", found)


@pytest.mark.parametrize("step", ["safety", "restore", "recovery"])
@pytest.mark.parametrize("kind", ["physical", "logical"])
def test_a_failing_step_of_the_database_goes_back(platform: Platform, newest_set: str, step: str, kind: str) -> None:
    """The same way back the playbook takes, without the minutes it needs to stop and start n8n."""
    count = platform.sql("SELECT count(*) FROM execution_entity")
    wish = newest_set if kind == "logical" else "latest"
    record = platform.cli("restore", "prepare", "--set", wish)["id"]
    failed = platform.host.run("n8n-platform-backup restore database %s --fail-at %s", record, step)
    assert failed.rc == 1
    assert f"Step {step} failed on purpose" in failed.stderr
    if kind == "logical" and step != "safety":
        # n8n runs meanwhile, and must not write into what is half there.
        assert platform.sql("SELECT datconnlimit FROM pg_database WHERE datname = 'n8n'") == "0"
    assert platform.cli("restore", "rollback", record)["answer"] == "Everything is as it was before."
    assert platform.sql("SELECT count(*) FROM execution_entity") >= count
    assert platform.copies() == []


def test_everything_acknowledged_comes_back_after_the_data_was_deleted(
    platform: Platform, acknowledged: list[int], moments: dict[str, Any]
) -> None:
    """The disk of the database is gone: nothing but the archive knows the last executions."""
    switched = platform.sql("SELECT pg_walfile_name(pg_switch_wal())", "postgres")
    platform.archived(switched)
    platform.run("systemctl kill -s KILL postgresql@17-main && rm -rf %s", DATA)
    said = platform.playbook("restore.yml", restore_set="latest", confirm=NAME)
    assert "RTO" in said
    everything = [*acknowledged, moments["before"], moments["after"]]
    assert platform.stored(everything) == set(everything)
    assert int(platform.sql("SELECT count(*) FROM execution_entity")) > SEEDED
    assert int(platform.sql("SELECT pg_walfile_name(pg_current_wal_lsn())", "postgres")[:8], 16) > int(switched[:8], 16)
    assert platform.sql("SHOW archive_command", "postgres") != "/bin/false"
    assert platform.call("works again") > moments["after"]


def test_a_failing_canary_goes_back_by_itself(platform: Platform, moments: dict[str, Any]) -> None:
    """The last step before the proof: everything was changed by then."""
    count = int(platform.sql("SELECT count(*) FROM execution_entity"))
    said = platform.playbook(
        "restore.yml", code=1, restore_time=moments["moment"], confirm=NAME, _restore_fail_at="canary"
    )
    assert "Step canary failed on purpose. Everything is as it was before." in said
    assert int(platform.sql("SELECT count(*) FROM execution_entity")) >= count
    assert platform.copies() == []
    assert platform.call("as before") > moments["after"]


def test_a_moment_between_two_writes(platform: Platform, moments: dict[str, Any], acknowledged: list[int]) -> None:
    said = platform.playbook("restore.yml", restore_time=moments["moment"], confirm=NAME)
    assert "up to 2" in said
    assert platform.stored([moments["before"], *acknowledged]) == {moments["before"], *acknowledged}
    assert platform.sql(f"SELECT count(*) FROM execution_entity WHERE id = {moments['after']}") == "0"
    assert len(platform.copies()) == 1


def test_undo_brings_the_present_back(platform: Platform, moments: dict[str, Any]) -> None:
    assert "would be undone" in platform.playbook("restore_undo.yml")
    said = platform.playbook("restore_undo.yml", confirm=NAME)
    assert "Undone" in said
    assert platform.stored([moments["after"]]) == {moments["after"]}
    assert len(platform.copies()) == 1
    platform.call("after undo")


def test_two_left_over_copies_are_refused_until_one_is_purged(platform: Platform) -> None:
    platform.run("install -d -o postgres -m 0700 %s.before-restore-20200101T000000Z", DATA)
    assert "2 safety copies of earlier restores are still here" in " ".join(platform.plan("--set", "latest")["refused"])
    platform.purge()
    assert platform.plan("--set", "latest")["refused"] == []


def test_a_set_comes_back_with_its_rows_and_goes_again(platform: Platform, newest_set: str) -> None:
    """The steps the playbook takes on the database, without those that stop and start n8n."""
    rows = json.loads(platform.run("cat %s", MANIFEST % newest_set))["database"]["tables"]
    platform.call("after the set")
    count = int(platform.sql("SELECT count(*) FROM execution_entity"))
    record = platform.cli("restore", "prepare", "--set", newest_set)["id"]
    platform.run("systemctl stop n8n-guard.timer n8n-main 'n8n-webhook@*' 'n8n-worker@*'")
    platform.cli("restore", "database", record)
    numbers = platform.cli("restore", "check", record)["answer"]
    assert numbers["execution_entity"] == rows["execution_entity"] < count
    assert platform.sql("SELECT datconnlimit FROM pg_database WHERE datname = 'n8n'") == "-1"
    assert platform.cli("restore", "unpublish")["workflows"] == 1
    (copy,) = platform.copies()
    assert copy.startswith("n8n_before_restore_")
    platform.cli("restore", "undo", record, "--confirm")
    platform.run("systemctl start n8n-main n8n-webhook@1 n8n-worker@1 n8n-worker@2 n8n-guard.timer")
    assert int(platform.sql("SELECT count(*) FROM execution_entity")) >= count
    platform.purge()


@pytest.mark.parametrize("options", [[], ["--set", "latest"]])
def test_the_drill_proves_a_backup_and_leaves_nothing(platform: Platform, options: list[str]) -> None:
    record = platform.cli("drill", "--json", *options)
    assert record["result"] == "ok"
    assert record["evidence"]["credentials_decrypted"] >= 1
    assert record["evidence"]["canary_execution"] > 0
    assert record["evidence"]["rows"] > SEEDED
    assert record["rto_seconds"] < 300
    assert platform.run("ls -A /var/lib/n8n-platform/drill") == ""
    assert "n8n_backup_drill_success_timestamp_seconds" in platform.run(
        "cat /var/lib/n8n-platform/metrics/n8n_backup.prom"
    )


def test_a_killed_drill_is_cleaned_up_by_its_unit(platform: Platform) -> None:
    platform.run("systemctl start --no-block n8n-backup-drill.service")
    platform.wait("systemctl is-active -q n8n-drill-postgres")
    platform.run("systemctl kill -s KILL n8n-backup-drill.service")
    platform.wait("systemctl is-failed -q n8n-backup-drill")
    assert platform.run("systemctl list-units --all --plain --no-legend 'n8n-drill-*'") == ""
    assert platform.run("ls -A /var/lib/n8n-platform/drill") == ""
    platform.run("systemctl reset-failed n8n-backup-drill.service")


def test_the_drills_unit_is_confined(platform: Platform) -> None:
    said = platform.run("systemd-analyze security --no-pager n8n-backup-drill.service")
    assert float(said.rsplit("exposure level for", 1)[1].split(":", 1)[1].split()[0]) <= 2.0

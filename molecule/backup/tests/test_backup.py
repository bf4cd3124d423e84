"""Backups of a running PostgreSQL and Redis to a local repository and to an object store on the same host."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from molecule.waiting import until

PGBACKREST = "runuser -u postgres -- pgbackrest --stanza=n8n --log-level-console=error"
ARCHIVE_TIMEOUT = 5
REPOSITORIES = (1, 2)


class Bench:
    """What the tests do to the host."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def sql(self, query: str) -> str:
        return str(
            self.host.check_output("cd /; runuser -u postgres -- psql -XAtq -p 15432 -d automation -c %s", query)
        )

    def backups(self, repository: int) -> list[dict[str, Any]]:
        """Return the physical backups in a repository, oldest first."""
        said = json.loads(self.host.check_output(f"cd /; {PGBACKREST} --repo={repository} --output=json info"))
        return list(said[0]["backup"])

    def archived(self, repository: int, segment: str) -> bool:
        """Tell whether a segment is in the archive of a repository."""
        place = f"archive/n8n/17-1/{segment[:16]}"
        return segment in self.host.check_output(f"cd /; {PGBACKREST} --repo={repository} repo-ls {place}")

    def run(self) -> None:
        """Make a backup as the schedule does."""
        self.host.check_output("systemctl start n8n-backup.service")

    def look(self) -> dict[str, Any]:
        """Have the watcher look; return what it saw of the repositories."""
        self.host.check_output("systemctl start n8n-backup-watch.service")
        said = json.loads(self.host.check_output("cat /var/lib/n8n-platform/backup-watch.json"))
        return dict(said["repositories"])

    def metric(self, name: str, file: str = "n8n_backup_archive") -> float:
        """Return a metric, written with its labels."""
        for line in self.host.check_output(f"cat /var/lib/n8n-platform/metrics/{file}.prom").splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")

    def fill(self, segments: int) -> str:
        """Have the server write so many segments; return the name of the last."""
        for number in range(segments):
            name = self.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")
            self.sql(f"INSERT INTO filler SELECT {number}, repeat('x', 500) FROM generate_series(1, 50)")
            self.sql("SELECT pg_switch_wal()")
        return name.strip()


@pytest.fixture
def bench(host: Any) -> Iterator[Bench]:
    """Return the host with the tables of n8n that a set hashes, and a table to write to."""
    found = Bench(host)
    found.sql(
        "CREATE TABLE IF NOT EXISTS workflow_entity (id int PRIMARY KEY, name text);"
        "CREATE TABLE IF NOT EXISTS credentials_entity (id int PRIMARY KEY, data text);"
        "CREATE TABLE IF NOT EXISTS filler (id int, text text);"
        "INSERT INTO workflow_entity SELECT g, md5(g::text) FROM generate_series(1, 500) g ON CONFLICT DO NOTHING"
    )
    yield found
    host.check_output("systemctl start object-store.service")


def test_units(host: Any, running: Callable[..., None], exposure: Callable[[str], float]) -> None:
    running("n8n-backup-watch.timer")
    assert exposure("n8n-backup.service") <= 2.1
    assert exposure("n8n-backup-watch.service") <= 1.3
    assert exposure("n8n-backup-repair.service") <= 1.3
    assert host.file("/etc/cron.d/n8n-platform-backup").contains("^17 3 \\* \\* \\* root systemctl start")
    assert not host.file("/etc/systemd/system/n8n-backup.timer").exists


def test_the_first_backup_was_made_by_the_role(bench: Bench) -> None:
    assert [bench.backups(repository)[0]["type"] for repository in REPOSITORIES] == ["full", "full"]
    sets = json.loads(bench.host.check_output("n8n-platform-backup list --json --from all"))
    assert sets
    assert bench.metric('n8n_backup_last_run_failed{kind="physical"}', "n8n_backup") == 0


def test_keys_are_for_root_and_the_server_only(host: Any) -> None:
    passphrase = host.check_output("cat /etc/n8n-platform/secrets/backup_repository_passphrase").strip()
    files = [f"/etc/pgbackrest/repo{repository}.d/keys.conf" for repository in REPOSITORIES]
    for path in files:
        keys = host.file(path)
        assert (keys.user, keys.group, keys.mode) == ("root", "postgres", 0o640)
        assert passphrase in keys.content_string
        assert host.run("setpriv --reuid=nobody --clear-groups cat %s", path).rc != 0
    # It is in no other file of the host.
    found = host.run("grep -rlF -- %s /etc /var/lib/n8n-platform /opt/n8n-platform /var/log", passphrase).stdout.split()
    assert sorted(found) == ["/etc/n8n-platform/secrets/backup_repository_passphrase", *files]
    # Nor in the part of a set that is not encrypted.
    newest = json.loads(host.check_output("n8n-platform-backup show latest"))["id"]
    names = host.check_output(f"tar --zstd -tf /data/backups/sets/{newest}/configuration.tar.zst")
    assert "etc/pgbackrest/pgbackrest.conf" in names
    assert ".d/keys.conf" not in names
    assert "secrets/" not in names
    # The repositories are encrypted.
    name = host.check_output("find /data/backups/pgbackrest/archive -name '*.zst' | head -n 1")
    assert host.check_output("head -c 8 %s", name).startswith("Salted__")


def test_a_change_is_in_both_repositories_within_the_archive_timeout(bench: Bench) -> None:
    bench.sql("INSERT INTO filler VALUES (0, 'one row, far less than a segment')")
    segment = bench.sql("SELECT pg_walfile_name(pg_current_wal_lsn())").strip()
    took = until(
        lambda: all(bench.archived(repository, segment) for repository in REPOSITORIES),
        ARCHIVE_TIMEOUT + 10,
        f"{segment} is in both repositories",
    )
    print(f"in both repositories after {took:.1f} s")
    bench.host.check_output(f"cd /; {PGBACKREST} check")


def test_a_run_makes_what_changed_and_a_set_in_both_places(bench: Bench) -> None:
    bench.run()
    assert [bench.backups(repository)[-1]["type"] for repository in REPOSITORIES] == ["diff", "diff"]
    newest = json.loads(bench.host.check_output("n8n-platform-backup list --json --from all"))
    assert "database.dump.zst" in json.dumps(json.loads(bench.host.check_output("n8n-platform-backup show latest")))
    assert newest
    bench.host.check_output("n8n-platform-backup verify latest --deep")
    for place in ("local", "s3"):
        assert bench.metric(f'n8n_backup_sets{{place="{place}"}}', "n8n_backup") >= 1


def test_old_backups_expire(bench: Bench) -> None:
    """By days, which nobody waits for here; counted instead, the same command removes what is too much."""
    kept = {1: "3", 2: "9"}
    for repository, days in kept.items():
        settings = bench.host.file(f"/etc/pgbackrest/repo{repository}.d/options.conf").content_string
        assert f"repo{repository}-retention-full-type=time" in settings
        assert f"repo{repository}-retention-full={days}\n" in settings
    first = bench.backups(1)[0]["label"]
    bench.host.check_output(f"cd /; {PGBACKREST} --repo=1 --type=full backup")
    assert first in [one["label"] for one in bench.backups(1)]
    counted = "--repo1-retention-full-type=count --repo1-retention-full=1"
    bench.host.check_output(f"cd /; {PGBACKREST} --repo=1 {counted} expire")
    assert [one["type"] for one in bench.backups(1)] == ["full"]


def test_a_run_that_was_killed_harms_nothing(bench: Bench) -> None:
    bench.sql(
        "INSERT INTO filler SELECT g, md5(g::text) || repeat(md5((g * 7)::text), 30) FROM generate_series(1, 60000) g"
    )
    bench.host.check_output("systemctl start --no-block n8n-backup.service")
    until(lambda: bench.host.run("pgrep -f 'pgbackrest.*backup:local'").rc == 0, 30, "pgBackRest copies", every=0.1)
    bench.host.check_output("systemctl kill --signal=KILL n8n-backup.service")
    until(lambda: bench.host.run("systemctl is-failed n8n-backup.service").rc == 0, 30, "the run is over")
    bench.run()
    assert bench.metric('n8n_backup_last_run_failed{kind="physical"}', "n8n_backup") == 0
    assert bench.metric('n8n_backup_last_run_failed{kind="set"}', "n8n_backup") == 0


def test_an_outage_beyond_the_queue_is_noticed_and_mended(bench: Bench) -> None:
    """The object store is away, more log is written than may wait, pgBackRest drops it in silence."""
    bench.look()
    before = bench.look()
    assert [one["missing_count"] for one in before.values()] == [0, 0]
    bench.host.check_output("systemctl stop object-store.service")
    for _ in range(2):
        last = bench.fill(5)
        # The local repository gets everything as before.
        until(lambda name=last: bench.archived(1, name), 40, "repository 1 has what repository 2 cannot take")  # type: ignore[misc]
    archived = "SELECT coalesce(last_archived_wal, '') >= '{}' FROM pg_stat_archiver"
    until(lambda: bench.sql(archived.format(last)).strip() == "t", 120, f"the server let go of {last}")
    away = bench.look()
    assert (away["1"]["reachable"], away["2"]["reachable"]) == (True, False)
    assert bench.metric('n8n_backup_archive_reachable{repo="2"}') == 0
    bench.host.check_output("systemctl start object-store.service")
    label = bench.backups(2)[-1]["label"]
    # One look is no proof, the second is; it also starts the full backup.
    bench.look()
    seen = bench.look()
    assert (seen["1"]["missing_count"], seen["2"]["missing_count"] > 0) == (0, True)
    assert bench.metric('n8n_backup_archive_missing{repo="2"}') == 1
    until(lambda: bench.look()["2"]["missing_count"] == 0, 60, "repository 2 is whole again")
    after = bench.look()
    assert (after["1"]["gaps"], after["2"]["gaps"], after["2"]["backup_type"]) == (0, 1, "full")
    assert bench.backups(2)[-1]["label"] > label
    assert bench.metric('n8n_backup_archive_missing{repo="2"}') == 0
    bench.host.check_output(f"cd /; {PGBACKREST} check")


def test_an_outage_within_the_queue_costs_nothing(bench: Bench) -> None:
    bench.host.check_output("systemctl stop object-store.service")
    last = bench.fill(2)
    until(lambda: bench.archived(1, last), 40, "repository 1 gets what repository 2 cannot take")
    bench.host.check_output("systemctl start object-store.service")
    until(lambda: bench.archived(2, last), 90, "repository 2 catches up")
    bench.look()
    assert [one["missing_count"] for one in bench.look().values()] == [0, 0]


@pytest.mark.parametrize("line", ["repo1-retention-ful=3", "compress-type=brotli", "archive-push-queue-max=much"])
def test_a_configuration_that_pgbackrest_does_not_understand_is_refused(host: Any, line: str) -> None:
    host.check_output("printf '[global]\\n%%s\\n' %s > /run/candidate.conf", line)
    done = host.run("/usr/local/lib/n8n-platform/check-pgbackrest-config /run/candidate.conf")
    assert done.rc != 0
    assert line.split("=", maxsplit=1)[0] in done.stderr

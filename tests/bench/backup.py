# SPDX-License-Identifier: GPL-3.0-or-later
"""What backups and restores of a database of about 1 GB take, and what they cost the workflows meanwhile."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import host, sites
from tests.bench.throughput import ratio, spread

ROOT = Path(__file__).resolve().parents[2]
FILLER_MIB = 1024
ROWS_PER_MIB = 105
TURNS = 3
RAW = "/srv/n8n-platform/backups/bench.sql.zst"
LOCAL_SETTINGS = f"{host.WORK}/backup-local.json"
LOOP = "n8n-bench-backup.service"
SET = ["n8n-platform-backup", "run", "--parts", "database"]
Say = Callable[[str], None]

# Copies one finished execution many times, each with its own 9.6 kB of text; without the trigger that keeps payloads.
FILL = """
SET session_replication_role = replica;
DO $$
DECLARE
  model bigint := (SELECT max(id) FROM execution_entity WHERE status = 'success');
  main text := (SELECT string_agg(quote_ident(attname), ',') FROM pg_attribute
                WHERE attrelid = 'execution_entity'::regclass AND attnum > 0 AND NOT attisdropped
                AND attname <> 'id');
  rest text := (SELECT string_agg(quote_ident(attname), ',') FROM pg_attribute
                WHERE attrelid = 'execution_data'::regclass AND attnum > 0 AND NOT attisdropped
                AND attname NOT IN ('executionId', 'data'));
  models text := (SELECT string_agg('model.' || word, ',') FROM unnest(string_to_array(rest, ',')) word);
BEGIN
  EXECUTE format('WITH copy AS (INSERT INTO execution_entity (%s)
                  SELECT %s FROM execution_entity, generate_series(1, {rows})
                  WHERE id = %s RETURNING id)
                  INSERT INTO execution_data ("executionId", data, %s)
                  SELECT copy.id, (SELECT json_agg(md5(copy.id::text || n)) FROM generate_series(1, 280) n)::text, %s
                  FROM copy, execution_data model WHERE model."executionId" = %s',
                 main, main, model, rest, models, model);
END $$;
"""


def sql(statement: str, timeout: float = 900) -> str:
    """Run a statement as the database's administrator."""
    command = ["runuser", "-u", "postgres", "--", "psql", "-d", "n8n", "-XqAt", "-v", "ON_ERROR_STOP=1"]
    return host.run(*command, text=statement, timeout=timeout).strip()


def seconds(*command: str) -> float:
    """Return how long a command takes in the host."""
    start = time.monotonic()
    host.run(*command, timeout=1800)
    return round(time.monotonic() - start, 2)


def wall_times(say: Say) -> dict[str, Any]:
    """Compare a set of the database with the plain pipeline on the same data and disk, in turn."""
    settings = json.loads(host.shell("cat /etc/n8n-platform/backup/settings.json"))
    host.write(LOCAL_SETTINGS, json.dumps({**settings, "s3": None}), "0600")
    raw = ["runuser", "-u", "postgres", "--", "sh", "-c", "pg_dump n8n | zstd -3 -q -f -o /dev/stdout | cat"]
    commands = {
        "pg_dump, zstd": ["sh", "-c", f"{' '.join(raw[:5])} -c '{raw[6]}' > {RAW} && sync {RAW}"],
        "local set": [SET[0], "--settings", LOCAL_SETTINGS, *SET[1:]],
        "set, local and S3": SET,
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(TURNS):
        for name, command in commands.items():
            taken[name].append(seconds(*command))
            say(f"  {name:18} {taken[name][-1]:6.1f} s")
    host.run("rm", "-f", RAW)
    plain = taken["pg_dump, zstd"]
    return {
        "seconds": {name: spread(values) for name, values in taken.items()},
        "ratio": {name: ratio(values, plain) for name, values in taken.items() if values is not plain},
    }


def peak_mib() -> float:
    """Return the largest resident size of any process of a run, MiB."""
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    return round(int(host.run("python3", "-c", script, *SET, timeout=1800).split()[-1]) / 1024, 1)


def load_meanwhile(ours: sites.Site, timing: dict[str, float], say: Say) -> dict[str, Any]:
    """Measure the workflows' throughput without and with backups running, in turn."""
    rates: dict[str, list[float]] = {"without": [], "with": []}
    for name in ("without", "with", "without", "with"):
        if name == "with":
            loop = "while :; do n8n-platform-backup run; done"
            host.run("systemd-run", "--quiet", "--collect", f"--unit={LOOP}", "sh", "-c", loop)
        try:
            rates[name].append(host.drive(ours.job("expression", **timing))["completions_per_s"])
        finally:
            if name == "with":
                host.run("systemctl", "stop", LOOP)
        say(f"  {name:8} backups {rates[name][-1]:6.1f} completions/s")
    return {
        "per_s": {name: spread(values) for name, values in rates.items()},
        "ratio": ratio(rates["with"], rates["without"]),
    }


def restores(say: Say) -> dict[str, Any]:
    """Restore beside the platform (drill) and in its place, and return what each reports."""
    host.run("n8n-platform-backup", "run", timeout=1800)
    drill = json.loads(host.run("n8n-platform-backup", "drill", "--json", timeout=3600))
    say(f"  drill    {drill['rto_seconds']} s")
    command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", "inventories/sandbox", "playbooks/restore.yml"]
    options = ["-e", "restore_set=latest", "-e", f"confirm={host.CONTAINER}"]
    subprocess.run([*command, *options], cwd=ROOT, check=True, capture_output=True, text=True)
    report = json.loads(host.shell("cat $(ls -t /var/lib/n8n-platform/backup/restores/*.json | head -1)"))
    say(f"  restore  {report['rto_seconds']} s")
    return {"drill": drill, "restore": {name: report.get(name) for name in ("rto_seconds", "rpo_seconds")}}


def measure(ours: sites.Site, timing: dict[str, float], say: Say) -> dict[str, Any]:
    """Fill the database, measure everything, take out again what was filled in."""
    host.drive(ours.job("expression", **{**timing, "seconds": 3.0, "warm_up": 0.0}))
    last = int(sql("SELECT max(id) FROM execution_entity"))
    say(f"  filling {FILLER_MIB} MiB in")
    sql(FILL.replace("{rows}", str(FILLER_MIB * ROWS_PER_MIB)))
    try:
        size = int(sql("CHECKPOINT; SELECT pg_database_size('n8n')").splitlines()[-1])
        return {
            "database_mib": round(size / 1024**2),
            "wall": wall_times(say),
            "peak_mib": peak_mib(),
            "meanwhile": load_meanwhile(ours, timing, say),
            "restores": restores(say),
        }
    finally:
        sql(f"DELETE FROM execution_entity WHERE id > {last}")
        sql("VACUUM FULL execution_data; VACUUM FULL execution_entity")

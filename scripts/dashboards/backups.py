# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups: how old, how good, how long a restore takes; the archive; the object store."""

from __future__ import annotations

from scripts.dashboards.model import Dashboard, Row, Variable, above
from scripts.dashboards.panels import SHARED, graph, log_lines, number, table

HOST = '{instance=~"$instance"}'

STATE = Row(
    "State",
    (
        number(
            "Newest backup",
            "Age of the newest complete backup, of the kind that is oldest.",
            f"max(time() - n8n_backup_last_success_timestamp_seconds{HOST})",
            "s",
            above(93600, 180000),
        ),
        number(
            "Last run",
            "1 when anything went wrong in the last run.",
            f"max(n8n_backup_last_run_failed{HOST})",
            steps=above(1, 1),
        ),
        number(
            "Verified",
            "Time since a set last passed a check.",
            f"max(time() - n8n_backup_last_verified_timestamp_seconds{HOST})",
            "s",
            above(180000, 360000),
        ),
        number(
            "Drill",
            "Time since a set was last restored in a drill.",
            f"max(time() - n8n_backup_drill_success_timestamp_seconds{HOST})",
            "s",
            above(691200, 1209600),
        ),
        number(
            "A restore takes",
            "How long the restore of the last drill took.",
            f"max(n8n_backup_drill_rto_seconds{HOST})",
            "s",
        ),
        number(
            "A restore loses",
            "Age of the newest data that the last drill got back.",
            f"max(n8n_backup_drill_rpo_seconds{HOST})",
            "s",
        ),
    ),
)

RUNS = Row(
    "Runs",
    (
        graph(
            "Age",
            "Age of the newest complete backup, by kind. It rises to a day and falls.",
            ((f"time() - n8n_backup_last_success_timestamp_seconds{HOST}", "{{kind}} {{instance}}"),),
            "s",
            steps=above(93600, 180000),
        ),
        graph(
            "Duration",
            "How long the last backup took.",
            ((f"n8n_backup_duration_seconds{HOST}", "{{kind}} {{instance}}"),),
            "s",
        ),
        graph(
            "Size",
            "Size of the last complete backup.",
            ((f"n8n_backup_size_bytes{HOST}", "{{kind}} {{instance}}"),),
            "bytes",
        ),
        table(
            "Backups",
            "Every kind of backup of every host.",
            (
                ("Age", f"time() - n8n_backup_last_success_timestamp_seconds{HOST}", "s"),
                ("Failed", f"n8n_backup_last_run_failed{HOST}", "short"),
                ("Size", f"n8n_backup_size_bytes{HOST}", "bytes"),
                ("Duration", f"n8n_backup_duration_seconds{HOST}", "s"),
            ),
            {"kind": "Kind", "instance": "Host"},
            12,
            8,
        ),
        graph(
            "Sets",
            "Sets of each host at each place.",
            ((f"n8n_backup_sets{HOST}", "{{place}} {{instance}}"),),
            width=12,
        ),
    ),
)

ARCHIVE = Row(
    "Archive of PostgreSQL's log",
    (
        graph(
            "Behind",
            "Age of the oldest complete segment that is not in a repository: what would be lost with the database's disk.",
            ((f"n8n_backup_archive_behind_seconds{HOST}", "repository {{repo}} {{instance}}"),),
            "s",
            steps=above(300, 900),
        ),
        graph(
            "Waiting",
            "Log that waits to be archived.",
            ((f"n8n_backup_archive_queue_bytes{HOST}", "{{instance}}"),),
            "bytes",
        ),
        table(
            "Repositories",
            "Whether each can be read, lacks log, how many holes it ever had, and how old its newest physical backup is.",
            (
                ("Reachable", f"n8n_backup_archive_reachable{HOST}", "short"),
                ("Lacks log", f"n8n_backup_archive_missing{HOST}", "short"),
                ("Holes", f"n8n_backup_archive_gaps_total{HOST}", "short"),
                ("Newest backup", f"time() - (n8n_backup_archive_newest_backup_timestamp_seconds{HOST} > 0)", "s"),
            ),
            {"repo": "Repository", "instance": "Host"},
            8,
            8,
        ),
    ),
)

STORE = Row(
    "Object store",
    (
        graph(
            "Free",
            "Free bytes of its disk. Uploads stop before it is full.",
            (
                (f"object_store_free_bytes{HOST}", "{{instance}}"),
                (f"clamp_min(predict_linear(object_store_free_bytes{HOST}[1d], 604800), 0)", "in a week {{instance}}"),
            ),
            "bytes",
        ),
        graph(
            "Versions",
            "Objects and their older versions, and those that are past their time and still locked.",
            (
                (f"object_store_versions{HOST}", "{{instance}}"),
                (f"object_store_versions_still_locked{HOST}", "still locked {{instance}}"),
            ),
        ),
        graph(
            "Uploads stopped",
            "1 while uploads are refused for lack of room.",
            ((f"object_store_uploads_stopped{HOST}", "{{instance}}"),),
        ),
        graph(
            "Tidied",
            "Time since old versions were last removed.",
            ((f"time() - (object_store_last_kept_timestamp_seconds{HOST} > 0)", "{{instance}}"),),
            "s",
            12,
            steps=above(93600, 180000),
        ),
        log_lines("What backups said", "Lines of backups, restores and drills.", '{service_name="backup"}', 12, 8),
    ),
)

DASHBOARD = Dashboard(
    "backups",
    "Backups",
    "Whether there is something to restore from, and what a restore would cost.",
    (STATE, RUNS, ARCHIVE, STORE),
    (Variable("instance", "Host", "label_values(n8n_backup_last_run_timestamp_seconds, instance)"),),
    SHARED,
    "now-7d",
    "5m",
)

# SPDX-License-Identifier: GPL-3.0-or-later
"""PostgreSQL: connections, transactions, cache, locks, sizes, clean-up, log and archive."""

from __future__ import annotations

from scripts.dashboards.model import Dashboard, Row, Variable, above, below
from scripts.dashboards.panels import SHARED, graph, number, table, to

HOST = 'instance=~"$instance"'
DB = f'{HOST},datname=~"$database"'
RATE = "$__rate_interval"

STATE = Row(
    "State",
    (
        number("Answers", "Whether the exporter can sign in.", f"min(pg_up{{{HOST}}})", steps=below(1, 1)),
        number(
            "Connections",
            "Share of max_connections that is taken.",
            f"max(sum by (instance) (pg_stat_activity_count{{{HOST}}}) / on (instance) pg_settings_max_connections{{{HOST}}})",
            "percentunit",
            above(0.7, 0.85),
        ),
        number(
            "Cache hits",
            "Share of blocks that were in memory.",
            f"sum(rate(pg_stat_database_blks_hit{{{DB}}}[30m])) / (sum(rate(pg_stat_database_blks_hit{{{DB}}}[30m])) "
            f"+ sum(rate(pg_stat_database_blks_read{{{DB}}}[30m])) > 0)",
            "percentunit",
            below(0.9, 0.97),
        ),
        number(
            "Oldest transaction",
            "Age of the oldest open transaction; nothing deleted since can be cleaned up.",
            f"max(pg_stat_activity_max_tx_duration{{{DB}}})",
            "s",
            above(600, 1800),
        ),
        number("Size", "Size of the databases.", f"sum(pg_database_size_bytes{{{DB}}})", "bytes"),
        number(
            "Oldest row",
            "Transactions since the oldest row was frozen. At 2.1 billion writes stop.",
            f"max(pg_database_wraparound_age_datfrozenxid_seconds{{{DB}}})",
            "short",
            above(5e8, 1.2e9),
        ),
    ),
)

WORK = Row(
    "Work",
    (
        graph(
            "Connections by state",
            "idle in transaction is a session that holds locks and does nothing.",
            (
                (f"sum by (state) (pg_stat_activity_count{{{DB}}})", "{{state}}"),
                (f"max(pg_settings_max_connections{{{HOST}}})", "limit"),
            ),
        ),
        graph(
            "Transactions",
            "Transactions committed and rolled back, per second.",
            (
                (f"sum by (datname) (rate(pg_stat_database_xact_commit{{{DB}}}[{RATE}]))", "committed {{datname}}"),
                (f"sum by (datname) (rate(pg_stat_database_xact_rollback{{{DB}}}[{RATE}]))", "rolled back {{datname}}"),
            ),
            "ops",
        ),
        graph(
            "Rows",
            "Rows read and changed, per second.",
            (
                (f"sum(rate(pg_stat_database_tup_fetched{{{DB}}}[{RATE}]))", "fetched"),
                (f"sum(rate(pg_stat_database_tup_inserted{{{DB}}}[{RATE}]))", "inserted"),
                (f"sum(rate(pg_stat_database_tup_updated{{{DB}}}[{RATE}]))", "updated"),
                (f"sum(rate(pg_stat_database_tup_deleted{{{DB}}}[{RATE}]))", "deleted"),
            ),
            "ops",
        ),
        graph(
            "Blocks",
            "Blocks found in memory and read from disk (or the kernel's cache), per second.",
            (
                (f"sum(rate(pg_stat_database_blks_hit{{{DB}}}[{RATE}]))", "in memory"),
                (f"sum(rate(pg_stat_database_blks_read{{{DB}}}[{RATE}]))", "read"),
            ),
            "ops",
        ),
        graph(
            "Locks",
            "Locks held, by mode.",
            ((f"sum by (mode) (pg_locks_count{{{DB}}}) > 0", "{{mode}}"),),
        ),
        graph(
            "Deadlocks, temporary files",
            "Deadlocks per minute; bytes written to temporary files, per second, by queries that lack memory.",
            (
                (f"60 * sum by (datname) (rate(pg_stat_database_deadlocks{{{DB}}}[{RATE}]))", "deadlocks {{datname}}"),
                (
                    f"sum by (datname) (rate(pg_stat_database_temp_bytes{{{DB}}}[{RATE}]))",
                    "temporary bytes {{datname}}",
                ),
            ),
            links=(to("logs", "Logs", "&var-service=postgres"),),
        ),
        graph(
            "n8n's pools",
            "Connections each process of n8n uses, and how long it waits for one (95 %).",
            (
                ("sum by (process) (n8n_db_pool_connections_active)", "in use {{process}}"),
                ("sum by (process) (n8n_db_pool_requests_pending) > 0", "waiting {{process}}"),
            ),
            links=(to("workers-queue", "Workers"),),
        ),
        graph(
            "Wait for a connection, 95 %",
            "How long processes of n8n wait for a connection of their pool.",
            (
                (
                    f"histogram_quantile(0.95, sum by (le, process) (rate(n8n_db_pool_acquire_seconds_bucket[{RATE}])))",
                    "{{process}}",
                ),
            ),
            "s",
        ),
        graph(
            "Longest transaction",
            "Age of the oldest transaction by state.",
            ((f"max by (datname, state) (pg_stat_activity_max_tx_duration{{{DB}}})", "{{datname}} {{state}}"),),
            "s",
            steps=above(600, 1800),
        ),
    ),
)

DATA = Row(
    "Data",
    (
        graph(
            "Size",
            "Size of each database.",
            ((f"pg_database_size_bytes{{{DB}}}", "{{datname}} {{instance}}"),),
            "bytes",
        ),
        graph(
            "Dead rows",
            "The ten tables with most rows that wait to be cleaned up.",
            ((f"topk(10, pg_stat_user_tables_n_dead_tup{{{DB}}})", "{{relname}}"),),
        ),
        graph(
            "Log and archive",
            "Size of the write-ahead log on disk, and age of the segment archived last.",
            (
                (f"pg_wal_size_bytes{{{HOST}}}", "log {{instance}} (bytes)"),
                (f"pg_stat_archiver_last_archive_age{{{HOST}}}", "last archived {{instance}} (s)"),
            ),
            links=(to("backups", "Backups"),),
        ),
        table(
            "Tables",
            "Rows, dead rows and times since clean-up of the largest tables.",
            (
                ("Rows", f"topk(15, pg_stat_user_tables_n_live_tup{{{DB}}})", "short"),
                (
                    "Dead rows",
                    f"pg_stat_user_tables_n_dead_tup{{{DB}}} and topk(15, pg_stat_user_tables_n_live_tup{{{DB}}})",
                    "short",
                ),
                (
                    "Full scans",
                    f"increase(pg_stat_user_tables_seq_scan{{{DB}}}[$__range]) and topk(15, pg_stat_user_tables_n_live_tup{{{DB}}})",
                    "short",
                ),
            ),
            {"relname": "Table", "datname": "Database", "instance": "Host"},
        ),
    ),
)

DASHBOARD = Dashboard(
    "postgres",
    "PostgreSQL",
    "The database of n8n, and how n8n's processes use it.",
    (STATE, WORK, DATA),
    (
        Variable("instance", "Host", "label_values(pg_up, instance)"),
        Variable("database", "Database", 'label_values(pg_stat_database_xact_commit{datname!~"template.*|"}, datname)'),
    ),
    SHARED,
)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis: the queue's instance and the cache's."""

from __future__ import annotations

from scripts.dashboards.model import Dashboard, Row, Variable, above, below
from scripts.dashboards.panels import SHARED, graph, number, table, to

WHERE = '{instance=~"$instance",redis=~"$redis"}'
EACH = "{{redis}} {{instance}}"
RATE = "$__rate_interval"

STATE = Row(
    "State",
    (
        number("Answers", "Whether every instance answers.", f"min(redis_up{WHERE})", steps=below(1, 1)),
        number(
            "Memory",
            "Share of maxmemory in use, of the fuller instance.",
            f"max(redis_memory_used_bytes{WHERE} / (redis_memory_max_bytes{WHERE} > 0))",
            "percentunit",
            above(0.7, 0.85),
        ),
        number("Clients", "Connections to all instances.", f"sum(redis_connected_clients{WHERE})"),
        number("Commands", "Commands per second.", f"sum(rate(redis_commands_processed_total{WHERE}[5m]))", "ops"),
        number(
            "Thrown away",
            "Keys dropped for lack of memory within the chosen time; of the queue there must be none.",
            f"sum(increase(redis_evicted_keys_total{WHERE}[$__range]))",
            steps=above(1, 1000),
        ),
        number(
            "On disk",
            "1 while the last writes to disk went well.",
            f"min(redis_aof_last_write_status{WHERE}) * min(redis_rdb_last_bgsave_status{WHERE})",
            steps=below(1, 1),
        ),
    ),
)

WORK = Row(
    "Work",
    (
        graph(
            "Memory",
            "Memory in use and its limit.",
            ((f"redis_memory_used_bytes{WHERE}", f"used {EACH}"), (f"redis_memory_max_bytes{WHERE}", f"limit {EACH}")),
            "bytes",
        ),
        graph(
            "Clients",
            "Connections, and those that wait for an entry of a list.",
            ((f"redis_connected_clients{WHERE}", EACH), (f"redis_blocked_clients{WHERE}", f"waiting {EACH}")),
        ),
        graph(
            "Commands", "Commands per second.", ((f"rate(redis_commands_processed_total{WHERE}[{RATE}])", EACH),), "ops"
        ),
        graph(
            "Commands by kind",
            "The ten most frequent commands, per second.",
            ((f"topk(10, sum by (redis, cmd) (rate(redis_commands_total{WHERE}[{RATE}])))", "{{cmd}} {{redis}}"),),
            "ops",
        ),
        graph(
            "Time of commands",
            "Mean time of the ten slowest kinds of commands.",
            (
                (
                    f"topk(10, sum by (redis, cmd) (rate(redis_commands_duration_seconds_total{WHERE}[{RATE}])) "
                    f"/ (sum by (redis, cmd) (rate(redis_commands_total{WHERE}[{RATE}])) > 0))",
                    "{{cmd}} {{redis}}",
                ),
            ),
            "s",
        ),
        graph(
            "Hits",
            "Share of look-ups that found something.",
            (
                (
                    f"rate(redis_keyspace_hits_total{WHERE}[{RATE}]) / (rate(redis_keyspace_hits_total{WHERE}[{RATE}]) "
                    f"+ rate(redis_keyspace_misses_total{WHERE}[{RATE}]) > 0)",
                    EACH,
                ),
            ),
            "percentunit",
        ),
        graph(
            "Keys",
            "Keys that are there, expire or are thrown away.",
            (
                (f"sum by (instance, redis) (redis_db_keys{WHERE})", EACH),
                (f"60 * rate(redis_expired_keys_total{WHERE}[{RATE}])", f"expired a minute {EACH}"),
                (f"60 * rate(redis_evicted_keys_total{WHERE}[{RATE}])", f"thrown away a minute {EACH}"),
            ),
        ),
        graph(
            "Lists of the queue",
            "Length of the lists and sets in which n8n keeps its jobs.",
            ((f"redis_key_size{WHERE}", "{{key}}"),),
            links=(to("workers-queue", "Workers and queue"),),
        ),
        graph(
            "Network",
            "Bytes read and written, per second.",
            (
                (f"rate(redis_net_input_bytes_total{WHERE}[{RATE}])", f"in {EACH}"),
                (f"rate(redis_net_output_bytes_total{WHERE}[{RATE}])", f"out {EACH}"),
            ),
            "Bps",
        ),
    ),
)

DISK = Row(
    "Disk",
    (
        table(
            "Durability",
            "Status of the last writes (1 = well), changes since the last snapshot, and time since the start.",
            (
                ("Append", f"redis_aof_last_write_status{WHERE}", "short"),
                ("Rewrite", f"redis_aof_last_bgrewrite_status{WHERE}", "short"),
                ("Snapshot", f"redis_rdb_last_bgsave_status{WHERE}", "short"),
                ("Changes since", f"redis_rdb_changes_since_last_save{WHERE}", "short"),
                ("Runs for", f"redis_uptime_in_seconds{WHERE}", "s"),
            ),
            {"redis": "Redis", "instance": "Host"},
            16,
            8,
        ),
        graph(
            "Slow commands",
            "Entries of the slow log.",
            ((f"redis_slowlog_length{WHERE}", EACH),),
            links=(to("logs", "Logs", "&var-service=redis"),),
        ),
    ),
)

DASHBOARD = Dashboard(
    "redis",
    "Redis",
    "The queue's Redis, which must lose nothing, and the cache's, which may.",
    (STATE, WORK, DISK),
    (
        Variable("instance", "Host", "label_values(redis_up, instance)"),
        Variable("redis", "Redis", "label_values(redis_up, redis)"),
    ),
    SHARED,
)

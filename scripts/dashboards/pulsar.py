# SPDX-License-Identifier: GPL-3.0-or-later
"""Apache Pulsar: what answers, topics and their backlogs, disks of the bookies, brokers, Java, ZooKeeper."""

from __future__ import annotations

from scripts.dashboards.model import Dashboard, Row, Variable, above, below
from scripts.dashboards.panels import SHARED, bars, graph, log_lines, number, states, table, to

RATE = "$__rate_interval"
HOST = '{instance=~"$instance"}'
DAEMONS = '{job=~"zookeeper|bookie|pulsar",instance=~"$instance"}'
EACH = "{{job}} {{instance}}"
DEAD = '{name=~"[^.]+[.]deadletter[.].+"}'
LIVE = '{name=~"$topic",name!~"[^.]+[.]deadletter[.].+"}'
TOPIC = '"persistent://([^/]+)/([^/]+)/(.+?)(?:-partition-[0-9]+)?"'


def by_topic(expr: str) -> str:
    """Return the sum of something over the partitions of each topic, under the topic's name in the inventory."""
    # Grafana has no variables named 1, 2 and 3, so it leaves the groups of the expression alone.
    return f'sum by (name) (label_replace({expr}, "name", "$1.$2.$3", "topic", {TOPIC}))'


STATE = Row(
    "Does it work?",
    (
        number("Brokers", "Brokers that answer.", 'sum(up{job="pulsar"})', steps=below(1, 1), width=3),
        number(
            "Healthy",
            "1 if each broker could write and read a message within the last minute; -1 means that none has tried yet.",
            "min(pulsar_health)",
            steps=below(0, 1),
            width=3,
        ),
        number(
            "Bookies",
            "Bookies that take messages.",
            "count(bookie_SERVER_STATUS == 1) or vector(0)",
            steps=below(1, 1),
            width=3,
        ),
        number("ZooKeeper", "Servers that answer.", 'sum(up{job="zookeeper"})', steps=below(1, 1), width=3),
        number(
            "Waiting",
            "Messages that subscriptions have not acknowledged, without dead letters.",
            'sum(n8n:pulsar_backlog:messages{name!~"[^.]+[.]deadletter[.].+"})',
            steps=above(1000, 100000),
            width=3,
        ),
        number(
            "Oldest",
            "Age of the oldest message that waits, without dead letters.",
            'max(n8n:pulsar_backlog_age:seconds{name!~"[^.]+[.]deadletter[.].+"})',
            "s",
            above(60, 900),
            3,
        ),
        number(
            "Dead letters",
            "Messages in dead-letter topics that nobody has acknowledged.",
            f"sum(n8n:pulsar_backlog:messages{DEAD})",
            steps=above(1, 100),
            width=3,
        ),
        number(
            "Disk",
            "The fullest disk of a bookie, percent. At 95, if not set otherwise, it takes nothing more.",
            'max({__name__=~"bookie_ledger_dir_.+_usage"})',
            "percent",
            above(85, 90),
            3,
        ),
        states("What answers", "Each program over time.", f"up{DAEMONS}", EACH, 12),
        states(
            "Registered",
            "Whether ZooKeeper knows the bookie. One that lost that is restarted within a minute.",
            f"n8n_pulsar_bookie_registered{HOST}",
            "{{instance}}",
        ),
    ),
)

TOPICS = Row(
    "Topics",
    (
        graph(
            "Published",
            "Messages per second by topic.",
            ((by_topic(f"rate(pulsar_in_messages_total{HOST}[{RATE}])"), "{{name}}"),),
            "cps",
            stacked=True,
        ),
        graph(
            "Delivered",
            "Messages per second handed to consumers, repetitions included.",
            ((by_topic(f"rate(pulsar_out_messages_total{HOST}[{RATE}])"), "{{name}}"),),
            "cps",
            stacked=True,
        ),
        graph(
            "Backlog",
            "Messages that a subscription has not acknowledged.",
            ((f"n8n:pulsar_backlog:messages{LIVE}", "{{name}} {{subscription}}"),),
            links=(to("automation", "Automation"),),
        ),
        graph(
            "Oldest message",
            "Age of the oldest message of a topic that some subscription has not acknowledged.",
            ((f"n8n:pulsar_backlog_age:seconds{LIVE}", "{{name}}"),),
            "s",
            steps=above(60, 900),
        ),
        graph(
            "Repetitions",
            "Share of the messages that a subscription gets again.",
            ((f"n8n:pulsar_redelivered:ratio{LIVE}", "{{name}} {{subscription}}"),),
            "percentunit",
            steps=above(0.01, 0.05),
        ),
        graph(
            "Dead letters",
            "Messages in dead-letter topics.",
            ((f"n8n:pulsar_backlog:messages{DEAD}", "{{name}}"),),
            steps=above(1, 100),
        ),
        table(
            "Subscriptions",
            "What waits, how many consumers the partition with fewest of them has, and the share of repetitions.",
            (
                ("Waiting", f"n8n:pulsar_backlog:messages{LIVE}", "short"),
                ("Consumers", f"n8n:pulsar_consumers:min{LIVE}", "short"),
                ("Repetitions", f"n8n:pulsar_redelivered:ratio{LIVE}", "percentunit"),
            ),
            {"name": "Topic", "subscription": "Subscription"},
            12,
        ),
        bars(
            "Backlog of what is allowed",
            "At 100 % publishers of the topic have to wait.",
            'n8n:pulsar_backlog_quota:ratio{name=~"$topic"}',
            "{{name}}",
            "percentunit",
            above(0.5, 0.8),
            12,
            1,
        ),
    ),
)

STORAGE = Row(
    "Storage",
    (
        graph(
            "Disks of bookies",
            "How full each directory of messages is.",
            (('{__name__=~"bookie_ledger_dir_.+_usage",instance=~"$instance"}', "{{instance}} {{__name__}}"),),
            "percent",
            steps=above(85, 95),
            links=(to("host", "Host", "&var-instance=${__field.labels.instance}"),),
        ),
        graph(
            "Journal to the disk",
            "How long it takes until a group of messages is on the disk. Publishers wait for that.",
            (
                (
                    'bookie_journal_JOURNAL_SYNC{instance=~"$instance",success="true",quantile="0.5"}',
                    "half {{instance}}",
                ),
                (
                    'bookie_journal_JOURNAL_SYNC{instance=~"$instance",success="true",quantile="0.99"}',
                    "99 % {{instance}}",
                ),
            ),
            "ms",
            steps=above(100, 1000),
        ),
        graph(
            "Writes",
            "Writes that bookies did and that failed, per second.",
            (
                (
                    f'sum by (instance) (rate(bookkeeper_server_ADD_ENTRY_REQUEST_count{{instance=~"$instance",success="true"}}[{RATE}]))',
                    "done {{instance}}",
                ),
                (
                    f'sum by (instance) (rate(bookkeeper_server_ADD_ENTRY_REQUEST_count{{instance=~"$instance",success="false"}}[{RATE}]))',
                    "failed {{instance}}",
                ),
            ),
            "ops",
        ),
        graph(
            "Data by topic",
            "Bytes of each topic, what is kept after its acknowledgement included.",
            ((by_topic(f"pulsar_storage_size{HOST}"), "{{name}}"),),
            "bytes",
            stacked=True,
        ),
        graph(
            "Ledgers",
            "Pieces of topics that bookies hold. Those nobody needs go a few minutes after their time.",
            ((f"bookie_ledgers_count{HOST}", "{{instance}}"),),
            width=16,
        ),
    ),
)

BROKERS = Row(
    "Brokers",
    (
        graph(
            "Time to store a message",
            "Half of the messages, and 99 of 100, are stored within this time.",
            (
                ('pulsar_broker_publish_latency{instance=~"$instance",quantile="0.5"}', "half {{instance}}"),
                ('pulsar_broker_publish_latency{instance=~"$instance",quantile="0.99"}', "99 % {{instance}}"),
            ),
            "ms",
            steps=above(100, 1000),
        ),
        graph(
            "Failed writes",
            "Writes that failed within the last minute.",
            ((f"sum by (instance) (pulsar_ml_AddEntryErrors{HOST})", "{{instance}}"),),
        ),
        graph(
            "Clients",
            "Connections, publishers and consumers. A consumer counts once for each partition.",
            (
                (f"pulsar_active_connections{HOST}", "connections {{instance}}"),
                (f"pulsar_broker_producers_count{HOST}", "publishers {{instance}}"),
                (f"pulsar_broker_consumers_count{HOST}", "consumers {{instance}}"),
            ),
        ),
        graph(
            "Sign-ins",
            "Tokens accepted and refused, per minute.",
            (
                (f"60 * sum(rate(pulsar_authentication_success_total{HOST}[{RATE}]))", "accepted"),
                (f"60 * sum by (reason) (rate(pulsar_authentication_failures_total{HOST}[{RATE}]))", "{{reason}}"),
            ),
            "opm",
        ),
        graph(
            "Requests to ZooKeeper that wait",
            "More than a few mean that its disk is slow.",
            ((f"outstanding_requests{HOST}", "{{instance}}"),),
            width=16,
        ),
    ),
)

JAVA = Row(
    "Programs",
    (
        graph("Memory", "Memory of each program.", ((f"process_resident_memory_bytes{DAEMONS}", EACH),), "bytes"),
        graph(
            "Heap",
            "Java's memory in use.",
            (('jvm_memory_bytes_used{job=~"zookeeper|bookie|pulsar",instance=~"$instance",area="heap"}', EACH),),
            "bytes",
        ),
        graph(
            "Memory for messages",
            "Share of the memory beside the heap that is in use.",
            ((f"jvm_memory_direct_bytes_used{HOST} / jvm_memory_direct_bytes_max{HOST}", EACH),),
            "percentunit",
            steps=above(0.7, 0.9),
        ),
        graph(
            "Processor",
            "Share of one core that each program uses.",
            ((f"rate(process_cpu_seconds_total{DAEMONS}[{RATE}])", EACH),),
            "percentunit",
        ),
        graph(
            "Garbage collection",
            "Share of the time in which a program only cleans up its memory.",
            ((f"sum by (job, instance) (rate(jvm_gc_collection_seconds_sum{DAEMONS}[{RATE}]))", EACH),),
            "percentunit",
            steps=above(0.1, 0.3),
        ),
        graph(
            "ZooKeeper's disk",
            "Mean time of a write.",
            ((f"rate(fsynctime_sum{HOST}[{RATE}]) / (rate(fsynctime_count{HOST}[{RATE}]) > 0)", "{{instance}}"),),
            "ms",
            steps=above(50, 200),
        ),
        log_lines(
            "What they say",
            "Warnings and errors of ZooKeeper, bookies and brokers.",
            '{service_name="pulsar",host_name=~"$instance"} | detected_level=~`warn|error|fatal|critical`',
        ),
    ),
)

DASHBOARD = Dashboard(
    "pulsar",
    "Pulsar",
    "Apache Pulsar: topics, what waits in them, and the programs that hold them.",
    (STATE, TOPICS, STORAGE, BROKERS, JAVA),
    (
        Variable("instance", "Host", 'label_values(up{job=~"zookeeper|bookie|pulsar"}, instance)'),
        Variable("topic", "Topic", "label_values(n8n:pulsar_backlog:messages, name)"),
    ),
    SHARED,
)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole way of events on one page: into the bridge, through Pulsar, to n8n and its workers, and what is left over."""

from __future__ import annotations

from scripts.dashboards.home import COUNT, PRODUCTION
from scripts.dashboards.model import Dashboard, Row, above
from scripts.dashboards.panels import SHARED, graph, number, states, table, to

RATE = "$__rate_interval"
NOT_DEAD = '{name!~"[^.]+[.]deadletter[.].+"}'
AGE = "bridge_delivery_age_seconds_bucket"

SUMMARY = Row(
    "From the event to its effect",
    (
        number(
            "Events in",
            "Events accepted per minute, over the last ten minutes.",
            "60 * sum(rate(bridge_events_total[10m])) or vector(0)",
            width=3,
            links=(to("bridge", "Bridge"),),
        ),
        number(
            "Outbox",
            "Accepted, and not confirmed by Pulsar yet.",
            "max(bridge_outbox_rows)",
            steps=above(1000, 50000),
            width=3,
            links=(to("bridge", "Bridge"),),
        ),
        number(
            "In Pulsar",
            "Messages that no consumer has acknowledged, without dead letters.",
            f"sum(n8n:pulsar_backlog:messages{NOT_DEAD})",
            steps=above(1000, 100000),
            width=3,
            links=(to("pulsar", "Pulsar"),),
        ),
        number(
            "Wait for n8n",
            "Deliveries that wait for their time, another attempt or room.",
            "max(bridge_retry_rows)",
            steps=above(100, 1000),
            width=3,
            links=(to("bridge", "Bridge"),),
        ),
        number(
            "Delivered",
            "Events that n8n took per minute, over the last ten minutes.",
            '60 * sum(rate(bridge_deliveries_total{outcome="done"}[10m])) or vector(0)',
            width=3,
            links=(to("bridge", "Bridge"),),
        ),
        number(
            "Jobs waiting",
            "Executions that no worker has taken yet.",
            "max(n8n_scaling_mode_queue_jobs_waiting)",
            steps=above(50, 500),
            width=3,
            links=(to("workers-queue", "Workers and queue"),),
        ),
        number(
            "Dead letters",
            "Events that were given up and wait for a decision: n8n-platform events dead.",
            "max(bridge_dead_rows)",
            steps=above(1, 50),
            width=3,
            links=(to("bridge", "Bridge"),),
        ),
        number(
            "Lost executions",
            "Accepted executions that did not come to an end and wait for a decision.",
            "max(n8n_guard_lost_executions)",
            steps=above(1, 1),
            width=3,
            links=(to("executions", "Executions"),),
        ),
    ),
)

FLOW = Row(
    "How much goes through",
    (
        graph(
            "Events",
            "Per second: accepted by the bridge, published to Pulsar, delivered to n8n.",
            (
                (f"sum(rate(bridge_events_total[{RATE}]))", "accepted"),
                (
                    f'sum(rate(pulsar_in_messages_total{{namespace!~".+/deadletter"}}[{RATE}]))',
                    "published to Pulsar",
                ),
                (f'sum(rate(bridge_deliveries_total{{outcome="done"}}[{RATE}]))', "delivered"),
            ),
            "ops",
            12,
            links=(to("bridge", "Bridge"),),
        ),
        graph(
            "Executions",
            "Executions in production that ended, per second, by status; those of events among them.",
            ((f"sum by (status) (rate({COUNT}{{{PRODUCTION}}}[{RATE}]))", "{{status}}"),),
            "ops",
            12,
            stacked=True,
            links=(to("executions", "Executions"),),
        ),
        graph(
            "By route",
            "Events accepted per second by route, and whether they go by a topic or straight from the database.",
            ((f"sum by (route, via) (rate(bridge_events_total[{RATE}]))", "{{route}} by {{via}}"),),
            "ops",
            stacked=True,
        ),
        graph(
            "By topic",
            "Messages published to Pulsar per second by namespace.",
            ((f"sum by (namespace) (rate(pulsar_in_messages_total[{RATE}]))", "{{namespace}}"),),
            "ops",
            stacked=True,
            links=(to("pulsar", "Pulsar"),),
        ),
        graph(
            "Deliveries by outcome",
            "Attempts per second. retry comes again; dead and rejected end among the dead letters.",
            ((f"sum by (outcome) (rate(bridge_deliveries_total[{RATE}]))", "{{outcome}}"),),
            "ops",
            stacked=True,
            links=(to("bridge", "Bridge"),),
        ),
    ),
)

WAITING = Row(
    "What waits, and for how long",
    (
        graph(
            "Where it waits",
            "For Pulsar, in Pulsar, for n8n, for a worker.",
            (
                ("max(bridge_outbox_rows)", "outbox"),
                (f"sum(n8n:pulsar_backlog:messages{NOT_DEAD})", "in Pulsar"),
                ("max(bridge_retry_rows)", "for n8n"),
                ("max(n8n_scaling_mode_queue_jobs_waiting)", "for a worker"),
            ),
            width=12,
            stacked=True,
        ),
        graph(
            "Age of what waits longest",
            "In the outbox and in Pulsar.",
            (
                ("max(bridge_outbox_age_seconds)", "outbox"),
                (f"max(n8n:pulsar_backlog_age:seconds{NOT_DEAD})", "in Pulsar"),
            ),
            "s",
            12,
            steps=above(60, 900),
        ),
        graph(
            "From acceptance to delivery",
            "Half of the events, and 95 and 99 of 100, reached n8n within this time.",
            (
                (f"histogram_quantile(0.5, sum by (le) (rate({AGE}[{RATE}])))", "half"),
                (f"histogram_quantile(0.95, sum by (le) (rate({AGE}[{RATE}])))", "95 %"),
                (f"histogram_quantile(0.99, sum by (le) (rate({AGE}[{RATE}])))", "99 %"),
            ),
            "s",
            steps=above(60, 300),
            links=(to("traces", "Traces"),),
        ),
        graph(
            "Calls under way",
            "Calls of n8n that have no answer yet, and jobs that workers work on.",
            (
                ("sum(bridge_in_flight)", "calls of the bridge"),
                ("max(n8n_scaling_mode_queue_jobs_active)", "jobs of n8n"),
            ),
        ),
        graph(
            "Left over",
            "Events given up, dead letters in Pulsar, and lost executions.",
            (
                ("max(bridge_dead_rows)", "events given up"),
                ('sum(n8n:pulsar_backlog:messages{name=~"[^.]+[.]deadletter[.].+"})', "dead letters"),
                ("max(n8n_guard_lost_executions)", "lost executions"),
            ),
            steps=above(1, 50),
        ),
    ),
)

STATE = Row(
    "What is up, what is wrong",
    (
        states(
            "What answers",
            "Everything an event passes, over time.",
            'min by (job) (up{job=~"bridge-.+|pulsar|bookie|zookeeper|n8n-.+|postgres|redis|traefik"})',
            "{{job}}",
            12,
            9,
        ),
        table(
            "Alerts that fire",
            "Of all that an event passes. Runbooks: docs/runbooks, one section for each name.",
            (
                (
                    "Firing",
                    'ALERTS{alertstate="firing",service=~"bridge|pulsar|n8n|queue|postgres|redis|traefik",severity=~"page|ticket"}',
                    "short",
                ),
            ),
            {"severity": "Severity", "service": "Service", "alertname": "Alert", "instance": "Host"},
            12,
        ),
    ),
)

DASHBOARD = Dashboard(
    "automation",
    "Automation",
    "The way of events on one page: into the bridge, through Pulsar, to n8n and its workers, and what is left over.",
    (SUMMARY, FLOW, WAITING, STATE),
    annotations=SHARED,
)

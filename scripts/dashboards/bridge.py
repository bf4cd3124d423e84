# SPDX-License-Identifier: GPL-3.0-or-later
"""The bridge: events it takes and refuses, what waits for Pulsar, deliveries to n8n, limits, its processes."""

from __future__ import annotations

from scripts.dashboards.model import Dashboard, Row, Variable, above, below
from scripts.dashboards.panels import SHARED, graph, heat, log_lines, number, states, table, to

RATE = "$__rate_interval"
PROCESSES = '{job=~"bridge-(api|consumer)",process=~"$process"}'
EACH = "{{process}} {{instance}}"
TENANT = 'tenant=~"$tenant"'
REQUESTS = "bridge_publish_requests_total"
DELIVERIES = "bridge_deliveries_total"


def share(metric: str, wanted: str, among: str = "") -> str:
    """Return the share of some of the last hour; 0 when there were none of them."""
    return f"(sum(increase({metric}{{{wanted}}}[1h])) or vector(0)) / (sum(increase({metric}{among}[1h])) > 0) or vector(0)"


def within(part: str, metric: str, labels: str = "", by: str = "") -> str:
    """Return the time within which a part of what was measured ended."""
    return f"histogram_quantile({part}, sum by (le{by}) (rate({metric}_bucket{labels}[{RATE}])))"


STATE = Row(
    "Does it work?",
    (
        number("Take events", "API processes that answer.", 'sum(up{job="bridge-api"})', steps=below(1, 2), width=3),
        number("Deliver", "Consumers that answer.", 'sum(up{job="bridge-consumer"})', steps=below(1, 2), width=3),
        number(
            "Refused by us",
            "Share of events of the last hour that got a server error. They were not accepted.",
            share(REQUESTS, 'code=~"5.."'),
            "percentunit",
            above(0.001, 0.01),
            3,
        ),
        number(
            "Not confirmed",
            "Messages that Pulsar has not confirmed yet. Their events are safe in PostgreSQL.",
            "max(bridge_outbox_rows)",
            steps=above(1000, 50000),
            width=3,
            links=(to("pulsar", "Pulsar"),),
        ),
        number(
            "Oldest of them",
            "Age of the oldest message that Pulsar has not confirmed.",
            "max(bridge_outbox_age_seconds)",
            "s",
            above(10, 60),
            3,
        ),
        number(
            "Wait for n8n",
            "Deliveries that wait for their time, for another attempt or for room.",
            "max(bridge_retry_rows)",
            steps=above(100, 1000),
            width=3,
        ),
        number(
            "Given up",
            "Events that were given up and not sent again: n8n-platform events dead.",
            "max(bridge_dead_rows)",
            steps=above(1, 50),
            width=3,
        ),
        number(
            "Held back",
            "Pairs of tenant and route whose calls the breaker holds back.",
            "count(max by (tenant, route) (bridge_breaker_open) == 1) or vector(0)",
            steps=above(1, 3),
            width=3,
        ),
    ),
)

PUBLISHING = Row(
    "Publishing",
    (
        graph(
            "Answers by status",
            "Events per second by the status each got: 202 accepted, 4xx refused for the sender's fault, 5xx for ours.",
            ((f"sum by (code) (rate({REQUESTS}{{{TENANT}}}[{RATE}]))", "{{code}}"),),
            "ops",
            stacked=True,
        ),
        graph(
            "By tenant",
            "Events handed in per second.",
            ((f"sum by (tenant) (rate({REQUESTS}{{{TENANT}}}[{RATE}]))", "{{tenant}}"),),
            "ops",
            stacked=True,
        ),
        graph(
            "Refused by limits",
            "Share of a tenant's events that is refused because of its rate or quota.",
            (
                (
                    f'sum by (tenant) (rate({REQUESTS}{{{TENANT},code="429"}}[{RATE}])) / sum by (tenant) (rate({REQUESTS}{{{TENANT}}}[{RATE}]))',
                    "{{tenant}}",
                ),
            ),
            "percentunit",
            steps=above(0.01, 0.1),
        ),
        graph(
            "Time to answer",
            "Half of the requests with one event, and 99 of 100, are answered within this time; batches 99 of 100.",
            (
                (within("0.5", "bridge_publish_seconds", '{kind="publish"}'), "half"),
                (within("0.99", "bridge_publish_seconds", '{kind="publish"}'), "99 %"),
                (within("0.99", "bridge_publish_seconds", '{kind="batch"}'), "batches, 99 %"),
            ),
            "s",
            steps=above(0.1, 0.5),
        ),
        graph(
            "Commits",
            "99 of 100 commits of PostgreSQL take at most this time.",
            ((within("0.99", "bridge_commit_seconds"), "99 %"), (within("0.5", "bridge_commit_seconds"), "half")),
            "s",
            links=(to("postgres", "PostgreSQL"),),
        ),
        graph(
            "Events in one commit",
            "Requests that come at the same time share a commit.",
            ((f"sum(rate(bridge_commit_events_sum[{RATE}])) / sum(rate(bridge_commit_events_count[{RATE}]))", "mean"),),
        ),
    ),
)

OUTBOX = Row(
    "To Pulsar",
    (
        graph(
            "Outbox",
            "Messages that Pulsar has not confirmed yet.",
            (("max(bridge_outbox_rows)", "messages"),),
            steps=above(1000, 50000),
            links=(to("pulsar", "Pulsar"),),
        ),
        graph(
            "Age of the outbox",
            "Age of the oldest of them. After an hour new events for its topic are refused.",
            (("max(bridge_outbox_age_seconds)", "oldest"),),
            "s",
            steps=above(10, 60),
        ),
        graph(
            "Time to confirm",
            "99 of 100 messages are confirmed within this time.",
            (
                (within("0.5", "bridge_pulsar_send_seconds"), "half"),
                (within("0.99", "bridge_pulsar_send_seconds"), "99 %"),
            ),
            "s",
            steps=above(0.1, 0.25),
        ),
        graph(
            "Not stored",
            "Messages per minute that Pulsar did not confirm, by reason. They are sent again.",
            ((f"60 * sum by (reason) (rate(bridge_pulsar_not_stored_total[{RATE}]))", "{{reason}}"),),
            "opm",
        ),
        graph(
            "Swept",
            "Messages per minute that were published later, from the outbox.",
            ((f"60 * sum by (topic) (rate(bridge_outbox_swept_total[{RATE}]))", "{{topic}}"),),
            "opm",
        ),
        graph(
            "Ways",
            "Events per second by route, and whether they go by a topic or straight from the database.",
            ((f"sum by (route, via) (rate(bridge_route_decisions_total[{RATE}]))", "{{route}} by {{via}}"),),
            "ops",
            stacked=True,
        ),
    ),
)

DELIVERY = Row(
    "To n8n",
    (
        graph(
            "Attempts by outcome",
            "Per second. done: n8n took it; retry: comes again; dead: given up; rejected: not believed.",
            ((f"sum by (outcome) (rate({DELIVERIES}[{RATE}]))", "{{outcome}}"),),
            "ops",
            stacked=True,
            links=(to("logs", "Logs", "&var-service=bridge"),),
        ),
        graph(
            "From acceptance to delivery, 95 %",
            "95 of 100 events of a route reached n8n within this time.",
            ((within("0.95", "bridge_delivery_age_seconds", "", ", route"), "{{route}}"),),
            "s",
            steps=above(60, 300),
        ),
        graph(
            "n8n's time to answer, 95 %",
            "95 of 100 calls of a route were answered within this time.",
            ((within("0.95", "bridge_delivery_seconds", "", ", route"), "{{route}}"),),
            "s",
            links=(to("traces", "Traces"),),
        ),
        heat(
            "Age at delivery",
            "How many deliveries took how long since their acceptance.",
            f"sum by (le) (rate(bridge_delivery_age_seconds_bucket[{RATE}]))",
        ),
        graph(
            "Waiting and given up",
            "Deliveries in PostgreSQL that wait, and those that were given up.",
            (("max(bridge_retry_rows)", "wait"), ("max(bridge_dead_rows)", "given up")),
        ),
        graph(
            "Calls under way",
            "Calls of n8n that have no answer yet, by tenant and route.",
            ((f"sum by (tenant, route) (bridge_in_flight{{{TENANT}}})", "{{tenant}} {{route}}"),),
            stacked=True,
        ),
        table(
            "Routes",
            "Attempts of the chosen time by tenant and route, and whether calls are held back.",
            (
                (
                    "Done",
                    f'sum by (tenant, route) (increase({DELIVERIES}{{{TENANT},outcome="done"}}[$__range]))',
                    "short",
                ),
                (
                    "Again",
                    f'sum by (tenant, route) (increase({DELIVERIES}{{{TENANT},outcome="retry"}}[$__range]))',
                    "short",
                ),
                (
                    "Dead",
                    f'sum by (tenant, route) (increase({DELIVERIES}{{{TENANT},outcome="dead"}}[$__range]))',
                    "short",
                ),
                ("Held back", f"max by (tenant, route) (bridge_breaker_open{{{TENANT}}})", "short"),
            ),
            {"tenant": "Tenant", "route": "Route"},
            12,
        ),
        graph(
            "Not believed",
            "Messages per minute whose signature, tenant or event is wrong, by reason.",
            ((f"60 * sum by (reason) (rate(bridge_signature_failures_total[{RATE}]))", "{{reason}}"),),
            "opm",
            12,
        ),
    ),
)

PROCESS = Row(
    "Processes",
    (
        states("What answers", "Each process over time.", f"up{PROCESSES}", EACH),
        table(
            "Routes in use",
            "Time since each process read its routes, and changes it refused.",
            (
                ("Read", f"time() - bridge_routes_loaded_timestamp_seconds{PROCESSES}", "s"),
                ("Refused", f"bridge_routes_reload_failures_total{PROCESSES}", "short"),
            ),
            {"process": "Process", "instance": "Host"},
            12,
            8,
        ),
        graph(
            "Processor",
            "Share of one core that each process uses.",
            ((f"rate(process_cpu_seconds_total{PROCESSES}[{RATE}])", EACH),),
            "percentunit",
        ),
        graph("Memory", "Memory of each process.", ((f"process_resident_memory_bytes{PROCESSES}", EACH),), "bytes"),
        graph("Open files", "Files and connections of each process.", ((f"process_open_fds{PROCESSES}", EACH),)),
        log_lines(
            "What they say",
            "Warnings and errors of the bridge. Each line has the ids of event and execution.",
            '{service_name="bridge"} | detected_level=~`warn|error|fatal|critical`',
        ),
    ),
)

DASHBOARD = Dashboard(
    "bridge",
    "Bridge",
    "Events that the bridge takes, keeps, tells Pulsar of and delivers to n8n.",
    (STATE, PUBLISHING, OUTBOX, DELIVERY, PROCESS),
    (
        Variable("tenant", "Tenant", "label_values(bridge_publish_requests_total, tenant)"),
        Variable("process", "Process", 'label_values(up{job=~"bridge-(api|consumer)"}, process)'),
    ),
    SHARED,
)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs: what services say, an execution's lines, errors, access, audit; and whether lines arrive."""

from __future__ import annotations

from scripts.dashboards.model import Dashboard, Row, Text, Variable, above
from scripts.dashboards.panels import SHARED, graph, log_lines, number

STREAM = '{service_name=~"$service",host_name=~"$host"}'
FOUND = f"{STREAM} |~ `$search`"
ACCESS = '{service_name="traefik-access",host_name=~"$host"}'

LINES = Row(
    "Lines",
    (
        graph(
            "By service",
            "Lines a minute of each service.",
            ((f"sum by (service_name) (count_over_time({FOUND} [$__auto]))", "{{service_name}}"),),
            "short",
            12,
            stacked=True,
            logs=True,
        ),
        graph(
            "Warnings and errors",
            "Lines that report a warning or an error, by service.",
            (
                (
                    f"sum by (service_name, detected_level) (count_over_time({FOUND} | detected_level=~`warn|error|fatal|critical` [$__auto]))",
                    "{{service_name}} {{detected_level}}",
                ),
            ),
            "short",
            12,
            stacked=True,
            logs=True,
        ),
        log_lines(
            "Lines found",
            "What the chosen services said. Open a line for its fields: from execution_id and trace_id links lead to traces.",
            FOUND,
        ),
    ),
)

EXECUTION = Row(
    "One execution",
    (
        log_lines(
            "Lines of the execution",
            "Type the number of an execution above: what main, webhook process, worker and runner said of it, and its events.",
            '{service_name=~"n8n-.+"} | execution_id=`$execution`',
            24,
            9,
        ),
    ),
)

CLASSES = Row(
    "Errors, access, audit",
    (
        log_lines(
            "Errors",
            "Errors of all services.",
            '{service_name=~".+",host_name=~"$host"} | detected_level=~`error|fatal|critical` |~ `$search`',
            12,
            10,
        ),
        log_lines(
            "Answers with errors",
            "Requests that Traefik answered with 4xx or 5xx.",
            f"{ACCESS} | status=~`[45]..` |~ `$search`",
            12,
            10,
        ),
        graph(
            "Answers by code",
            "Requests in the access log, by status code.",
            ((f"sum by (status) (count_over_time({ACCESS} [$__auto]))", "{{status}}"),),
            "short",
            12,
            stacked=True,
            logs=True,
        ),
        log_lines(
            "Audit",
            "Who did what in n8n: sign-ins, changes of workflows, credentials and users.",
            '{service_name="n8n-audit",host_name=~"$host"} |~ `$search`',
            12,
            8,
        ),
        graph(
            "Audit by event",
            "Events of the audit.",
            (
                (
                    'sum by (event) (count_over_time({service_name="n8n-audit",host_name=~"$host"} [$__auto]))',
                    "{{event}}",
                ),
            ),
            "short",
            12,
            stacked=True,
            logs=True,
        ),
        graph(
            "Events of executions",
            "Started, succeeded and failed executions and nodes, from n8n's event log.",
            (
                (
                    'sum by (event) (count_over_time({service_name="n8n-events",host_name=~"$host"} [$__auto]))',
                    "{{event}}",
                ),
            ),
            "short",
            12,
            logs=True,
        ),
    ),
)

HEALTH = Row(
    "Do lines arrive?",
    (
        number(
            "Received",
            "Lines per second that Loki received.",
            "sum(rate(loki_distributor_lines_received_total[5m]))",
            "cps",
        ),
        number(
            "Refused",
            "Lines that Loki refused within the chosen time.",
            "sum(increase(loki_discarded_samples_total[$__range])) or vector(0)",
            steps=above(1, 1000),
        ),
        number(
            "Waiting",
            "Share of the fullest queue of a collector.",
            'max(otelcol_exporter_queue_size{exporter="otlp_http/logs"} / otelcol_exporter_queue_capacity{exporter="otlp_http/logs"})',
            "percentunit",
            above(0.3, 0.7),
        ),
        number(
            "Streams",
            "Streams that Loki holds in memory.",
            "sum(loki_ingester_memory_streams)",
            steps=above(1500, 2000),
        ),
        number("Collectors up", "Collectors that answer.", 'sum(up{job="otelcol"})'),
        number("Loki up", "Whether Loki answers.", 'min(up{job="loki"})'),
        graph(
            "On the way",
            "Lines per second that collectors took in and handed over.",
            (
                (
                    "sum by (instance) (rate(otelcol_receiver_accepted_log_records_total[$__rate_interval]))",
                    "in {{instance}}",
                ),
                (
                    "sum by (instance) (rate(otelcol_exporter_sent_log_records_total[$__rate_interval]))",
                    "out {{instance}}",
                ),
            ),
            "cps",
        ),
        graph(
            "Queues",
            "Bytes that wait for Loki on the disks of collectors.",
            (('otelcol_exporter_queue_size{exporter="otlp_http/logs"}', "{{instance}}"),),
            "bytes",
        ),
        graph(
            "Loki's requests",
            "Requests per second by route and answer.",
            (
                (
                    "sum by (route, status_code) (rate(loki_request_duration_seconds_count[$__rate_interval]))",
                    "{{route}} {{status_code}}",
                ),
            ),
            "reqps",
        ),
        graph(
            "Bytes by service",
            "Bytes of each service's lines.",
            ((f"sum by (service_name) (bytes_over_time({STREAM} [$__auto]))", "{{service_name}}"),),
            "bytes",
            12,
            stacked=True,
            logs=True,
        ),
        graph(
            "Refused",
            "Lines that Loki refused, per second, by reason.",
            (("sum by (reason) (rate(loki_discarded_samples_total[$__rate_interval]))", "{{reason}}"),),
            "cps",
            12,
        ),
    ),
)

DASHBOARD = Dashboard(
    "logs",
    "Logs",
    "What all services say, and whether it arrives.",
    (LINES, EXECUTION, CLASSES, HEALTH),
    (
        Variable("service", "Service", 'service_name|{service_name=~".+"}', "loki"),
        Variable("host", "Host", 'host_name|{service_name=~".+"}', "loki"),
        Text("search", "Search (regular expression)"),
        Text("execution", "Execution", "0"),
    ),
    SHARED,
    "now-1h",
)

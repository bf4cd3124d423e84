# SPDX-License-Identifier: GPL-3.0-or-later
"""Traces: rates, errors and times from spans; executions and nodes; searches; whether spans arrive."""

from __future__ import annotations

from scripts.dashboards.model import Dashboard, Row, Text, Variable, above, jaeger
from scripts.dashboards.panels import SHARED, graph, number, table, to, trace_list

CALLS = "traces_span_metrics_calls_total"
BUCKET = "traces_span_metrics_duration_milliseconds_bucket"
SUM = "traces_span_metrics_duration_milliseconds_sum"
COUNT = "traces_span_metrics_duration_milliseconds_count"
RATE = "$__rate_interval"
SERVICE = 'service_name=~"$service"'
EXECUTION = 'span_name="workflow.execute"'
NODE = 'span_name="node.execute",n8n_node_type=~"$node"'


def slowest(labels: str, by: str, share: str = "0.95") -> str:
    """Return the time within which a share of the spans ended."""
    return f"histogram_quantile({share}, sum by (le{by}) (rate({BUCKET}{{{labels}}}[{RATE}])))"


RED = Row(
    "Spans",
    (
        graph(
            "Rate",
            "Spans per second by service and name. A span of n8n is an execution or one node of it; one of Traefik a request.",
            (
                (
                    f"topk(15, sum by (service_name, span_name) (rate({CALLS}{{{SERVICE}}}[{RATE}])))",
                    "{{service_name}} {{span_name}}",
                ),
            ),
            "ops",
        ),
        graph(
            "Errors",
            "Share of spans with an error.",
            (
                (
                    f'(sum by (service_name, span_name) (rate({CALLS}{{{SERVICE},status_code="STATUS_CODE_ERROR"}}[{RATE}]))) / sum by (service_name, span_name) (rate({CALLS}{{{SERVICE}}}[{RATE}]))',
                    "{{service_name}} {{span_name}}",
                ),
            ),
            "percentunit",
            steps=above(0.01, 0.05),
        ),
        graph(
            "Time, 95 %",
            "95 of 100 spans ended within this time.",
            ((slowest(SERVICE, ", service_name, span_name"), "{{service_name}} {{span_name}}"),),
            "ms",
        ),
    ),
)

EXECUTIONS = Row(
    "Executions and nodes",
    (
        number(
            "Outside of nodes",
            "Mean time of an execution that is not spent in its nodes. The goal is below 150 ms; waits and sub-workflows count.",
            "n8n:platform_overhead:mean_seconds",
            "s",
            above(0.1, 0.15),
            6,
        ),
        number(
            "Nodes within 2 s",
            "Share of nodes that ended within two seconds; the goal is 95 %.",
            f'sum(increase({BUCKET}{{span_name="node.execute",le="2000"}}[$__range])) / sum(increase({COUNT}{{span_name="node.execute"}}[$__range]))',
            "percentunit",
            width=6,
        ),
        number(
            "Executions",
            "Executions with a trace within the chosen time.",
            f"sum(increase({CALLS}{{{EXECUTION}}}[$__range]))",
            width=6,
        ),
        number(
            "Nodes",
            "Nodes that ran within the chosen time.",
            f'sum(increase({CALLS}{{span_name="node.execute"}}[$__range]))',
            width=6,
        ),
        graph(
            "Executions",
            "Half of all executions, and 95 of 100, ended within this time (in workers, without waiting for one).",
            ((slowest(EXECUTION, "", "0.5"), "half"), (slowest(EXECUTION, ""), "95 %")),
            "ms",
        ),
        graph(
            "Outside of nodes",
            "Mean time of an execution that is not spent in its nodes.",
            (("n8n:platform_overhead:mean_seconds", "mean"),),
            "s",
            steps=above(0.1, 0.15),
        ),
        graph(
            "Nodes by type, 95 %",
            "95 of 100 nodes of a type ended within this time.",
            ((f"topk(10, {slowest(NODE, ', n8n_node_type')})", "{{n8n_node_type}}"),),
            "ms",
            steps=above(1000, 2000),
        ),
        table(
            "Types of nodes",
            "How often nodes ran within the chosen time, how many failed, and how long they took.",
            (
                ("Ran", f"sum by (n8n_node_type) (increase({CALLS}{{{NODE}}}[$__range])) > 0", "short"),
                (
                    "Failed",
                    f'sum by (n8n_node_type) (increase({CALLS}{{{NODE},status_code="STATUS_CODE_ERROR"}}[$__range])) > 0',
                    "short",
                ),
                (
                    "Mean",
                    f"sum by (n8n_node_type) (increase({SUM}{{{NODE}}}[$__range])) / (sum by (n8n_node_type) (increase({COUNT}{{{NODE}}}[$__range])) > 0)",
                    "ms",
                ),
                ("All time", f"sum by (n8n_node_type) (increase({SUM}{{{NODE}}}[$__range])) > 0", "ms"),
            ),
            {"n8n_node_type": "Type"},
        ),
    ),
)

SEARCH = Row(
    "Find a trace",
    (
        trace_list(
            "The execution's trace",
            "Type the number of an execution above.",
            jaeger("n8n", "n8n.execution.id=$execution", 5),
        ),
        trace_list(
            "Traces of the workflow",
            "Type the name of a workflow above.",
            jaeger("n8n", 'n8n.workflow.name="$workflow"'),
        ),
        trace_list("With an error", "Newest traces in which something failed.", jaeger("n8n", "error=true")),
        trace_list("Slow", "Newest traces with a span of five seconds or more.", jaeger("n8n", minimum="5s")),
    ),
)

HEALTH = Row(
    "Do spans arrive?",
    (
        graph(
            "On the way",
            "Spans per second that collectors took in and handed over.",
            (
                (f"sum by (instance) (rate(otelcol_receiver_accepted_spans_total[{RATE}]))", "in {{instance}}"),
                (f"sum by (instance) (rate(otelcol_exporter_sent_spans_total[{RATE}]))", "out {{instance}}"),
            ),
            "cps",
            links=(to("host", "Host", "&var-instance=${__field.labels.instance}"),),
        ),
        graph(
            "Lost and refused",
            "Spans per second that could not be handed over, and that were not taken in.",
            (
                (f"sum by (instance) (rate(otelcol_exporter_send_failed_spans_total[{RATE}]))", "failed {{instance}}"),
                (
                    f"sum by (instance) (rate(otelcol_exporter_enqueue_failed_spans_total[{RATE}]))",
                    "queue full {{instance}}",
                ),
                (f"sum by (instance) (rate(otelcol_receiver_refused_spans_total[{RATE}]))", "refused {{instance}}"),
            ),
            "cps",
        ),
        graph(
            "Queues",
            "Bytes that wait for the trace store on the disks of collectors.",
            (('otelcol_exporter_queue_size{exporter="otlp_http/traces"}', "{{instance}}"),),
            "bytes",
        ),
        graph(
            "Who calls whom",
            "Calls per second between services.",
            (
                (
                    f"sum by (client, server) (rate(traces_service_graph_request_total[{RATE}]))",
                    "{{client}} to {{server}}",
                ),
            ),
            "ops",
            12,
        ),
        graph(
            "Memory",
            "Memory of collectors and of Jaeger.",
            (("otelcol_process_memory_rss_bytes", "{{job}} {{instance}}"),),
            "bytes",
            12,
        ),
    ),
)

DASHBOARD = Dashboard(
    "traces",
    "Traces",
    "Where the time of requests and executions goes.",
    (RED, EXECUTIONS, SEARCH, HEALTH),
    (
        Variable("service", "Service", f"label_values({CALLS}, service_name)"),
        Variable("node", "Type of node", f"label_values({CALLS}, n8n_node_type)"),
        Text("execution", "Execution", "0"),
        Text("workflow", "Workflow"),
    ),
    SHARED,
    "now-1h",
)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Executions: how many, how well, how long, by workflow; what should have run and did not; triggers; lost ones."""

from __future__ import annotations

from scripts.dashboards.model import Dashboard, Row, Variable, above
from scripts.dashboards.panels import SHARED, graph, heat, number, table, to

# Names of workflows come from n8n's list; the choice is made by name.
CHOSEN = 'max by (workflow_id, workflow_name) (n8n_workflow_info{workflow_name=~"$workflow"})'
NAME = f"on (workflow_id) group_left (workflow_name) {CHOSEN}"
WHERE = 'mode=~"$mode"'
COUNT = f"n8n_workflow_execution_duration_seconds_count{{{WHERE}"
BUCKET = f"n8n_workflow_execution_duration_seconds_bucket{{{WHERE}}}"
SUM = f"n8n_workflow_execution_duration_seconds_sum{{{WHERE}}}"


def by_workflow(metric: str, window: str) -> str:
    """Return how much a counter grew for each chosen workflow."""
    return f"sum by (workflow_id) (increase({metric}[{window}])) * {NAME}"


LINKS = {
    "Workflow": (
        to("executions", "Only this workflow", "&var-workflow=${__value.text}"),
        to("logs", "Its log lines", "&var-search=${__data.fields.workflow_id}"),
        to("traces", "Its traces", "&var-workflow=${__value.text}"),
    )
}

OVERVIEW = Row(
    "All chosen workflows",
    (
        number(
            "Ended",
            "Executions that ended within the chosen time.",
            f"sum({by_workflow(COUNT + '}', '$__range')}) or vector(0)",
        ),
        number(
            "Failed",
            "Executions that failed within the chosen time.",
            "sum(" + by_workflow(COUNT + ',status="failed"}', "$__range") + ") or vector(0)",
            steps=above(1, 50),
        ),
        number(
            "Failed, share",
            "Share of executions that failed within the chosen time.",
            "(sum(" + by_workflow(COUNT + ',status="failed"}', "$__range") + ") or vector(0)) / "
            "(sum(" + by_workflow(COUNT + "}", "$__range") + ") > 0) or vector(0)",
            "percentunit",
            above(0.01, 0.05),
        ),
        number(
            "Duration, 95 %",
            "95 of 100 executions of the chosen kinds ended within this time.",
            f"histogram_quantile(0.95, sum by (le) (increase({BUCKET}[$__range])))",
            "s",
        ),
        number("Active workflows", "Workflows that start by themselves.", "max(n8n_active_workflow_count)"),
        number(
            "Overdue waits",
            "Executions in a Wait node that should have gone on more than 5 minutes ago.",
            "max(n8n_guard_overdue_waits)",
            steps=above(1, 10),
        ),
        graph(
            "By status",
            "Executions that ended, per second.",
            ((f"sum by (status) (rate({COUNT}}}[$__rate_interval]))", "{{status}}"),),
            "ops",
            stacked=True,
            links=(to("logs", "Logs"), to("traces", "Traces")),
        ),
        graph(
            "By kind of start",
            "Executions that ended, per second: webhook, trigger (schedules and polling), manual, integrated (called by another workflow).",
            ((f"sum by (mode) (rate({COUNT}}}[$__rate_interval]))", "{{mode}}"),),
            "ops",
            stacked=True,
        ),
        graph(
            "Duration",
            "Half of all executions, 95 and 99 of 100 ended within this time.",
            (
                (f"histogram_quantile(0.5, sum by (le) (rate({BUCKET}[$__rate_interval])))", "half"),
                (f"histogram_quantile(0.95, sum by (le) (rate({BUCKET}[$__rate_interval])))", "95 %"),
                (f"histogram_quantile(0.99, sum by (le) (rate({BUCKET}[$__rate_interval])))", "99 %"),
            ),
            "s",
        ),
    ),
)

EACH = Row(
    "By workflow",
    (
        table(
            "Workflows",
            "What ended within the chosen time. Click a name for its log lines and traces.",
            (
                ("Ended", by_workflow(COUNT + "}", "$__range"), "short"),
                ("Failed", by_workflow(COUNT + ',status="failed"}', "$__range") + " > 0", "short"),
                (
                    "Mean duration",
                    f"({by_workflow(SUM, '$__range')}) / ({by_workflow(COUNT + '}', '$__range')} > 0)",
                    "s",
                ),
                ("All time spent", by_workflow(SUM, "$__range"), "s"),
            ),
            {"workflow_name": "Workflow", "workflow_id": "Id"},
            links=LINKS,
            height=11,
        ),
        table(
            "Expected to run but did not",
            "Active workflows of which no execution ended well within the chosen time: not started, failing, or still running. "
            "Alerts for single workflows: prometheus_workflow_expectations.",
            (
                (
                    "Active",
                    'max by (workflow_id, workflow_name) (n8n_active_workflow_info{workflow_name=~"$workflow"}) unless on (workflow_id) '
                    '(sum by (workflow_id) (increase(n8n_workflow_execution_duration_seconds_count{status="success",mode!="manual"}[$__range])) > 0)',
                    "short",
                ),
            ),
            {"workflow_name": "Workflow", "workflow_id": "Id"},
            12,
            links=LINKS,
        ),
        graph(
            "Most failures",
            "The ten workflows that fail most, failures per minute.",
            (
                (
                    "topk(10, 60 * sum by (workflow_id) (rate("
                    + COUNT
                    + ',status="failed"}[$__rate_interval])) * '
                    + NAME
                    + ")",
                    "{{workflow_name}}",
                ),
            ),
            "opm",
            12,
        ),
        graph(
            "Most time",
            "The ten workflows that take most of the workers' time: how many of their executions run at a time, on average.",
            (
                (
                    "topk(10, sum by (workflow_id) (rate(" + SUM + "[$__rate_interval])) * " + NAME + ")",
                    "{{workflow_name}}",
                ),
            ),
            "short",
            12,
        ),
        heat(
            "Durations",
            "How many executions took how long.",
            f"sum by (le) (rate({BUCKET}[$__rate_interval]))",
            width=12,
        ),
    ),
)

TRIGGERS = Row(
    "Schedules and polling",
    (
        graph(
            "Starts by triggers",
            "Executions that schedules and polling started, per minute, and starts that were due and skipped (counted only by n8n's "
            "durable scheduler).",
            (
                (
                    '60 * sum(rate(n8n_workflow_execution_duration_seconds_count{mode="trigger"}[$__rate_interval]))',
                    "started",
                ),
                ("60 * sum(rate(n8n_scheduler_occurrences_missed_total[$__rate_interval]))", "skipped"),
            ),
            "opm",
        ),
        graph(
            "Oldest start that is due",
            "For how long the oldest scheduled start has been waiting.",
            (("max(n8n_scheduler_oldest_pending_age_seconds)", "waits for"),),
            "s",
            steps=above(60, 120),
        ),
        graph(
            "Polling that fails",
            "Polling triggers that could not ask their service, per minute, by type of node and kind of error.",
            (
                (
                    "60 * sum by (node_type, kind) (rate(n8n_poll_trigger_errors_total[$__rate_interval]))",
                    "{{node_type}} {{kind}}",
                ),
            ),
            "opm",
        ),
    ),
)

LOST = Row(
    "Lost and stuck",
    (
        graph(
            "Lost executions",
            "Accepted executions that did not come to an end: waiting for a decision, without a payload, being run again.",
            (
                ("max(n8n_guard_lost_executions)", "lost"),
                ("max(n8n_guard_lost_without_payload)", "without payload"),
                ("max(n8n_guard_lost_rerunning)", "being run again"),
            ),
        ),
        graph(
            "Stuck executions",
            "Executions under way without a job; the guard settles them within a minute or two.",
            (("max(n8n_guard_stuck_executions)", "stuck"), ("max(n8n_guard_overdue_waits)", "overdue waits")),
        ),
        graph(
            "Kept payloads",
            "Disk space of the payloads that are kept so that a lost execution can be run again.",
            (("max(n8n_guard_payload_copy_bytes)", "bytes"),),
            "bytes",
        ),
    ),
)

DASHBOARD = Dashboard(
    "executions",
    "Executions",
    "Executions of n8n by status, duration and workflow, and workflows that should have run but did not.",
    (OVERVIEW, EACH, TRIGGERS, LOST),
    (
        Variable("workflow", "Workflow", "label_values(n8n_workflow_info, workflow_name)"),
        Variable("mode", "Kind of start", "label_values(n8n_workflow_execution_duration_seconds_count, mode)"),
    ),
    SHARED,
)

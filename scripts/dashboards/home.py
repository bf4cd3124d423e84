# SPDX-License-Identifier: GPL-3.0-or-later
"""The first page: do the automations run, does anybody notice, what is left of the budgets, what changed."""

from __future__ import annotations

from scripts.dashboards.model import Dashboard, Row, above, below
from scripts.dashboards.panels import SHARED, bars, graph, number, states, table, to, words

# Executions that nobody watches: not those started by hand, not parts of others.
PRODUCTION = 'mode!~"manual|integrated|error|evaluation"'
COUNT = "n8n_workflow_execution_duration_seconds_count"
BUCKET = "n8n_workflow_execution_duration_seconds_bucket"
REQUESTS = 'traefik_router_requests_total{router=~"(hooks|api|editor|login|public)@file",protocol="http"'
TIMES = "traefik_router_request_duration_seconds_bucket"
EDITOR = 'router=~"(api|editor|login|public)@file",protocol="http"'
HOOKS = 'router="hooks@file",protocol="http"'

RUNBOOKS = {
    "title": "Runbooks",
    "url": "https://github.com/dealscale/n8n_platform/blob/main/docs/runbooks/README.md",
    "targetBlank": True,
}

RUN = Row(
    "Do the automations run?",
    (
        number(
            "Executions",
            "Executions in production that ended, per minute, over the last ten minutes.",
            f"60 * sum(rate({COUNT}{{{PRODUCTION}}}[10m])) or vector(0)",
            width=3,
            links=(to("executions", "Executions"),),
        ),
        number(
            "Failed",
            "Share of executions in production that failed within the last hour.",
            f'(sum(increase({COUNT}{{{PRODUCTION},status="failed"}}[1h])) or vector(0)) '
            f"/ (sum(increase({COUNT}{{{PRODUCTION}}}[1h])) > 0) or vector(0)",
            "percentunit",
            above(0.01, 0.05),
            3,
            links=(to("executions", "Executions"),),
        ),
        number(
            "Jobs waiting",
            "Jobs that no worker has taken yet.",
            "max(n8n_scaling_mode_queue_jobs_waiting)",
            steps=above(50, 500),
            width=3,
            links=(to("workers-queue", "Workers and queue"),),
        ),
        number(
            "Lost executions",
            "Accepted executions that did not come to an end and wait for a decision. See the runbook lost-executions.",
            "max(n8n_guard_lost_executions)",
            steps=above(1, 1),
            width=3,
            links=(to("executions", "Executions"),),
        ),
        number(
            "Pages",
            "Alerts that fire and want somebody to act now.",
            'count(ALERTS{alertstate="firing",severity="page"}) or vector(0)',
            steps=above(1, 1),
            width=3,
        ),
        number(
            "Tickets",
            "Alerts that fire and want somebody to act within days.",
            'count(ALERTS{alertstate="firing",severity="ticket"}) or vector(0)',
            steps=above(1, 10),
            width=3,
        ),
        number(
            "Backup",
            "Age of the newest complete backup, of the kind that is oldest.",
            "max(time() - n8n_backup_last_success_timestamp_seconds)",
            "s",
            above(93600, 180000),
            3,
            links=(to("backups", "Backups"),),
        ),
        number(
            "Verified",
            "Time since a backup last passed a check.",
            "max(time() - n8n_backup_last_verified_timestamp_seconds)",
            "s",
            above(180000, 360000),
            3,
            links=(to("backups", "Backups"),),
        ),
        graph(
            "Executions by status",
            "Executions in production that ended, per second. Failed ones are those of workflows; lost ones are not among them.",
            ((f"sum by (status) (rate({COUNT}{{{PRODUCTION}}}[$__rate_interval]))", "{{status}}"),),
            "ops",
            stacked=True,
            links=(to("executions", "Executions"),),
        ),
        graph(
            "Duration of executions",
            "Half of all executions, and 95 of 100, ended within this time.",
            (
                (f"histogram_quantile(0.5, sum by (le) (rate({BUCKET}{{{PRODUCTION}}}[$__rate_interval])))", "half"),
                (f"histogram_quantile(0.95, sum by (le) (rate({BUCKET}{{{PRODUCTION}}}[$__rate_interval])))", "95 %"),
            ),
            "s",
        ),
        graph(
            "Queue",
            "Jobs that wait and jobs that are worked on.",
            (
                ("max(n8n_scaling_mode_queue_jobs_waiting)", "waiting"),
                ("max(n8n_scaling_mode_queue_jobs_active)", "active"),
            ),
            links=(to("workers-queue", "Workers and queue"),),
        ),
    ),
)

VISITORS = Row(
    "What visitors and senders see",
    (
        graph(
            "Requests",
            "Requests to n8n through Traefik by kind, per second.",
            ((f"sum by (router) (rate({REQUESTS}}}[$__rate_interval]))", "{{router}}"),),
            "reqps",
            stacked=True,
            links=(to("traefik", "Traefik"),),
        ),
        graph(
            "Errors",
            "Share of requests that end with a server error. The goal allows 0.05 %.",
            (
                (
                    f'(sum by (router) (rate({REQUESTS},code=~"5.."}}[$__rate_interval])) or 0 * sum by (router) (rate({REQUESTS}}}[$__rate_interval])))'
                    f" / (sum by (router) (rate({REQUESTS}}}[$__rate_interval])) > 0)",
                    "{{router}}",
                ),
            ),
            "percentunit",
            steps=above(0.0005, 0.0072),
            links=(to("traefik", "Traefik"), to("logs", "Logs")),
        ),
        graph(
            "Time to answer, 95 %",
            "95 of 100 requests are answered within this time. Goals: webhooks 500 ms, editor and API 200 ms.",
            (
                (f"histogram_quantile(0.95, sum by (le) (rate({TIMES}{{{HOOKS}}}[$__rate_interval])))", "webhooks"),
                (
                    f"histogram_quantile(0.95, sum by (le) (rate({TIMES}{{{EDITOR}}}[$__rate_interval])))",
                    "editor and API",
                ),
            ),
            "s",
            steps=above(0.2, 0.5),
            links=(to("traefik", "Traefik"), to("traces", "Traces")),
        ),
    ),
)

GOALS = Row(
    "Goals",
    (
        bars(
            "What is left of the budgets",
            "Share of the errors allowed within 30 days that has not been used. Below 0 the goal is missed.",
            "clamp_min(slo:error_budget:remaining, 0)",
            "{{slo}}",
            "percentunit",
            below(0.1, 0.4),
            8,
            1,
        ),
        graph(
            "How fast budgets burn",
            "Errors of the last hour as a multiple of what the goal allows. 14.4 for an hour pages, 1 for days is a ticket.",
            (("slo:sli_error:ratio_rate1h / on (slo) (1 - slo:objective:ratio)", "{{slo}}"),),
            steps=above(1, 14.4),
        ),
        table(
            "Goals in numbers",
            "Each goal, the share of errors within windows of different length, and what is left of its budget.",
            (
                ("Goal", "slo:objective:ratio", "percentunit"),
                ("1 hour", "slo:sli_error:ratio_rate1h", "percentunit"),
                ("1 day", "slo:sli_error:ratio_rate1d", "percentunit"),
                ("30 days", "slo:sli_error:ratio_rate30d", "percentunit"),
                ("Budget left", "slo:error_budget:remaining", "percentunit"),
            ),
            {"slo": "What"},
            8,
            8,
        ),
    ),
)

STATE = Row(
    "What is wrong, what changed",
    (
        table(
            "Alerts that fire",
            "Runbooks: docs/runbooks, one section for each name. Silence with n8n-platform-silence.",
            (("Firing", 'ALERTS{alertstate="firing",severity=~"page|ticket"}', "short"),),
            {
                "severity": "Severity",
                "service": "Service",
                "alertname": "Alert",
                "instance": "Host",
                "process": "Process",
            },
            12,
            links={"Alert": (RUNBOOKS,), "Host": (to("host", "Host", "&var-instance=${__value.text}"),)},
        ),
        states("What answers", "Every target of Prometheus over time, by job.", "min by (job) (up)", "{{job}}", 12, 9),
        words(
            "n8n",
            "Versions of n8n that run; more than one is a half-way update.",
            "count by (version) (n8n_version_info)",
            "{{version}}",
            6,
        ),
        words(
            "Programs",
            "Releases of the programs on the hosts, from the last deployment.",
            "count by (program, version) (n8n_platform_info)",
            "{{program}} {{version}}",
            12,
        ),
        number(
            "Last deployment",
            "Time since versions changed on any host.",
            "min(time() - n8n_platform_deploy_timestamp_seconds)",
            "s",
            width=6,
        ),
    ),
)

DASHBOARD = Dashboard(
    "home",
    "Home",
    "Whether automations do their work, what users see, which goals are in danger, and what changed.",
    (RUN, VISITORS, GOALS, STATE),
    annotations=SHARED,
)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The queue and the processes of n8n: what waits, who works, memory, event loops, connections, runners."""

from __future__ import annotations

from scripts.dashboards.model import Dashboard, Row, Variable, above, below
from scripts.dashboards.panels import SHARED, graph, number, states, table, to

WHERE = '{instance=~"$instance",process=~"$process"}'
EACH = "{{process}} {{instance}}"

QUEUE = Row(
    "Queue",
    (
        number(
            "Waiting",
            "Jobs that no worker has taken yet.",
            "max(n8n_scaling_mode_queue_jobs_waiting)",
            steps=above(50, 500),
        ),
        number("Active", "Jobs that workers work on.", "max(n8n_scaling_mode_queue_jobs_active)"),
        number(
            "A new job waits",
            "About how long, at the speed of the last ten minutes.",
            "max(n8n_scaling_mode_queue_jobs_waiting) / clamp_min(max(rate(n8n_scaling_mode_queue_jobs_completed[10m])), 0.001)",
            "s",
            above(60, 300),
        ),
        number("Workers up", "Workers that answer.", 'sum(up{job="n8n-worker"})', steps=below(1, 2)),
        number(
            "Workers down",
            "Workers that should be there and do not answer.",
            'count(up{job="n8n-worker"} == 0) or vector(0)',
            steps=above(1, 2),
        ),
        number(
            "Silent jobs",
            "Jobs whose worker no longer renews its lock.",
            "max(n8n_guard_silent_jobs)",
            steps=above(1, 5),
        ),
        graph(
            "Jobs",
            "Jobs that wait and that are worked on.",
            (
                ("max(n8n_scaling_mode_queue_jobs_waiting)", "waiting"),
                ("max(n8n_scaling_mode_queue_jobs_active)", "active"),
            ),
        ),
        graph(
            "In and out",
            "Jobs put into the queue, taken by workers, and done, per second.",
            (
                ("sum(rate(n8n_queue_job_enqueued_total[$__rate_interval]))", "put in"),
                ("sum(rate(n8n_queue_job_dequeued_total[$__rate_interval]))", "taken"),
                ("max(rate(n8n_scaling_mode_queue_jobs_completed[$__rate_interval]))", "done"),
            ),
            "ops",
        ),
        graph(
            "Trouble",
            "Jobs that failed (not errors of workflows) or stalled, per minute.",
            (
                ("60 * max(rate(n8n_scaling_mode_queue_jobs_failed[$__rate_interval]))", "failed"),
                ("60 * sum(rate(n8n_queue_job_stalled_total[$__rate_interval]))", "stalled"),
            ),
            "opm",
            links=(to("logs", "Logs"),),
        ),
        graph(
            "Taken by each worker",
            "Jobs per second. A worker that takes none while others do has lost the queue.",
            ((f"sum by (instance, process) (rate(n8n_queue_job_dequeued_total{WHERE}[$__rate_interval]))", EACH),),
            "ops",
            stacked=True,
        ),
        graph(
            "Nodes",
            "Nodes that workers started and finished, per second.",
            (
                (f"sum(rate(n8n_node_started_total{WHERE}[$__rate_interval]))", "started"),
                (f"sum(rate(n8n_node_finished_total{WHERE}[$__rate_interval]))", "finished"),
            ),
            "ops",
        ),
        graph(
            "Runners",
            "Code that workers gave to their task runners, and answers, per second.",
            (
                (f"sum(rate(n8n_runner_task_requested_total{WHERE}[$__rate_interval]))", "given"),
                (f"sum(rate(n8n_runner_response_received_total{WHERE}[$__rate_interval]))", "answered"),
            ),
            "ops",
        ),
    ),
)

PROCESSES = Row(
    "Processes of n8n",
    (
        states(
            "What answers",
            "Each process over time.",
            'up{job=~"n8n-(main|webhook|worker)",instance=~"$instance",process=~"$process"}',
            EACH,
            12,
            10,
        ),
        table(
            "Processes",
            "Version, time since the start, memory and open connections of each process.",
            (
                ("Runs for", f"time() - max by (instance, process) (n8n_process_start_time_seconds{WHERE})", "s"),
                ("Memory", f"max by (instance, process) (n8n_process_resident_memory_bytes{WHERE})", "bytes"),
                ("Connections", f"max by (instance, process) (n8n_db_pool_connections_active{WHERE})", "short"),
                ("Requests waiting", f"max by (instance, process) (n8n_db_pool_requests_pending{WHERE})", "short"),
            ),
            {"process": "Process", "instance": "Host"},
            12,
            10,
        ),
        graph(
            "Processor",
            "Share of one core that each process uses.",
            ((f"rate(n8n_process_cpu_seconds_total{WHERE}[$__rate_interval])", EACH),),
            "percentunit",
        ),
        graph(
            "Memory",
            "Memory of each process without its runner. systemd ends it at its unit's limit.",
            ((f"n8n_process_resident_memory_bytes{WHERE}", EACH),),
            "bytes",
            links=(to("host", "Host", "&var-instance=${__field.labels.instance}"),),
        ),
        graph(
            "Event loop, 99 %",
            "How late the event loop is. While it is late, everything in that process waits.",
            ((f"n8n_nodejs_eventloop_lag_p99_seconds{WHERE}", EACH),),
            "s",
            steps=above(0.1, 0.5),
        ),
        graph(
            "Heap",
            "JavaScript's memory in use.",
            ((f"n8n_nodejs_heap_size_used_bytes{WHERE}", EACH),),
            "bytes",
        ),
        graph(
            "Garbage collection",
            "Share of the time in which a process only cleans up its memory.",
            (
                (
                    f"sum by (instance, process) (rate(n8n_nodejs_gc_duration_seconds_sum{WHERE}[$__rate_interval]))",
                    EACH,
                ),
            ),
            "percentunit",
            steps=above(0.1, 0.3),
        ),
        graph(
            "Database connections",
            "Connections in use by each process, and requests that wait for one.",
            (
                (f"n8n_db_pool_connections_active{WHERE}", f"in use {EACH}"),
                (f"n8n_db_pool_requests_pending{WHERE} > 0", f"waiting {EACH}"),
            ),
            links=(to("postgres", "PostgreSQL"),),
        ),
        graph(
            "Restarts",
            "Starts of each process within an hour, and restarts by the watchdog.",
            (
                (f"changes(n8n_process_start_time_seconds{WHERE}[1h])", f"start {EACH}"),
                (
                    'increase(n8n_watchdog_restarts_total{instance=~"$instance"}[1h]) > 0',
                    "watchdog {{unit}} {{instance}}",
                ),
            ),
        ),
        graph(
            "Not ready",
            "For how long a running process has not been ready.",
            (
                (
                    'max by (instance, unit) (n8n_watchdog_not_ready_seconds{instance=~"$instance"})',
                    "{{unit}} {{instance}}",
                ),
            ),
            "s",
            steps=above(15, 60),
        ),
    ),
)

DASHBOARD = Dashboard(
    "workers-queue",
    "Workers and queue",
    "The queue between n8n's processes, and the processes themselves.",
    (QUEUE, PROCESSES),
    (
        Variable("instance", "Host", 'label_values(up{job=~"n8n-.*"}, instance)'),
        Variable("process", "Process", 'label_values(up{job=~"n8n-.*",instance=~"$instance"}, process)'),
    ),
    SHARED,
)

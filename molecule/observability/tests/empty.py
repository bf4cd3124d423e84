"""What may be empty on a healthy platform of a few minutes, with the reason."""

DRILL = "no restore drill was made"
EVENT = "exposed from the first occurrence on, and there was none"

EMPTY_PANELS: dict[tuple[str, str], str] = {
    ("backups", "Drill"): DRILL,
    ("backups", "A restore takes"): DRILL,
    ("backups", "A restore loses"): DRILL,
    ("executions", "Polling that fails"): "no workflow polls",
    ("host", "Restarts of units"): "nothing was restarted",
    ("traefik", "Server errors"): "the entrance had none",
    ("traefik", "Long-lived"): "nobody has the editor open",
    ("traefik", "Limits"): "nobody reached one",
}
MISSING_METRICS: dict[str, str] = {
    "loki_discarded_samples_total": EVENT,
    "n8n_audit_user_login_failed_total": EVENT,
    "n8n_backup_drill_rpo_seconds": DRILL,
    "n8n_backup_drill_rto_seconds": DRILL,
    "n8n_backup_drill_success_timestamp_seconds": DRILL,
    "n8n_poll_trigger_errors_total": EVENT,
    "n8n_queue_job_stalled_total": EVENT,
    "otelcol_exporter_enqueue_failed_log_records_total": EVENT,
    "otelcol_exporter_enqueue_failed_spans_total": EVENT,
    "otelcol_exporter_send_failed_log_records_total": EVENT,
    "otelcol_exporter_send_failed_spans_total": EVENT,
}

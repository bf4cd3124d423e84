# SPDX-License-Identifier: GPL-3.0-or-later
"""Check variables meant for n8n against those the pinned release really reads."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# Names that Node.js, libc, OpenTelemetry's SDK or a proxy library read, not n8n itself.
FOREIGN = re.compile(r"(NODE_|OTEL_|MALLOC_|UV_|LC_|TZ$|LANG$|(HTTP|HTTPS|NO|ALL)_PROXY$)")

# Names of old releases and of widespread recipes: n8n ignores them in silence, so each names what works today.
RENAMED = {
    "EXECUTIONS_DATA_PRUNE_MAX_AGE": "EXECUTIONS_DATA_MAX_AGE (role variable n8n_prune_max_age_hours)",
    "EXECUTIONS_CONCURRENCY": "the variable platform_n8n_concurrency",
    "N8N_BASIC_AUTH_ACTIVE": "the role variable traefik_editor_auth (n8n dropped basic auth in 1.0)",
    "N8N_BASIC_AUTH_PASSWORD": "the secret traefik_editor_password",
    "N8N_BASIC_AUTH_USER": "the role variable traefik_editor_user",
    "N8N_BINARY_DATA_MODE": "N8N_DEFAULT_BINARY_DATA_MODE",
    "N8N_BINARY_DATA_STORAGE_PATH": "N8N_STORAGE_PATH",
    "N8N_DB_MAX_CONNECTIONS": "the variable platform_n8n_pool",
    "N8N_DB_PING_TIMEOUT": "DB_PING_TIMEOUT_MS",
    "N8N_EXPORT_FOLDER": "the role variable n8n_export_dir",
    "N8N_METRICS_PORT": "nothing: metrics are served on the ports of platform_ports",
    "N8N_TRUST_PROXY": "N8N_PROXY_HOPS",
    "QUEUE_BULL_REDIS_ENABLED": "nothing: queue mode always uses Redis",
    "QUEUE_WORKER_MAX_STALLED_COUNT": "nothing: n8n fixes it at 0",
    "QUEUE_WORKER_TIMEOUT": "N8N_GRACEFUL_SHUTDOWN_TIMEOUT (role variable n8n_drain_seconds)",
    "WEBHOOK_URL": "N8N_WEBHOOK_URL (set from platform_domain)",
}


def n8n_environment_errors(
    variables: Mapping[str, Any], known: str | Iterable[str], managed: Mapping[str, str] | None = None
) -> list[str]:
    """Return one sentence for each variable that n8n would ignore or that another variable already sets.

    ``known`` is the list of names (or a text with one a line) that the release reads, ``_FILE`` forms included.
    ``managed`` maps names the role owns to the variable that sets them.

    Example: ``{{ n8n_environment | dealscale.n8n_platform.n8n_environment_errors(names, _n8n_managed) }}``
    """
    names = set(known.split() if isinstance(known, str) else known)
    errors = []
    for name in sorted(variables):
        plain = name.removesuffix("_FILE")
        if managed and plain in managed:
            errors.append(f"{name} is set by the platform; use {managed[plain]} instead.")
        elif name in RENAMED and name not in names:
            errors.append(f"{name} is not read by this n8n; use {RENAMED[name]}.")
        elif name not in names and not FOREIGN.match(name):
            similar = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
            hint = f"; did you mean {similar[0]}?" if similar else "."
            errors.append(f"{name} is not a variable of this n8n{hint}")
        elif isinstance(variables[name], Mapping | list):
            errors.append(f"{name} must be a text or a number; give lists and maps as JSON text.")
    return errors


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"n8n_environment_errors": n8n_environment_errors}

# SPDX-License-Identifier: GPL-3.0-or-later
"""The edge: requests, errors, times, servers, limits, certificates, probes."""

from __future__ import annotations

from scripts.dashboards.model import Dashboard, Row, Variable, above, below
from scripts.dashboards.panels import SHARED, graph, heat, number, states, table, to

WHERE = 'instance=~"$instance",router=~"$router",protocol="http"'
REQUESTS = f"traefik_router_requests_total{{{WHERE}"
BUCKET = f"traefik_router_request_duration_seconds_bucket{{{WHERE}}}"
RATE = "$__rate_interval"

STATE = Row(
    "State",
    (
        number("Requests", "Requests per second.", f"sum(rate({REQUESTS}}}[5m]))", "reqps"),
        number(
            "Errors",
            "Share of requests within the last hour that ended with a server error.",
            f'(sum(increase({REQUESTS},code=~"5.."}}[1h])) or vector(0)) / sum(increase({REQUESTS}}}[1h]))',
            "percentunit",
            above(0.0005, 0.01),
        ),
        number(
            "Time, 95 %",
            "95 of 100 requests are answered within this time.",
            f"histogram_quantile(0.95, sum by (le) (rate({BUCKET}[10m])))",
            "s",
            above(0.2, 0.5),
        ),
        number(
            "Servers down",
            "Processes of n8n that do not pass Traefik's health check.",
            'count(traefik_service_server_up{instance=~"$instance"} == 0) or vector(0)',
            steps=above(1, 2),
        ),
        number(
            "Turned away",
            "Requests within the last hour that were over a rate limit (429).",
            f'sum(increase({REQUESTS},code="429"}}[1h])) or vector(0)',
            steps=above(50, 1000),
        ),
        number(
            "Certificate",
            "Time left of the certificate that ends first.",
            'min(traefik_tls_certs_not_after{instance=~"$instance"}) - time()',
            "s",
            below(172800, 1209600),
        ),
    ),
)

REQUEST = Row(
    "Requests",
    (
        graph(
            "By kind",
            "Requests per second by router: hooks (webhooks and forms), editor, api, login, public, and what was refused.",
            ((f"sum by (router) (rate({REQUESTS}}}[{RATE}]))", "{{router}}"),),
            "reqps",
            stacked=True,
        ),
        graph(
            "By answer",
            "Requests per second by status code.",
            ((f"sum by (code) (rate({REQUESTS}}}[{RATE}]))", "{{code}}"),),
            "reqps",
            stacked=True,
            links=(to("logs", "Access log", "&var-service=traefik-access"),),
        ),
        graph(
            "Server errors",
            "Requests per minute that ended with 5xx, by router and code. 502: the process died; 503: none is healthy; 504: none answers in time.",
            ((f'60 * sum by (router, code) (rate({REQUESTS},code=~"5.."}}[{RATE}]))', "{{router}} {{code}}"),),
            "opm",
            links=(to("logs", "Access log", "&var-service=traefik-access"),),
        ),
        graph(
            "Time, 95 %, by kind",
            "95 of 100 requests are answered within this time.",
            ((f"histogram_quantile(0.95, sum by (le, router) (rate({BUCKET}[{RATE}])))", "{{router}}"),),
            "s",
            steps=above(0.2, 0.5),
            links=(to("traces", "Traces"),),
        ),
        heat(
            "Times of webhooks",
            "How many webhook calls took how long.",
            f'sum by (le) (rate(traefik_router_request_duration_seconds_bucket{{instance=~"$instance",router="hooks@file",protocol="http"}}[{RATE}]))',
        ),
        graph(
            "Open connections",
            "Connections that are open now, by entrance and protocol.",
            (
                (
                    'sum by (entrypoint, protocol) (traefik_open_connections{instance=~"$instance"})',
                    "{{entrypoint}} {{protocol}}",
                ),
            ),
        ),
        graph(
            "Bytes",
            "Bytes of requests and answers, per second.",
            (
                (f"sum(rate(traefik_router_requests_bytes_total{{{WHERE}}}[{RATE}]))", "requests"),
                (f"sum(rate(traefik_router_responses_bytes_total{{{WHERE}}}[{RATE}]))", "answers"),
            ),
            "Bps",
        ),
        graph(
            "Long-lived",
            "Event streams and web sockets that ended, per minute: editors that lose their connection.",
            (
                (
                    f'60 * sum by (protocol) (rate(traefik_router_requests_total{{instance=~"$instance",protocol!="http"}}[{RATE}]))',
                    "{{protocol}}",
                ),
            ),
            "opm",
        ),
        graph(
            "Limits",
            "Requests per minute that were turned away by a rate limit (429) or were too large (413).",
            (
                (
                    f'60 * sum by (router, code) (rate(traefik_router_requests_total{{instance=~"$instance",code=~"413|429"}}[{RATE}]))',
                    "{{router}} {{code}}",
                ),
            ),
            "opm",
        ),
    ),
)

BEHIND = Row(
    "Behind it and in front of it",
    (
        states(
            "Servers",
            "Processes of n8n as Traefik sees them.",
            'traefik_service_server_up{instance=~"$instance"}',
            "{{service}} {{url}}",
            12,
            9,
        ),
        states(
            "Probes",
            "What a visitor and a sender of webhooks meet, and whether processes are ready.",
            "min by (instance, probe, process) (probe_success)",
            "{{probe}} {{instance}} {{process}}",
            12,
            9,
        ),
        graph(
            "Time of probes",
            "How long probes take.",
            (("max by (instance, probe, process) (probe_duration_seconds)", "{{probe}} {{instance}} {{process}}"),),
            "s",
        ),
        table(
            "Certificates",
            "Time left.",
            (
                (
                    "Left",
                    'min by (instance, cn, sans) (traefik_tls_certs_not_after{instance=~"$instance"}) - time()',
                    "s",
                ),
            ),
            {"cn": "Name", "sans": "Other names", "instance": "Host"},
            8,
            8,
        ),
        graph(
            "Configuration",
            "Time since Traefik last loaded its configuration.",
            (('time() - traefik_config_last_reload_success{instance=~"$instance"}', "{{instance}}"),),
            "s",
        ),
    ),
)

DASHBOARD = Dashboard(
    "traefik",
    "Traefik",
    "Requests to n8n as they come in, and the processes they go to.",
    (STATE, REQUEST, BEHIND),
    (
        Variable("instance", "Host", 'label_values(up{job="traefik"}, instance)'),
        Variable("router", "Router", "label_values(traefik_router_requests_total, router)"),
    ),
    SHARED,
)

# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics of the bridge; each process makes only the groups it fills, so that no zero is reported by mistake."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# The time each series began: as many series again, which nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]

# Seconds. The bounds hold the goals of the service: 15, 25, 100 ms.
FAST = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
CALLS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
AGES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 15, 60, 300, 900, 3600, 21600, 86400)


class ProcessMetrics(Collector):
    """This process, under the usual names; the library's own collector needs files that the unit's sandbox hides."""

    def __init__(self, registry: CollectorRegistry) -> None:
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield what the kernel says now."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        yield CounterMetricFamily(
            "process_cpu_seconds", "CPU time, user and system.", value=used.ru_utime + used.ru_stime
        )
        yield GaugeMetricFamily(
            "process_resident_memory_bytes", "Resident memory.", value=pages * os.sysconf("SC_PAGE_SIZE")
        )
        yield GaugeMetricFamily("process_open_fds", "Open files.", value=len(os.listdir("/proc/self/fd")))


class PublishMetrics:
    """What the API counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "bridge_publish_requests_total",
            "Events asked to be published, by the HTTP status each got.",
            ["route", "tenant", "code"],
            registry=registry,
        )
        self.seconds = Histogram(
            "bridge_publish_seconds", "Time of a publish request.", ["kind"], buckets=FAST, registry=registry
        )
        self.events = Counter("bridge_events_total", "Events accepted.", ["route", "via"], registry=registry)
        self.group = Histogram(
            "bridge_commit_events",
            "Events stored by one commit.",
            buckets=(1, 2, 5, 10, 25, 50, 100, 250, 500, 1000),
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "bridge_commit_seconds", "Time PostgreSQL takes to commit events.", buckets=FAST, registry=registry
        )
        self.outbox_rows = Gauge(
            "bridge_outbox_rows",
            "Messages not in Pulsar yet (counted up to the limit).",
            registry=registry,
        )
        self.outbox_age = Gauge(
            "bridge_outbox_age_seconds", "Age of the oldest message that is not in Pulsar yet.", registry=registry
        )
        self.swept = Counter(
            "bridge_outbox_swept_total", "Messages published from the outbox later on.", ["topic"], registry=registry
        )


class BrokerMetrics:
    """What happens between a process and Pulsar."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "bridge_pulsar_send_seconds", "Time until Pulsar has stored a message.", buckets=FAST, registry=registry
        )
        self.not_stored = Counter(
            "bridge_pulsar_not_stored_total", "Messages Pulsar did not store.", ["reason"], registry=registry
        )


class RouteMetrics:
    """Decisions of the routing file, and its reloads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.decisions = Counter(
            "bridge_route_decisions_total", "Events by the route that was chosen.", ["route", "via"], registry=registry
        )
        self.loaded = Gauge(
            "bridge_routes_loaded_timestamp_seconds", "When the routes in use were read.", registry=registry
        )
        self.failures = Counter(
            "bridge_routes_reload_failures_total", "Changes of the routes that were not usable.", registry=registry
        )


class DeliveryMetrics:
    """What a consumer counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.deliveries = Counter(
            "bridge_deliveries_total", "Attempts by outcome.", ["route", "tenant", "outcome"], registry=registry
        )
        self.seconds = Histogram(
            "bridge_delivery_seconds", "Time n8n takes to answer.", ["route"], buckets=CALLS, registry=registry
        )
        self.age = Histogram(
            "bridge_delivery_age_seconds",
            "Time from an event's acceptance to its delivery.",
            ["route"],
            buckets=AGES,
            registry=registry,
        )
        self.in_flight = Gauge("bridge_in_flight", "Calls under way.", ["tenant", "route"], registry=registry)
        self.retry_rows = Gauge("bridge_retry_rows", "Deliveries that wait for another attempt.", registry=registry)
        self.dead_rows = Gauge("bridge_dead_rows", "Deliveries that were given up.", registry=registry)
        self.breaker_open = Gauge(
            "bridge_breaker_open", "1 while calls are held back.", ["tenant", "route"], registry=registry
        )
        self.signature_failures = Counter(
            "bridge_signature_failures_total", "Messages that were not believed.", ["reason"], registry=registry
        )

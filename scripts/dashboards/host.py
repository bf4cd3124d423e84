# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts: processors, memory, disks, network, and what each unit uses of them."""

from __future__ import annotations

from scripts.dashboards.model import Dashboard, Row, Variable, above, below
from scripts.dashboards.panels import SHARED, bars, graph, number, table, to

HOST = 'instance=~"$instance"'
REAL = f'{HOST},fstype!~"tmpfs|ramfs|squashfs|iso9660"'
UNIT = f'{HOST},unit=~"$unit"'
RATE = "$__rate_interval"
IDLE = f'avg by (instance) (rate(node_cpu_seconds_total{{{HOST},mode="idle"}}[{RATE}]))'

STATE = Row(
    "State",
    (
        number("Hosts up", "Hosts that answer.", f'sum(up{{job="node",{HOST}}})', width=3),
        number(
            "Processors",
            "Share of time in which the busiest host's processors work.",
            f'1 - min(avg by (instance) (rate(node_cpu_seconds_total{{{HOST},mode="idle"}}[5m])))',
            "percentunit",
            above(0.8, 0.95),
            3,
        ),
        number(
            "Memory left",
            "Of the host that has least.",
            f"min(node_memory_MemAvailable_bytes{{{HOST}}} / node_memory_MemTotal_bytes{{{HOST}}})",
            "percentunit",
            below(0.07, 0.15),
            3,
        ),
        number(
            "Disk left",
            "Of the file system that has least.",
            f"min(node_filesystem_avail_bytes{{{REAL}}} / (node_filesystem_size_bytes{{{REAL}}} > 0))",
            "percentunit",
            below(0.05, 0.15),
            3,
        ),
        number(
            "Failed units",
            "Units of the platform that ended with an error.",
            f'sum(node_systemd_unit_state{{{HOST},state="failed"}})',
            steps=above(1, 1),
            width=3,
        ),
        number(
            "Killed for memory",
            "Processes that kernels ended within the chosen time.",
            f"sum(increase(node_vmstat_oom_kill{{{HOST}}}[$__range]))",
            steps=above(1, 1),
            width=3,
        ),
        number(
            "Clock",
            "Seconds that the worst clock is off.",
            f"max(abs(node_timex_offset_seconds{{{HOST}}}))",
            "s",
            above(0.1, 0.5),
            3,
        ),
        number(
            "Runs for",
            "Time since the host that started last did so.",
            f"min(node_time_seconds{{{HOST}}} - node_boot_time_seconds{{{HOST}}})",
            "s",
            width=3,
        ),
    ),
)

USE = Row(
    "Use",
    (
        graph(
            "Processors",
            "Share of time in which they work.",
            ((f"1 - {IDLE}", "{{instance}}"),),
            "percentunit",
            steps=above(0.8, 0.95),
        ),
        graph(
            "Load",
            "Processes that run or wait to run, by core.",
            (
                (
                    f'node_load1{{{HOST}}} / on (instance) count by (instance) (node_cpu_seconds_total{{{HOST},mode="idle"}})',
                    "{{instance}}",
                ),
            ),
        ),
        graph(
            "Pressure",
            "Share of time in which some process waits for processor, memory or disk.",
            (
                (f"rate(node_pressure_cpu_waiting_seconds_total{{{HOST}}}[{RATE}])", "processor {{instance}}"),
                (f"rate(node_pressure_memory_waiting_seconds_total{{{HOST}}}[{RATE}])", "memory {{instance}}"),
                (f"rate(node_pressure_io_waiting_seconds_total{{{HOST}}}[{RATE}])", "disk {{instance}}"),
            ),
            "percentunit",
        ),
        graph(
            "Memory",
            "In use (without caches) and there is.",
            (
                (
                    f"node_memory_MemTotal_bytes{{{HOST}}} - node_memory_MemAvailable_bytes{{{HOST}}}",
                    "used {{instance}}",
                ),
                (f"node_memory_MemTotal_bytes{{{HOST}}}", "total {{instance}}"),
            ),
            "bytes",
        ),
        graph(
            "Swap",
            "Pages read and written, per second. The platform is made to do without.",
            (
                (f"rate(node_vmstat_pswpin{{{HOST}}}[{RATE}])", "in {{instance}}"),
                (f"rate(node_vmstat_pswpout{{{HOST}}}[{RATE}])", "out {{instance}}"),
            ),
            "ops",
        ),
        graph(
            "Network",
            "Bytes received and sent, per second.",
            (
                (
                    f'sum by (instance) (rate(node_network_receive_bytes_total{{{HOST},device!~"lo|veth.*|docker.*"}}[{RATE}]))',
                    "in {{instance}}",
                ),
                (
                    f'sum by (instance) (rate(node_network_transmit_bytes_total{{{HOST},device!~"lo|veth.*|docker.*"}}[{RATE}]))',
                    "out {{instance}}",
                ),
            ),
            "Bps",
        ),
        graph(
            "Connections",
            "Entries of the kernel's table of connections, and its size.",
            (
                (f"node_nf_conntrack_entries{{{HOST}}}", "{{instance}}"),
                (f"node_nf_conntrack_entries_limit{{{HOST}}}", "limit {{instance}}"),
            ),
        ),
        graph(
            "Open files",
            "Share of the kernel's limit of open files.",
            ((f"node_filefd_allocated{{{HOST}}} / node_filefd_maximum{{{HOST}}}", "{{instance}}"),),
            "percentunit",
        ),
        graph(
            "Clock",
            "Seconds that the clock is off, as its service reckons.",
            ((f"abs(node_timex_offset_seconds{{{HOST}}})", "{{instance}}"),),
            "s",
        ),
    ),
)

UNITS = Row(
    "Units",
    (
        graph(
            "Memory by unit",
            "Memory of the processes of each unit.",
            (
                (
                    f'sum by (instance, unit) (namedprocess_namegroup_memory_bytes{{{UNIT},memtype="resident"}})',
                    "{{unit}} {{instance}}",
                ),
            ),
            "bytes",
            12,
            stacked=True,
        ),
        graph(
            "Processor by unit",
            "Share of one core that each unit uses.",
            (
                (
                    f"sum by (instance, unit) (rate(namedprocess_namegroup_cpu_seconds_total{{{UNIT}}}[{RATE}]))",
                    "{{unit}} {{instance}}",
                ),
            ),
            "percentunit",
            12,
            stacked=True,
        ),
        table(
            "Failed units",
            "Units that ended with an error and stay ended.",
            (("Failed", f'node_systemd_unit_state{{{HOST},state="failed"}} == 1', "short"),),
            {"name": "Unit", "instance": "Host"},
            8,
            8,
            {"Unit": (to("logs", "Logs", "&var-search=${__value.text}"),)},
        ),
        graph(
            "Restarts of units",
            "Restarts by systemd within an hour.",
            ((f"increase(node_systemd_service_restart_total{{{HOST}}}[1h]) > 0", "{{name}} {{instance}}"),),
        ),
        graph(
            "Disk by unit",
            "Bytes that each unit reads and writes, per second.",
            (
                (
                    f"sum by (instance, unit) (rate(namedprocess_namegroup_read_bytes_total{{{UNIT}}}[{RATE}])) + sum by (instance, unit) (rate(namedprocess_namegroup_write_bytes_total{{{UNIT}}}[{RATE}]))",
                    "{{unit}} {{instance}}",
                ),
            ),
            "Bps",
        ),
    ),
)

DISKS = Row(
    "Disks",
    (
        bars(
            "Room left",
            "Share of each file system that is free.",
            f"node_filesystem_avail_bytes{{{REAL}}} / (node_filesystem_size_bytes{{{REAL}}} > 0)",
            "{{mountpoint}} {{instance}}",
            "percentunit",
            below(0.05, 0.15),
            8,
            1,
        ),
        graph(
            "Room in a day",
            "Free bytes a day from now, reckoned from the last six hours.",
            (
                (
                    f"clamp_min(predict_linear(node_filesystem_avail_bytes{{{REAL}}}[6h], 86400), 0)",
                    "{{mountpoint}} {{instance}}",
                ),
            ),
            "bytes",
        ),
        graph(
            "Room",
            "Free bytes of each file system.",
            ((f"node_filesystem_avail_bytes{{{REAL}}}", "{{mountpoint}} {{instance}}"),),
            "bytes",
        ),
        graph(
            "Busy",
            "Share of time in which a disk works.",
            ((f"rate(node_disk_io_time_seconds_total{{{HOST}}}[{RATE}])", "{{device}} {{instance}}"),),
            "percentunit",
        ),
        graph(
            "Waiting",
            "Requests that wait for a disk, on average.",
            ((f"rate(node_disk_io_time_weighted_seconds_total{{{HOST}}}[{RATE}])", "{{device}} {{instance}}"),),
            "short",
            steps=above(2, 10),
        ),
        graph(
            "Bytes",
            "Bytes read and written, per second.",
            (
                (f"rate(node_disk_read_bytes_total{{{HOST}}}[{RATE}])", "read {{device}} {{instance}}"),
                (f"rate(node_disk_written_bytes_total{{{HOST}}}[{RATE}])", "written {{device}} {{instance}}"),
            ),
            "Bps",
        ),
    ),
)

DASHBOARD = Dashboard(
    "host",
    "Host",
    "What hosts have, and what each unit uses of it.",
    (STATE, USE, UNITS, DISKS),
    (
        Variable("instance", "Host", 'label_values(up{job="node"}, instance)'),
        Variable("unit", "Unit", "label_values(namedprocess_namegroup_num_procs, unit)"),
    ),
    SHARED,
)

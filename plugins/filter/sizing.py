# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that turn a host's memory and cores into the settings of PostgreSQL, Redis and n8n.

All memory figures are MiB. The filters are pure: the same input gives the same figures, whatever the host does now.

How a host is divided: the operating system takes 448 MiB and 1/32 of the memory; PostgreSQL and Redis take a share that
depends only on what else runs on the host (so that one worker more does not resize a database); n8n takes what its
processes need under load. What must fit is the sum of these reserves. A worker's limit is its reserve; main and webhook
processes may grow above theirs, up to their limits, while there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

# Lower bounds in MiB. A machine sold with 12 GB reports a little less, hence the tolerance where a profile is demanded.
PROFILES = {"small": 0, "medium": 12288, "large": 32768}
PROFILE_TOLERANCE = 0.9
SMALLEST_HOST_MB = 1024

# What each component of a host weighs when PostgreSQL and Redis take their shares.
WEIGHTS: dict[str, float] = {
    "postgres": 4,
    "redis": 1,
    "n8n_main": 2,
    "n8n_webhook": 2,
    "n8n_worker": 6,
    "traefik": 0.5,
    "object_store": 0.5,
    "pulsar_zookeeper": 0.75,
    "pulsar_bookie": 2,
    "pulsar_broker": 2.25,
    "bridge": 1.5,
    "prometheus": 2,
    "loki": 1,
    "grafana": 1,
    "exporters": 0.25,
    "alertmanager": 0.25,
    "otel_collector": 0.5,
    "jaeger": 0.5,
}
# What components need that this file does not size any further.
RESERVES = {
    **{"traefik": 128, "object_store": 128, "bridge": 384},
    **{"pulsar_zookeeper": 144, "pulsar_bookie": 400, "pulsar_broker": 480},
    **{"exporters": 96, "prometheus": 192, "alertmanager": 32},
    **{"loki": 192, "otel_collector": 128, "jaeger": 128, "grafana": 192},
}
# Measured under load: main 350-560, a webhook process 240-300.
N8N_MAIN_MB = 640
N8N_WEBHOOK_MB = 320
# Share of a worker's memory that goes to its task runner (measured idle: 62 of 270).
RUNNER_SHARE = 4
# Code, buffers and isolates of a Node.js process, beside its heap.
NODE_BESIDE_HEAP_MB = 144
RUNNER_BESIDE_HEAP_MB = 56
DEFAULT_POOL = {"main": 10, "webhook": 10, "worker": 10}

POSTGRES_SMALLEST_MB = 256
POSTGRES_CONNECTION_MB = 3
POSTGRES_WAL_BUFFERS_MB = 16
REDIS_LARGEST_MB = {"small": 512, "medium": 1024, "large": 4096}
REDIS_SMALLEST_MB = 192


def _whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Return ``value`` as a whole number within its bounds, or end with a sentence that names it."""
    try:
        number = int(value)
        fits = not isinstance(value, bool) and float(value) == number
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits or number < least or (most is not None and number > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise AnsibleFilterError(f"{name} must be a whole number {bounds}, not {value!r}.")
    return number


def _profile(name: Any, memory_mb: int) -> str:
    """Return the profile that applies to a host: the one demanded, or the one its memory belongs to."""
    if name == "auto":
        return max((least, profile) for profile, least in PROFILES.items() if memory_mb >= least)[1]
    if name not in PROFILES:
        raise AnsibleFilterError(f"platform_profile must be auto, {', '.join(PROFILES)}, not {name!r}.")
    if memory_mb < PROFILES[name] * PROFILE_TOLERANCE:
        raise AnsibleFilterError(
            f"platform_profile {name} is for hosts from {PROFILES[name]} MiB, this one has {memory_mb}: use auto."
        )
    return str(name)


class _Host:
    """A host's memory, divided."""

    def __init__(self, memory_mb: Any, cores: Any, profile: Any, components: Iterable[str], besides: str = "") -> None:
        self.memory_mb = _whole("platform_memory_mb", memory_mb, SMALLEST_HOST_MB)
        self.cores = _whole("platform_cores", cores, 1)
        self.profile = _profile(profile, self.memory_mb)
        if isinstance(components, str) or not isinstance(components, Iterable):
            raise AnsibleFilterError(f"The components of a host must be a list of group names, not {components!r}.")
        self.components = {name for name in components if name in WEIGHTS} | ({besides} if besides else set())
        # A profile below the host's size leaves the rest of the host alone.
        above = [least for least in PROFILES.values() if least > PROFILES[self.profile]]
        self.usable_mb = min([self.memory_mb, *above[:1]])
        self.system_mb = 448 + self.usable_mb // 32

    def share(self, component: str) -> int:
        """Return the memory a component takes by its weight, at most three quarters of the host."""
        total = sum(WEIGHTS[name] for name in self.components)
        by_weight = (self.usable_mb - self.system_mb) * WEIGHTS[component] / total
        return int(min(by_weight, self.usable_mb * 0.75))

    def postgres_mb(self) -> int:
        """Return the memory of PostgreSQL on this host, 0 if it does not run here."""
        return max(POSTGRES_SMALLEST_MB, self.share("postgres")) if "postgres" in self.components else 0

    def redis_mb(self) -> int:
        """Return the memory of both Redis instances on this host, 0 if they do not run here."""
        if "redis" not in self.components:
            return 0
        return max(REDIS_SMALLEST_MB, min(self.share("redis"), REDIS_LARGEST_MB[self.profile]))

    def reserved(self) -> dict[str, int]:
        """Return what everything but n8n takes, by name."""
        reserved = {"the operating system": self.system_mb, "PostgreSQL": self.postgres_mb(), "Redis": self.redis_mb()}
        reserved |= {name: RESERVES[name] for name in sorted(self.components) if name in RESERVES}
        return {name: size for name, size in reserved.items() if size}


def _heap(memory_max_mb: int, beside: int = NODE_BESIDE_HEAP_MB) -> int:
    """Return the largest V8 heap (``--max-old-space-size``) of a Node.js process that stays within its limit."""
    return min(memory_max_mb - beside, memory_max_mb * 3 // 4) // 8 * 8


def _pool(pool: Any) -> dict[str, int]:
    """Return the database connections one process of each kind may open."""
    if pool is not None and not isinstance(pool, Mapping):
        raise AnsibleFilterError(f"platform_n8n_pool must name main, webhook and worker, not {pool!r}.")
    merged = {**DEFAULT_POOL, **(pool or {})}
    if unknown := sorted(set(merged) - set(DEFAULT_POOL)):
        names = ", ".join(map(str, unknown))
        raise AnsibleFilterError(f"platform_n8n_pool knows main, webhook and worker, not {names}.")
    return {kind: _whole(f"platform_n8n_pool.{kind}", size, 2, 200) for kind, size in merged.items()}


def n8n_sizing(
    memory_mb: Any,
    cores: Any,
    profile: str = "auto",
    components: Iterable[str] = (),
    *,
    webhooks: Any = 2,
    workers: Any = 5,
    concurrency: Any = 10,
    pool: Any = None,
    worker_memory_mb: Any = 512,
) -> dict[str, dict[str, int]]:
    """Return the limits of n8n's processes on one host, or refuse counts that its memory cannot hold.

    ``components`` are the host's groups (``group_names``; other names are ignored). ``webhooks`` and ``workers`` count
    only where the host is in their group. ``worker_memory_mb`` is what a worker and its own task runner get together;
    ``pool`` maps main, webhook and worker to database connections per process.

    Result (``*_mb`` in MiB, ``cpu_quota_percent`` for ``CPUQuota=``, 100 per core)::

        main:    {memory_max_mb, heap_mb, cpu_quota_percent, pool}    # at most 2048 MiB and 2 cores
        webhook: {memory_max_mb, heap_mb, pool}                       # each process
        worker:  {memory_max_mb, heap_mb, semi_space_mb, pool, concurrency, slice_memory_max_mb}
        runner:  {memory_max_mb, heap_mb, semi_space_mb}              # of each worker
        host:    {needed_mb, memory_mb, workers_max}

    ``slice_memory_max_mb`` = ``worker_memory_mb`` = worker + runner. None of the limits depends on the counts: adding a
    worker changes no other process.

    Example: ``{{ platform_memory_mb | int | dealscale.n8n_platform.n8n_sizing(platform_cores | int, platform_profile,
    group_names, webhooks=platform_n8n_webhooks, workers=platform_n8n_workers, concurrency=platform_n8n_concurrency,
    pool=platform_n8n_pool) }}``
    """
    host = _Host(memory_mb, cores, profile, components)
    each_mb = _whole("The memory of a worker", worker_memory_mb, 384, 16384)
    pools = _pool(pool)
    parallel = _whole("platform_n8n_concurrency", concurrency, 1, 200)
    counts = {
        "webhook": _whole("platform_n8n_webhooks", webhooks, 0, 64) if "n8n_webhook" in host.components else 0,
        "worker": _whole("platform_n8n_workers", workers, 0, 256) if "n8n_worker" in host.components else 0,
    }
    reserved = host.reserved()
    if "n8n_main" in host.components:
        reserved["n8n main"] = N8N_MAIN_MB
    if counts["webhook"]:
        reserved[f"{counts['webhook']} webhook processes x {N8N_WEBHOOK_MB}"] = counts["webhook"] * N8N_WEBHOOK_MB
    room = max(0, host.usable_mb - sum(reserved.values())) // each_mb
    if counts["worker"]:
        reserved[f"{counts['worker']} workers x {each_mb}"] = counts["worker"] * each_mb
    needed = sum(reserved.values())
    if needed > host.usable_mb and set(reserved) - set(host.reserved()):
        parts = ", ".join(f"{name}: {size}" for name, size in reserved.items())
        raise AnsibleFilterError(
            f"n8n does not fit this host: it needs {needed} of {host.usable_mb} MiB ({parts}). "
            f"Workers that fit: {room}. Lower platform_n8n_workers or platform_n8n_webhooks, add memory or move "
            f"components to other hosts."
        )
    main = min(2048, max(N8N_MAIN_MB, int(host.usable_mb * 0.18)))
    webhook = min(1024, max(N8N_WEBHOOK_MB, host.usable_mb // 20))
    runner = each_mb // RUNNER_SHARE
    worker = each_mb - runner
    return {
        "main": {
            "memory_max_mb": main,
            "heap_mb": _heap(main),
            "cpu_quota_percent": min(2, host.cores) * 100,
            "pool": pools["main"],
        },
        "webhook": {"memory_max_mb": webhook, "heap_mb": _heap(webhook), "pool": pools["webhook"]},
        "worker": {
            "memory_max_mb": worker,
            "heap_mb": _heap(worker),
            "semi_space_mb": 1,
            "pool": pools["worker"],
            "concurrency": parallel,
            "slice_memory_max_mb": each_mb,
        },
        "runner": {"memory_max_mb": runner, "heap_mb": _heap(runner, RUNNER_BESIDE_HEAP_MB), "semi_space_mb": 1},
        "host": {"needed_mb": needed, "memory_mb": host.usable_mb, "workers_max": room},
    }


def n8n_connections(
    groups: Mapping[str, Iterable[str]],
    hostvars: Mapping[str, Mapping[str, Any]],
    pool: Any = None,
    webhooks: Any = 2,
    workers: Any = 5,
    more: Any = 0,
) -> int:
    """Return how many connections PostgreSQL must allow for every n8n process of the platform, and ``more``.

    The sum of all pools x 1.2 (a process that restarts briefly holds two pools) + 20 for administration, exporters and
    backups + ``more`` for other services, rounded up to a multiple of 50: a change needs a restart of PostgreSQL, one
    worker more should not.
    ``webhooks`` and ``workers`` are the counts per host; a host's own variables in ``hostvars`` come first.

    Example: ``{{ groups | dealscale.n8n_platform.n8n_connections(hostvars, platform_n8n_pool, platform_n8n_webhooks,
    platform_n8n_workers) }}``
    """
    pools = _pool(pool)
    counts = {
        "platform_n8n_webhooks": _whole("platform_n8n_webhooks", webhooks, 0, 64),
        "platform_n8n_workers": _whole("platform_n8n_workers", workers, 0, 256),
    }
    total = sum(pools["main"] for _ in groups.get("n8n_main", ()))
    for kind, variable in (("webhook", "platform_n8n_webhooks"), ("worker", "platform_n8n_workers")):
        for name in groups.get(f"n8n_{kind}", ()):
            count = hostvars.get(name, {}).get(variable, counts[variable])
            total += pools[kind] * _whole(f"{variable} of {name}", count, 0, 256)
    wanted = -(-total * 12 // 10) + 20 + _whole("The connections of other services", more, 0)
    return max(100, -(-wanted // 50) * 50)


def postgres_sizing(
    memory_mb: Any,
    cores: Any,
    profile: str = "auto",
    components: Iterable[str] = ("postgres",),
    *,
    connections: Any = 100,
    budget_mb: Any = 0,
) -> dict[str, Any]:
    """Return PostgreSQL's memory limit and the settings that follow from it.

    ``connections`` is ``max_connections`` (see ``n8n_connections``); it is refused when the memory cannot hold it.
    ``budget_mb`` replaces the memory the host's size leads to, 0 does not.

    Result: ``{memory_max_mb: MiB for MemoryMax=, settings: {name: value with its unit}}``.

    Example: ``{{ platform_memory_mb | int | dealscale.n8n_platform.postgres_sizing(platform_cores | int,
    platform_profile, group_names, connections=150) }}``
    """
    host = _Host(memory_mb, cores, profile, components, besides="postgres")
    allowed = _whole("max_connections", connections, 20, 5000)
    budget = _whole("postgres_memory_max_mb", budget_mb, 0, host.memory_mb) or host.postgres_mb()
    shared = max(64, budget // 3 // 16 * 16)
    maintenance = min(2048, max(32, budget // 12))
    # Autovacuum of n8n's tables is frequent and small; PostgreSQL 17 needs little memory for dead row numbers.
    vacuum = min(512, max(16, maintenance // 2))
    vacuum_workers = 5 if host.cores >= 8 else 3  # noqa: PLR2004
    fixed = shared + POSTGRES_WAL_BUFFERS_MB + maintenance + vacuum * vacuum_workers
    needed = fixed + allowed * POSTGRES_CONNECTION_MB
    if needed > budget:
        raise AnsibleFilterError(
            f"PostgreSQL cannot hold {allowed} connections on this host, they need {needed} of its {budget} MiB; lower "
            f"platform_n8n_pool or the number of n8n processes, add memory, or give PostgreSQL its own host."
        )
    work = min(64, max(4, (budget - fixed) // (allowed * 3)))
    wal = {"small": 2, "medium": 4, "large": 8}[host.profile]
    parallel = min(8, host.cores)
    return {
        "memory_max_mb": budget,
        "settings": {
            "max_connections": str(allowed),
            "shared_buffers": f"{shared}MB",
            "effective_cache_size": f"{budget}MB",
            "maintenance_work_mem": f"{maintenance}MB",
            "autovacuum_work_mem": f"{vacuum}MB",
            "autovacuum_max_workers": str(vacuum_workers),
            "work_mem": f"{work}MB",
            "wal_buffers": f"{POSTGRES_WAL_BUFFERS_MB}MB",
            "min_wal_size": f"{wal * 256}MB",
            "max_wal_size": f"{wal}GB",
            "max_worker_processes": str(max(8, host.cores)),
            "max_parallel_workers": str(parallel),
            "max_parallel_workers_per_gather": str(min(4, parallel // 2) if parallel >= 4 else 0),  # noqa: PLR2004
            "max_parallel_maintenance_workers": str(max(1, min(4, parallel // 2))),
        },
    }


def redis_sizing(
    memory_mb: Any,
    cores: Any,
    profile: str = "auto",
    components: Iterable[str] = ("redis",),
) -> dict[str, dict[str, int]]:
    """Return the limits of the two Redis instances.

    The queue gets three quarters; its ``maxmemory_mb`` is half of its limit, because rewriting the append-only file may
    copy all of it. The cache keeps nothing on disk and may fill more of its own.

    Result: ``queue`` and ``cache``, each ``{memory_max_mb, maxmemory_mb, io_threads}``, memory in MiB.

    Example: ``{{ platform_memory_mb | int | dealscale.n8n_platform.redis_sizing(platform_cores | int, platform_profile,
    group_names) }}``
    """
    host = _Host(memory_mb, cores, profile, components, besides="redis")
    budget = host.redis_mb()
    queue, cache = budget * 3 // 4, budget // 4
    threads = min(4, max(1, host.cores // 4))
    return {
        "queue": {"memory_max_mb": queue, "maxmemory_mb": queue // 2, "io_threads": threads},
        "cache": {"memory_max_mb": cache, "maxmemory_mb": cache * 2 // 3, "io_threads": 1},
    }


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {
            "n8n_sizing": n8n_sizing,
            "n8n_connections": n8n_connections,
            "postgres_sizing": postgres_sizing,
            "redis_sizing": redis_sizing,
        }

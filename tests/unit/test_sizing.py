"""The figures a host's memory and cores lead to."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from plugins.filter.sizing import (
    N8N_MAIN_MB,
    N8N_WEBHOOK_MB,
    RESERVES,
    FilterModule,
    n8n_connections,
    n8n_sizing,
    postgres_sizing,
    redis_sizing,
)

CORE = ["platform", "postgres", "redis", "n8n_main", "n8n_webhook", "n8n_worker", "traefik"]
EVERYTHING = [*CORE, "pulsar_zookeeper", "pulsar_bookie", "pulsar_broker", "prometheus", "loki", "grafana"]

memories = st.integers(1024, 512 * 1024)
core_counts = st.integers(1, 128)
component_lists = st.lists(st.sampled_from(EVERYTHING), unique=True)


def megabytes(value: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(MB|GB)", value).groups()  # type: ignore[union-attr]
    return int(number) * {"MB": 1, "GB": 1024}[unit]


def n8n(memory: int, cores: int = 2, components: list[str] | None = None, **options: Any) -> dict[str, Any] | None:
    """Return the sizes, or nothing if the filter refuses."""
    try:
        return n8n_sizing(memory, cores, "auto", CORE if components is None else components, **options)
    except AnsibleFilterError as error:
        assert "does not fit this host" in str(error)  # noqa: PT017
        return None


def postgres(memory: int, cores: int, components: list[str], connections: int) -> dict[str, Any] | None:
    try:
        return postgres_sizing(memory, cores, "auto", components, connections=connections)
    except AnsibleFilterError as error:
        assert f"cannot hold {connections} connections" in str(error)  # noqa: PT017
        return None


def test_smallest_supported_host_runs_the_whole_core() -> None:
    # 8 GB of WSL2 report about 7.8 GiB.
    sizes = n8n_sizing(7900, 2, "auto", CORE, webhooks=2, workers=5, concurrency=10)
    assert sizes["worker"]["slice_memory_max_mb"] == 512
    assert sizes["host"]["workers_max"] >= 5
    assert n8n_sizing(7900, 2, "auto", EVERYTHING)["host"]["needed_mb"] <= 7900


@given(memories, core_counts, component_lists, st.integers(0, 64), st.integers(0, 256))
def test_everything_fits_or_is_refused(
    memory: int, cores: int, components: list[str], webhooks: int, workers: int
) -> None:
    sizes = n8n(memory, cores, components, webhooks=webhooks, workers=workers)
    if sizes is None:
        return
    parts = 448 + memory // 32 + sum(RESERVES.get(name, 0) for name in components)
    if "postgres" in components:
        sized = postgres(memory, cores, components, 20)
        if sized is None:
            return
        parts += sized["memory_max_mb"]
    if "redis" in components:
        parts += sum(one["memory_max_mb"] for one in redis_sizing(memory, cores, "auto", components).values())
    needs = N8N_MAIN_MB if "n8n_main" in components else 0
    needs += webhooks * N8N_WEBHOOK_MB if "n8n_webhook" in components else 0
    needs += workers * 512 if "n8n_worker" in components else 0
    total = sizes["host"]["needed_mb"]
    assert parts + needs - 2 <= total <= parts + needs + 2
    assert total <= memory or not needs


@given(memories, core_counts, st.integers(384, 16384))
def test_processes_stay_within_their_bounds(memory: int, cores: int, worker_memory: int) -> None:
    sizes = n8n_sizing(memory, cores, "auto", [], worker_memory_mb=worker_memory)
    assert N8N_MAIN_MB <= sizes["main"]["memory_max_mb"] <= 2048
    assert N8N_WEBHOOK_MB <= sizes["webhook"]["memory_max_mb"] <= 1024
    assert 100 <= sizes["main"]["cpu_quota_percent"] <= 200
    assert sizes["worker"]["memory_max_mb"] + sizes["runner"]["memory_max_mb"] == worker_memory
    for kind in ("main", "webhook", "worker", "runner"):
        assert 0 < sizes[kind]["heap_mb"] <= sizes[kind]["memory_max_mb"] * 0.75
        assert sizes[kind]["heap_mb"] % 8 == 0


@given(memories, st.integers(0, 128 * 1024), core_counts)
def test_more_memory_never_gives_less(memory: int, more: int, cores: int) -> None:
    before, after = n8n(memory, cores), n8n(memory + more, cores)
    if before is not None:
        assert after is not None, "more memory is refused"
        assert after["main"]["heap_mb"] >= before["main"]["heap_mb"]
        assert after["webhook"]["heap_mb"] >= before["webhook"]["heap_mb"]
        # The step to a larger profile gives Redis up to a gigabyte, which two workers would take.
        assert after["host"]["workers_max"] >= before["host"]["workers_max"] - 2
    small, large = (redis_sizing(size, cores, "auto", CORE) for size in (memory, memory + more))
    for name in ("queue", "cache"):
        assert all(large[name][key] >= small[name][key] for key in small[name])
    few, many = (postgres(size, cores, CORE, 100) for size in (memory, memory + more))
    if few is not None:
        assert many is not None
        assert many["memory_max_mb"] >= few["memory_max_mb"]
        for name in ("shared_buffers", "effective_cache_size", "maintenance_work_mem", "max_wal_size"):
            assert megabytes(many["settings"][name]) >= megabytes(few["settings"][name])


@given(memories, st.integers(0, 30), st.integers(0, 30))
def test_worker_count_changes_no_other_process(memory: int, one: int, other: int) -> None:
    first, second = n8n(memory, workers=one), n8n(memory, workers=other)
    if first and second:
        assert {key: value for key, value in first.items() if key != "host"} == {
            key: value for key, value in second.items() if key != "host"
        }


@given(memories, core_counts, component_lists, st.integers(20, 5000))
def test_postgres_fits_its_share(memory: int, cores: int, components: list[str], connections: int) -> None:
    result = postgres(memory, cores, components, connections)
    if result is None:
        return
    settings, budget = result["settings"], result["memory_max_mb"]
    size = {name: megabytes(value) for name, value in settings.items() if value.endswith("B")}
    assert budget <= memory * 0.75
    used = size["shared_buffers"] + size["wal_buffers"] + size["maintenance_work_mem"]
    used += size["autovacuum_work_mem"] * int(settings["autovacuum_max_workers"]) + connections * 3
    assert used <= budget
    assert size["shared_buffers"] >= 64
    assert 4 <= size["work_mem"] <= 64
    assert size["min_wal_size"] < size["max_wal_size"] <= 8192
    assert int(settings["max_parallel_workers"]) <= int(settings["max_worker_processes"])
    assert int(settings["max_connections"]) == connections


@given(memories, core_counts, component_lists)
def test_redis_keeps_room_to_rewrite_its_file(memory: int, cores: int, components: list[str]) -> None:
    sizes = redis_sizing(memory, cores, "auto", components)
    assert sizes["queue"]["maxmemory_mb"] * 2 <= sizes["queue"]["memory_max_mb"]
    assert sizes["cache"]["maxmemory_mb"] < sizes["cache"]["memory_max_mb"]
    assert sizes["queue"]["maxmemory_mb"] >= 64
    assert sizes["cache"]["maxmemory_mb"] >= 32
    assert sum(one["memory_max_mb"] for one in sizes.values()) <= 4096
    assert 1 <= sizes["queue"]["io_threads"] <= 4


def test_refusal_names_the_numbers() -> None:
    with pytest.raises(AnsibleFilterError) as refused:
        n8n_sizing(8192, 2, "auto", CORE, workers=9)
    text = str(refused.value)
    for part in (
        "of 8192 MiB",
        "PostgreSQL: 1932",
        "9 workers x 512: 4608",
        "Workers that fit: 7",
        "platform_n8n_workers",
    ):
        assert part in text
    assert n8n_sizing(8192, 2, "auto", CORE, workers=7)["host"]["needed_mb"] <= 8192


def test_host_without_n8n_is_not_asked_for_workers() -> None:
    assert n8n_sizing(1024, 1, "auto", ["postgres"], workers=200)["host"]["needed_mb"] <= 1024
    with pytest.raises(AnsibleFilterError, match="200 workers x 512"):
        n8n_sizing(1024, 1, "auto", ["n8n_worker"], workers=200)


def test_pool_reaches_each_kind_of_process() -> None:
    sizes = n8n_sizing(8192, 2, "auto", CORE, pool={"webhook": 20, "worker": "12"}, concurrency=12)
    assert [sizes[kind]["pool"] for kind in ("main", "webhook", "worker")] == [10, 20, 12]
    assert sizes["worker"]["concurrency"] == 12


def test_profile_caps_what_the_platform_uses() -> None:
    capped = n8n_sizing(65536, 8, "small", CORE)
    assert capped["host"]["memory_mb"] == 12288
    assert postgres_sizing(65536, 8, "small", CORE)["memory_max_mb"] == 2956
    assert postgres_sizing(65536, 8, "small", CORE)["settings"]["max_wal_size"] == "2GB"
    assert n8n_sizing(65536, 8, "large", CORE)["host"]["memory_mb"] == 65536
    # A "12 GB" machine that reports 11.7 GiB may still be called medium.
    assert postgres_sizing(11980, 2, "medium")["settings"]["max_wal_size"] == "4GB"


@pytest.mark.parametrize(("memory", "wal"), [(8192, "2GB"), (12287, "2GB"), (12288, "4GB"), (32768, "8GB")])
def test_auto_profile_follows_memory(memory: int, wal: str) -> None:
    assert postgres_sizing(memory, 2)["settings"]["max_wal_size"] == wal


def test_memory_given_for_postgres_leads_to_its_settings() -> None:
    given_mb = postgres_sizing(8192, 2, "auto", CORE, connections=120, budget_mb=1024)
    assert given_mb["memory_max_mb"] == 1024
    assert given_mb["settings"]["effective_cache_size"] == "1024MB"
    assert given_mb["settings"]["shared_buffers"] == "336MB"


def test_parallel_queries_only_with_cores_to_spare() -> None:
    assert postgres_sizing(8192, 2)["settings"]["max_parallel_workers_per_gather"] == "0"
    assert postgres_sizing(8192, 16)["settings"]["max_parallel_workers_per_gather"] == "4"
    assert postgres_sizing(8192, 16)["settings"]["autovacuum_max_workers"] == "5"


def test_connections_cover_every_pool() -> None:
    groups = {"n8n_main": ["a"], "n8n_webhook": ["a", "b"], "n8n_worker": ["b", "c"], "postgres": ["d"]}
    # 10 + 2 x 2 x 10 + 2 x 5 x 10 = 150; x 1.2 + 20 = 200.
    assert n8n_connections(groups, {}) == 200
    # c runs 9 workers: 190 x 1.2 + 20 = 248.
    assert n8n_connections(groups, {"c": {"platform_n8n_workers": 9}}) == 250
    assert n8n_connections({}, {}) == 100


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 20), st.integers(0, 64), st.integers(2, 50))
def test_connections_are_enough_and_step_by_fifty(
    hosts: int, webhooks: int, workers: int, more: int, pool: int
) -> None:
    names = [f"h{number}" for number in range(hosts)]
    groups = {"n8n_main": names[:1], "n8n_webhook": names, "n8n_worker": names}
    pools = {"main": pool, "webhook": pool, "worker": pool}
    allowed = n8n_connections(groups, {}, pools, webhooks, workers)
    total = pool * (len(names[:1]) + hosts * (webhooks + workers))
    assert total * 1.2 + 20 <= allowed < max(101, total * 1.2 + 20 + 50)
    assert allowed % 50 == 0
    assert n8n_connections(groups, {}, pools, webhooks, workers + more) >= allowed


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: n8n_sizing("lots", 2), "platform_memory_mb"),
        (lambda: n8n_sizing(512, 2), "at least 1024"),
        (lambda: n8n_sizing(None, 2), "platform_memory_mb"),
        (lambda: n8n_sizing(True, 2), "platform_memory_mb"),
        (lambda: n8n_sizing(8192.5, 2), "platform_memory_mb"),
        (lambda: n8n_sizing(float("inf"), 2), "platform_memory_mb"),
        (lambda: n8n_sizing(8192, 0), "platform_cores"),
        (lambda: n8n_sizing(8192, 2, "huge"), "platform_profile must be auto, small, medium, large"),
        (lambda: n8n_sizing(8192, 2, "large"), "from 32768 MiB, this one has 8192"),
        (lambda: n8n_sizing(8192, 2, "auto", "postgres"), "list of group names"),
        (lambda: n8n_sizing(8192, 2, "auto", CORE, webhooks=-1), "platform_n8n_webhooks"),
        (lambda: n8n_sizing(8192, 2, "auto", CORE, workers="five"), "platform_n8n_workers"),
        (lambda: n8n_sizing(8192, 2, "auto", CORE, concurrency=0), "platform_n8n_concurrency"),
        (lambda: n8n_sizing(8192, 2, "auto", CORE, worker_memory_mb=256), "memory of a worker"),
        (lambda: n8n_sizing(8192, 2, "auto", CORE, pool="10"), "platform_n8n_pool must name"),
        (lambda: n8n_sizing(8192, 2, "auto", CORE, pool={"wroker": 5}), "not wroker"),
        (lambda: n8n_sizing(8192, 2, "auto", CORE, pool={"main": 1}), "platform_n8n_pool.main"),
        (lambda: n8n_connections({}, {}, None, "x"), "platform_n8n_webhooks"),
        (lambda: n8n_connections({"n8n_worker": ["a"]}, {"a": {"platform_n8n_workers": "x"}}), "of a must be"),
        (lambda: postgres_sizing(8192, 2, connections=5), "max_connections"),
        (lambda: postgres_sizing(8192, 2, budget_mb=9000), "from 0 to 8192"),
        (lambda: postgres_sizing(1024, 2, connections=900), "cannot hold 900 connections"),
        (lambda: redis_sizing([], 2), "platform_memory_mb"),
    ],
)
def test_invalid_input_ends_in_one_clear_sentence(call: Any, names: str) -> None:
    with pytest.raises(AnsibleFilterError) as refused:
        call()
    text = str(refused.value)
    assert names.lower() in text.lower()
    assert text.endswith(".") or "use auto" in text
    assert "\n" not in text


def test_numbers_given_as_text_are_numbers() -> None:
    assert n8n_sizing("8192", "2") == n8n_sizing(8192, 2)


def test_filters_are_published() -> None:
    assert set(FilterModule().filters()) == {"n8n_sizing", "n8n_connections", "postgres_sizing", "redis_sizing"}

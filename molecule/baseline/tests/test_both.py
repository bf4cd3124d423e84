"""What the role baseline gives every host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("/opt/n8n-platform", 0o755),
        ("/etc/n8n-platform", 0o755),
        ("/etc/n8n-platform/secrets", 0o700),
        ("/var/lib/n8n-platform", 0o755),
        ("/var/lib/n8n-platform/metrics", 0o755),
        ("/usr/local/lib/n8n-platform", 0o755),
    ],
)
def test_directories_of_the_platform_exist(host: Any, path: str, mode: int) -> None:
    directory = host.file(path)
    assert (directory.is_directory, directory.user, directory.mode) == (True, "root", mode)


def test_huge_pages_unit_runs_at_boot_in_a_sandbox(
    host: Any, running: Callable[[str], None], exposure: Callable[[str], float]
) -> None:
    running("n8n-platform-hugepages.service")
    assert exposure("n8n-platform-hugepages.service") <= 2.0
    assert "[madvise]" in host.file("/sys/kernel/mm/transparent_hugepage/enabled").content_string

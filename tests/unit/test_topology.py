# SPDX-License-Identifier: GPL-3.0-or-later
"""Where hosts are reached."""

from __future__ import annotations

from typing import Any

import pytest

from plugins.filter.topology import FilterModule, host_addresses

FACTS = {"ansible_facts": {"default_ipv4": {"address": "10.0.0.2"}}}


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({"platform_address": "10.0.0.1", "ansible_host": "h.example", **FACTS}, "10.0.0.1"),
        ({"ansible_host": "h.example", **FACTS}, "10.0.0.2"),
        ({"ansible_host": "h.example", "ansible_facts": {"default_ipv4": {}}}, "h.example"),
        ({"ansible_facts": {}}, "h"),
        ({}, "h"),
    ],
    ids=["set", "gathered", "connection", "name", "nothing known"],
)
def test_the_most_certain_address_wins(variables: dict[str, Any], address: str) -> None:
    assert host_addresses(["h"], {"h": variables}) == {"h": address}


def test_hosts_without_variables_keep_their_names() -> None:
    assert host_addresses(["a", "b"], {"a": {"platform_address": "10.1.1.1"}}) == {"a": "10.1.1.1", "b": "b"}


def test_the_filter_has_its_name() -> None:
    assert FilterModule().filters() == {"host_addresses": host_addresses}

# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter that answers which secrets a host needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def needed_secrets(table: Mapping[str, Mapping[str, Any]], groups: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """Return the lines of the table of secrets that a host in ``groups`` needs.

    Example: ``{{ platform_secrets | dealscale.n8n_platform.needed_secrets(group_names) }}``
    """
    mine = set(groups)
    return {name: secret for name, secret in table.items() if mine & set(secret["groups"])}


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"needed_secrets": needed_secrets}

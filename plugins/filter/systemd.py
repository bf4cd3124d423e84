# SPDX-License-Identifier: GPL-3.0-or-later
"""The sandbox every systemd unit of the platform starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

# One source for all units. `systemd-analyze security` rates a unit with nothing but this block at about 1.0.
SANDBOX: dict[str, str | list[str]] = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "DevicePolicy": "closed",
    "PrivateMounts": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectControlGroups": "yes",
    "ProtectClock": "yes",
    "ProtectHostname": "yes",
    "ProtectProc": "invisible",
    "LockPersonality": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "RestrictNamespaces": "yes",
    "RemoveIPC": "yes",
    "MemoryDenyWriteExecute": "yes",
    "KeyringMode": "private",
    "UMask": "0077",
    "RestrictAddressFamilies": "AF_UNIX AF_INET AF_INET6",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": ["@system-service", "~@privileged"],
    "SystemCallErrorNumber": "EPERM",
}


def unit_sandbox(overrides: Mapping[str, Any] | None = None) -> str:
    """Return the sandbox as lines of a unit's ``[Service]`` section.

    ``overrides`` replaces a directive by name, adds new ones, and drops those whose value is ``None``. A list gives one
    line per item; booleans become ``yes`` and ``no``.

    Example: ``{{ {'MemoryDenyWriteExecute': none} | dealscale.n8n_platform.unit_sandbox }}`` for a JIT such as Node.js.
    """
    merged: dict[str, Any] = {**SANDBOX, **(overrides or {})}
    lines = []
    for name, value in merged.items():
        if value is None:
            continue
        for item in value if isinstance(value, list) else [value]:
            text = {True: "yes", False: "no"}[item] if isinstance(item, bool) else str(item)
            lines.append(f"{name}={text}")
    return "\n".join(lines)


def environment_file(variables: Mapping[str, Any]) -> str:
    r"""Return variables as lines of a systemd ``EnvironmentFile``, sorted by name, quoted so that any value survives.

    Booleans become ``true`` and ``false``; variables that are empty or ``None`` are left out, as if unset.

    Example: ``{{ {'A': 'b "c" $d'} | dealscale.n8n_platform.environment_file }}`` gives ``A="b \"c\" $d"``.
    """
    lines = []
    for name, value in sorted(variables.items()):
        if value is None or value == "":
            continue
        text = str(value).lower() if isinstance(value, bool) else str(value)
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'{name}="{quoted}"')
    return "\n".join(lines)


class FilterModule:
    """Filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"environment_file": environment_file, "unit_sandbox": unit_sandbox}

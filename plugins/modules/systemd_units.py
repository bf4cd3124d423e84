#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a set of systemd units to the wanted state in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: systemd_units
short_description: Bring a set of systemd units to the wanted state in one call
description:
  - Enables and starts all listed units, disables and stops surplus instances of a template, and waits until the
    services answer. One module call does what would take one call per unit with M(ansible.builtin.systemd_service).
  - Runs C(systemctl daemon-reload) when systemd says that a unit file changed on disk.
options:
  units:
    description: Units that are enabled and running, started in this order.
    type: list
    elements: str
    default: []
  state:
    description: >-
      V(started) starts what does not run. V(restarted) restarts the units that run and starts the others. V(stopped)
      disables and stops all of them.
    type: str
    choices: [started, restarted, stopped]
    default: started
  surplus:
    description: Glob of instances; those that match and are not in O(units) are disabled and stopped (they may drain).
    type: str
  sources:
    description: >-
      Files and links that the units read when they start. A unit that started before one of them changed is restarted.
      Unlike a handler this also makes good a run that was interrupted between writing a file and restarting.
    type: list
    elements: path
    default: []
  serial:
    description: Restart running units one after the other, each ready before the next begins; idle ones start together.
    type: bool
    default: false
  ready:
    description: >-
      What proves that a unit works: unit name to C(http://) or C(https://) address that answers 200, or
      C(tcp:HOST:PORT) or C(unix:PATH) that accepts a connection. Certificates are not verified: the probe asks this
      host only.
    type: dict
    default: {}
  timeout:
    description: Seconds to wait for all of O(ready).
    type: int
    default: 120
author:
  - The dealscale.n8n_platform authors (@dealscale)
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Run three workers and wait for them
  dealscale.n8n_platform.systemd_units:
    units: [n8n-worker@1.service, n8n-worker@2.service, n8n-worker@3.service]
    surplus: n8n-worker@*.service
    ready:
      n8n-worker@1.service: http://127.0.0.1:5721/healthz/readiness
"""

RETURN = r"""
started: {description: Units that were started or restarted., type: list, elements: str, returned: always}
enabled: {description: Units that were enabled., type: list, elements: str, returned: always}
stopped: {description: Units that were disabled and stopped., type: list, elements: str, returned: always}
"""

import fnmatch
import os
import socket
import ssl
import time
import urllib.error
import urllib.request

from ansible.module_utils.basic import AnsibleModule

HTTP_OK = 200
PROPERTIES = "Id,LoadState,ActiveState,UnitFileState,NeedDaemonReload,ExecMainStartTimestamp"


def answers(probe: str) -> bool:
    """Tell whether ``probe`` (an http(s) address, ``tcp:HOST:PORT`` or ``unix:PATH``) answers now."""
    try:
        if probe.startswith("unix:"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(2)
                connection.connect(probe[5:])
            return True
        if probe.startswith("tcp:"):
            host, port = probe[4:].rsplit(":", 1)
            with socket.create_connection((host, int(port)), timeout=2):
                return True
        context = ssl._create_unverified_context() if probe.startswith("https:") else None  # noqa: S323
        with urllib.request.urlopen(probe, timeout=5, context=context) as answer:  # noqa: S310
            return bool(answer.status == HTTP_OK)
    except (OSError, urllib.error.URLError):
        return False


def changed_at(paths: list[str]) -> int:
    """Return when the newest of ``paths`` changed (Unix time in seconds; a link counts itself; 0 if there is none)."""
    return max((int(os.lstat(path).st_mtime) for path in paths if os.path.lexists(path)), default=0)


class Units:
    """The units as systemd sees them."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """Run systemctl and return what it printed; a failure ends the module with the units' journal."""
        code, out, err = self.module.run_command(["systemctl", *arguments])
        if check and code:
            units = [word for word in arguments[1:] if not word.startswith("-")]
            self.module.fail_json(msg=f"systemctl {' '.join(arguments)}: {err.strip()}", journal=self.journal(units))
        return str(out)

    def journal(self, units: list[str]) -> list[str]:
        """Return the last lines the units logged."""
        selected = [option for unit in units for option in ("-u", unit)]
        return str(self.module.run_command(["journalctl", "--no-pager", "-n", "40", *selected])[1]).splitlines()

    def show(self, units: list[str]) -> dict[str, dict[str, str]]:
        """Return the properties this module needs, by unit name as given."""
        if not units:
            return {}
        shown = self.systemctl("show", "--timestamp=unix", "--property", PROPERTIES, *units, check=False)
        blocks = shown.strip().split("\n\n")
        parsed = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]
        return dict(zip(units, parsed, strict=False))

    def instances(self, pattern: str) -> list[str]:
        """Return the loaded or enabled units that match a glob."""
        loaded = self.systemctl("list-units", "--all", "--plain", "--no-legend", pattern)
        files = self.systemctl("list-unit-files", "--no-legend", pattern, check=False)
        names = {line.split()[0] for line in (loaded + files).splitlines() if line.split()}
        return sorted(name for name in names if fnmatch.fnmatch(name, pattern) and "@." not in name)

    def wait(self, ready: dict[str, str], deadline: float) -> None:
        """Wait until every probe of ``ready`` answers; end the module with the journal of those that do not."""
        waiting = dict(ready)
        while True:
            waiting = {unit: probe for unit, probe in waiting.items() if not answers(probe)}
            if not waiting:
                return
            if time.monotonic() > deadline:
                listed = ", ".join(f"{unit} ({probe})" for unit, probe in waiting.items())
                self.module.fail_json(msg=f"Not ready in time: {listed}", journal=self.journal(list(waiting)))
            time.sleep(0.5)


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "choices": ["started", "restarted", "stopped"], "default": "started"},
            "surplus": {"type": "str"},
            "serial": {"type": "bool", "default": False},
            "sources": {"type": "list", "elements": "path", "default": []},
            "ready": {"type": "dict", "default": {}},
            "timeout": {"type": "int", "default": 120},
        },
        supports_check_mode=True,
    )
    wanted, state, ready = module.params["units"], module.params["state"], module.params["ready"]
    units = Units(module)
    known = units.show(wanted)
    active = {name for name, unit in known.items() if unit.get("ActiveState") in ("active", "reloading")}
    enabled = {name for name, unit in known.items() if unit.get("UnitFileState") in ("enabled", "static", "indirect")}
    surplus = []
    if module.params["surplus"]:
        surplus = [name for name in units.instances(module.params["surplus"]) if name not in wanted]
    if state == "stopped":
        surplus, wanted = surplus + [name for name in wanted if name in active or name in enabled], []
    stop = [
        name
        for name, unit in units.show(surplus).items()
        if unit.get("ActiveState") not in ("inactive", "failed") or unit.get("UnitFileState") == "enabled"
    ]
    enable = [name for name in wanted if name not in enabled]
    newest = changed_at(module.params["sources"])
    begun = {name: known[name].get("ExecMainStartTimestamp", "").strip("@") for name in active}
    stale = {name for name in active if int(begun[name] or newest) < newest}
    start = wanted if state == "restarted" else [name for name in wanted if name not in active or name in stale]
    result = {"changed": bool(stop or enable or start), "started": start, "enabled": enable, "stopped": stop}
    if module.check_mode:
        module.exit_json(**result)
    if any(unit.get("NeedDaemonReload") == "yes" for unit in known.values()):
        units.systemctl("daemon-reload")
    if stop:
        units.systemctl("disable", "--quiet", *stop)
        units.systemctl("stop", *stop)
    if enable:
        units.systemctl("enable", "--quiet", *enable)
    idle = [name for name in start if name not in active]
    busy = [name for name in start if name in active]
    if idle:
        units.systemctl("start", *idle)
    for batch in [[name] for name in busy] if module.params["serial"] else [busy] * bool(busy):
        units.systemctl("restart", *batch)
        if module.params["serial"]:
            probes = {name: ready[name] for name in batch if name in ready}
            units.wait(probes, time.monotonic() + module.params["timeout"])
    units.wait(ready, time.monotonic() + module.params["timeout"])
    module.exit_json(**result)


if __name__ == "__main__":
    main()

#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a host what its firewall rules need to know."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nft_info
short_description: Ask a host what its firewall rules need to know
description:
  - Resolves users to numbers, finds the DNS servers in use, and tries which features of nftables this kernel has.
    Nothing is changed, the kernel only checks the rules it is shown.
options:
  users:
    description: Users to resolve; those that do not exist are left out.
    type: list
    elements: str
    default: []
  table:
    description: Table of family inet that may be loaded.
    type: str
    required: true
  rules:
    description: File with the wanted rules.
    type: path
    required: true
  confirmed:
    description: File with the rules that were proved.
    type: path
    required: true
author:
  - The dealscale.n8n_platform authors (@dealscale)
attributes:
  check_mode: {support: full}
"""

EXAMPLES = r"""
- name: Look at the firewall
  dealscale.n8n_platform.nft_info:
    users: [n8n]
    table: n8n_platform
    rules: /etc/n8n-platform/firewall.nft
    confirmed: /var/lib/n8n-platform/firewall.nft
"""

RETURN = r"""
installed: {description: Whether nft is there., type: bool, returned: always}
missing: {description: 'What the kernel cannot do, by feature, with its own words.', type: dict, returned: always}
users: {description: User numbers by name., type: dict, returned: always}
resolvers: {description: Addresses of the DNS servers., type: list, elements: str, returned: always}
pending: {description: Whether the wanted rules are not the ones that are loaded., type: bool, returned: always}
"""

import pwd
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

RESOLV_CONF = Path("/etc/resolv.conf")
CHAIN = (
    "table inet n8n_platform_probe {{\n{sets}\nchain probe {{\ntype filter hook {hook} priority filter; policy accept\n"
    "{rule}\n}}\n}}\n"
)
SET = "set sources {{ type ipv4_addr; size 16; flags dynamic{more}; }}"
# Feature -> what the kernel is shown.
FEATURES = {
    "filter": CHAIN.format(
        sets="",
        hook="input",
        rule="ct state established,related accept; ip saddr { 192.0.2.0/24, 198.51.100.1 } tcp dport { 1, 3-4 } accept;"
        " reject with icmpx type admin-prohibited",
    ),
    "users": CHAIN.format(sets="", hook="output", rule="meta skuid { 0, 1 } ct original proto-dst 53 accept"),
    "rate_limit": CHAIN.format(
        sets=SET.format(more=",timeout; timeout 1m"),
        hook="input",
        rule="update @sources { ip saddr limit rate over 30/minute burst 5 packets } drop",
    ),
    "connection_limit": CHAIN.format(
        sets=SET.format(more=""), hook="input", rule="add @sources { ip saddr ct count over 5 } drop"
    ),
    "log": CHAIN.format(sets="", hook="input", rule='limit rate 6/minute log prefix "probe: "'),
}


def resolvers(text: str) -> list[str]:
    """Return the addresses of a resolv.conf."""
    lines = [line.split() for line in text.splitlines()]
    return list(dict.fromkeys(words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"))


def numbers(names: list[str]) -> dict[str, int]:
    """Return the numbers of the users that exist."""
    found = {}
    for name in names:
        try:
            found[name] = pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    return found


def missing(module: AnsibleModule, nft: str) -> dict[str, str]:
    """Return the features this kernel refuses, with its reason."""
    refused = {}
    for feature, rules in FEATURES.items():
        code, _out, err = module.run_command([nft, "--check", "--file", "-"], data=rules, binary_data=True)
        if code:
            refused[feature] = err.strip().splitlines()[0] if err.strip() else f"exit status {code}"
    return refused


def content(path: str) -> bytes | None:
    """Return what is in a file, or None if there is none."""
    return Path(path).read_bytes() if Path(path).is_file() else None


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "users": {"type": "list", "elements": "str", "default": []},
            "table": {"type": "str", "required": True},
            "rules": {"type": "path", "required": True},
            "confirmed": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    nft = module.get_bin_path("nft")
    loaded = bool(nft) and not module.run_command([nft, "list", "table", "inet", module.params["table"]])[0]
    module.exit_json(
        changed=False,
        installed=bool(nft),
        missing=missing(module, nft) if nft else {},
        users=numbers(module.params["users"]),
        resolvers=resolvers(RESOLV_CONF.read_text(encoding="utf-8") if RESOLV_CONF.is_file() else ""),
        pending=not loaded or content(module.params["rules"]) != content(module.params["confirmed"]),
    )


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: GPL-3.0-or-later
"""What all modules for Apache Pulsar document alike."""

from __future__ import annotations


class ModuleDocFragment:
    """How to reach the broker, and what every one of these modules can do."""

    DOCUMENTATION = r"""
options:
  url: {description: Address of the broker's HTTP service., type: str, required: true}
  token_file: {description: File with the token of a role that may administer the cluster., type: path, required: true}
  ca_file: {description: Certificates that prove the broker is the right one., type: path}
  timeout: {description: Seconds for which a request is repeated while the broker is not ready., type: int, default: 60}
author:
  - The dealscale.n8n_platform authors (@dealscale)
attributes:
  check_mode: {description: Can say what it would change, and change nothing., support: full}
  diff_mode: {description: Shows what differs., support: full}
"""

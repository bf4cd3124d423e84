# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask many addresses on this host in one go.

Standard input: a JSON list of [address, parameters]. Standard output: a JSON list of [status, body], in the same order.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from typing import Any


def ask(address: str, parameters: dict[str, Any]) -> list[Any]:
    """Return the status and the body of one answer."""
    url = f"{address}?{urllib.parse.urlencode(parameters)}" if parameters else address
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return [answer.status, answer.read().decode()]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]
    except OSError as error:
        return [0, str(error)]


if __name__ == "__main__":
    print(json.dumps([ask(*entry) for entry in json.load(sys.stdin)]))

# SPDX-License-Identifier: GPL-3.0-or-later
"""Break n8n, Pulsar and the bridge at random for a while and print what became of every accepted event.

molecule converge -s bridge_faults && python molecule/bridge_faults/soak.py --seed 1 --minutes 10
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from molecule.breaking import soak
from molecule.bridge_faults.driver import FAULTS, Platform


def main() -> int:
    """Run the soak; return 1 when something was lost or happened twice."""
    rows = soak(Platform, "n8n-platform-bridge_faults", FAULTS, __doc__)
    return int(any(row.lost or row.twice for row in rows))


if __name__ == "__main__":
    sys.exit(main())

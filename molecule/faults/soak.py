# SPDX-License-Identifier: GPL-3.0-or-later
"""Break a platform at random for a while and print what became of every acknowledged request.

molecule converge -s faults && python molecule/faults/soak.py --seed 1 --minutes 10
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from molecule.breaking import soak
from molecule.faults.driver import FAULTS, Platform


def main() -> int:
    """Run the soak; return 1 when something was lost, stuck or done twice."""
    rows = soak(Platform, "n8n-platform-faults", {**FAULTS, "power": Platform.power_cut}, __doc__)
    return int(any(row.lost or row.stuck or row.duplicates for row in rows))


if __name__ == "__main__":
    sys.exit(main())

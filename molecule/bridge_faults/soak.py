# SPDX-License-Identifier: GPL-3.0-or-later
"""Break n8n, Pulsar and the bridge at random for a while and print what became of every accepted event.

molecule converge -s bridge_faults && python molecule/bridge_faults/soak.py --seed 1 --minutes 10
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from molecule.bridge_faults.driver import FAULTS, Platform, table
from molecule.waiting import until


def main() -> int:
    """Run the soak; return 1 when something was lost or happened twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--container", default="n8n-platform-bridge_faults")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    platform = Platform(options.container)
    platform.prepare()
    platform.start_client()
    end = time.monotonic() + options.minutes * 60
    try:
        while time.monotonic() < end:
            name = chance.choice(list(FAULTS))
            print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
            platform.phase(name)
            platform.wait_for(name, chance.randint(5, 30))
            FAULTS[name](platform)
            platform.wait_for(name, 60, seconds=240)
    finally:
        platform.stop_client()
    try:
        until(platform.settled, 300, "everything accepted has had its effect", every=5)
    except AssertionError as error:
        print(error, platform.report(), sep="\n")
    rows = platform.reckon()
    print(table(rows))
    return int(any(row.lost or row.twice for row in rows))


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: GPL-3.0-or-later
"""Break a platform at random for a while and print what became of every acknowledged request.

molecule converge -s faults && python molecule/faults/soak.py --seed 1 --minutes 10
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from molecule.faults.driver import FAULTS, Platform, table
from molecule.waiting import until


def main() -> int:
    """Run the soak; return 1 when something was lost, stuck or done twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--container", default="n8n-platform-faults")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    platform = Platform(options.container)
    platform.prepare()
    platform.start_client()
    end = time.monotonic() + options.minutes * 60
    try:
        while time.monotonic() < end:
            name = chance.choice([*FAULTS, "power"])
            print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
            platform.phase(name)
            already = sum(uid.startswith(f"fx-{name}-") for uid in platform.lines("acknowledged"))
            platform.acknowledge(name, already + chance.randint(5, 30))
            if name == "power":
                platform.power_cut()
                platform.start_client()
            else:
                FAULTS[name](platform)
            platform.acknowledge(name, already + 60, seconds=240)
    finally:
        platform.stop_client()
    try:
        until(platform.settled, 300, "every acknowledged id succeeded or is listed", every=5)
    except AssertionError as error:
        print(error)
    rows = platform.reckon()
    print(table(rows))
    return int(any(row.lost or row.stuck or row.duplicates for row in rows))


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: GPL-3.0-or-later
"""What `make test` runs: see the package scripts/testing and docs/testing.md."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    runpy.run_module("scripts.testing", run_name="__main__", alter_sys=True)

# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the command line: ``python3 -m n8n_platform.backup``."""

import sys

from n8n_platform.backup.cli import main

if __name__ == "__main__":
    sys.exit(main())

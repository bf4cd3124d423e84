# SPDX-License-Identifier: GPL-3.0-or-later
"""The platform's own services around n8n: the guard of its executions and the watchdog of its processes."""

__version__ = "0.1.0"

# SPDX-License-Identifier: GPL-3.0-or-later
"""The schema of the bridge, step by step (Alembic)."""

# SPDX-License-Identifier: GPL-3.0-or-later
"""The artifact catalogue: every program the platform does not take from the distribution."""

# SPDX-License-Identifier: GPL-3.0-or-later
"""Restores and the drill that proves them."""

# SPDX-License-Identifier: GPL-3.0-or-later
"""Backup sets of a host of the platform: made, listed, verified, pruned, fetched and unpacked by one command."""

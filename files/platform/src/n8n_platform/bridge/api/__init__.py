# SPDX-License-Identifier: GPL-3.0-or-later
"""The bridge's HTTP interface: events in, their state out."""

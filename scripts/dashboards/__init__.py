# SPDX-License-Identifier: GPL-3.0-or-later
"""The dashboards of the platform, written in Python and rendered to files/dashboards/."""

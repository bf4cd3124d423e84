# SPDX-License-Identifier: GPL-3.0-or-later
"""One file for each step of the schema; a step that was published is never changed."""

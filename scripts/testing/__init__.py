# SPDX-License-Identifier: GPL-3.0-or-later
"""The runner behind `make test`: linters, Python tests and Molecule scenarios, two jobs at a time."""

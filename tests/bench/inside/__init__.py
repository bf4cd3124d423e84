# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of the bench that runs inside the measured host; standard library only."""

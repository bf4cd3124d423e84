# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the artifact store's tests."""

from tests.unit.artifacts.shop import npm_release, programs, shop, vendor

__all__ = ["npm_release", "programs", "shop", "vendor"]

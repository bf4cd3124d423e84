# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the artifact store's tests."""

from __future__ import annotations

import platform

import pytest

from artifacts.store import download
from tests.unit.artifacts.shop import npm_release, programs, shop, vendor

__all__ = ["npm_release", "programs", "shop", "vendor"]


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test run as on an amd64 machine, whatever this one is."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a download that broke off go on at once."""
    monkeypatch.setattr(download, "PAUSE_SECONDS", 0.0)

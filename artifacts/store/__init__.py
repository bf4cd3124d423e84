# SPDX-License-Identifier: GPL-3.0-or-later
"""Artifact store: fetches, verifies and packs the programs of the catalogue on the controller.

Run it as ``python -m artifacts.store`` from the root of the repository; docs/artifacts.md explains the ideas.
"""

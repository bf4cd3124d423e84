# SPDX-License-Identifier: GPL-3.0-or-later
"""The bridge between n8n and Apache Pulsar: it acknowledges nothing that it could lose."""

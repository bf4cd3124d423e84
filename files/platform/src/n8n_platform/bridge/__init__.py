# SPDX-License-Identifier: GPL-3.0-or-later
"""The bridge between n8n and Pulsar: events are accepted over HTTP, kept in PostgreSQL, and delivered to workflows."""

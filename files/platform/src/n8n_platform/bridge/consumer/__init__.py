# SPDX-License-Identifier: GPL-3.0-or-later
"""The consumer: takes events from Pulsar or from the database and calls n8n's webhooks until each is done or dead."""

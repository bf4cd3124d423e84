# SPDX-License-Identifier: GPL-3.0-or-later
"""Find what is due for each tenant and route, so that the long queue of one tenant costs the others nothing."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Replace the index by time with one by tenant and route, then time."""
    op.execute("DROP INDEX bridge.delivery_due")
    op.execute("CREATE INDEX delivery_due ON bridge.delivery (tenant, route, next_at) WHERE state = 'retry'")


def downgrade() -> None:
    """Put the index by time back."""
    op.execute("DROP INDEX bridge.delivery_due")
    op.execute("CREATE INDEX delivery_due ON bridge.delivery (next_at) WHERE state = 'retry'")

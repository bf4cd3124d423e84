# SPDX-License-Identifier: GPL-3.0-or-later
"""Events, their way to Pulsar, and their deliveries.

``event`` holds payloads, by day: old days are dropped as a whole. ``outbox`` holds what is not in Pulsar yet,
``delivery`` where each event stands, ``claim`` who carries out its effect, ``idempotency`` which requests were made
before, ``usage`` what each tenant sent.
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATEMENTS = (
    # The first 48 bits of an id are its time of birth; with the day, a query looks at one partition only.
    """
    CREATE FUNCTION bridge.event_day(id uuid) RETURNS date LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN
        (to_timestamp(('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint / 1000.0)
         AT TIME ZONE 'UTC')::date
    """,
    """
    CREATE TABLE bridge.event (
        id uuid NOT NULL,
        day date NOT NULL,
        tenant text NOT NULL,
        execution_id text NOT NULL,
        type text NOT NULL,
        workflow text,
        route text NOT NULL,
        topic text,
        body bytea COMPRESSION lz4 NOT NULL,
        content_type text NOT NULL,
        body_hash bytea NOT NULL,
        traceparent text,
        created_at timestamptz NOT NULL,
        expires_at timestamptz NOT NULL,
        replay_of uuid,
        PRIMARY KEY (day, id)
    ) PARTITION BY RANGE (day)
    """,
    """
    CREATE TABLE bridge.idempotency (
        tenant text NOT NULL,
        key text NOT NULL,
        body_hash bytea NOT NULL,
        event_id uuid NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (tenant, key)
    )
    """,
    # Rows live for milliseconds; without eager vacuuming their remains would slow each look at the oldest ones.
    """
    CREATE TABLE bridge.outbox (
        seq bigserial PRIMARY KEY,
        event_id uuid NOT NULL,
        topic text NOT NULL,
        tenant text NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        attempts int NOT NULL DEFAULT 0,
        not_before timestamptz NOT NULL DEFAULT now(),
        reason text
    ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
            autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000)
    """,
    "CREATE INDEX outbox_event ON bridge.outbox (event_id)",
    """
    CREATE TABLE bridge.delivery (
        event_id uuid PRIMARY KEY,
        tenant text NOT NULL,
        route text NOT NULL,
        state text NOT NULL CHECK (state IN ('waiting', 'leased', 'retry', 'done', 'dead', 'cancelled')),
        attempt int NOT NULL DEFAULT 0,
        generation int NOT NULL DEFAULT 0,
        lease_owner text,
        lease_until timestamptz,
        next_at timestamptz,
        message_id text,
        last_status int,
        last_error text,
        first_at timestamptz NOT NULL DEFAULT now(),
        done_at timestamptz,
        replaced_by uuid
    ) WITH (autovacuum_vacuum_scale_factor = 0.05, fillfactor = 90)
    """,
    "CREATE INDEX delivery_due ON bridge.delivery (next_at) WHERE state = 'retry'",
    "CREATE INDEX delivery_leased ON bridge.delivery (lease_until) WHERE state = 'leased'",
    "CREATE INDEX delivery_dead ON bridge.delivery (tenant, event_id) WHERE state = 'dead'",
    """
    CREATE TABLE bridge.claim (
        tenant text NOT NULL,
        event_id uuid NOT NULL,
        execution text NOT NULL,
        lease_until timestamptz NOT NULL,
        done_at timestamptz,
        PRIMARY KEY (tenant, event_id)
    )
    """,
    """
    CREATE TABLE bridge.usage (
        tenant text NOT NULL,
        day date NOT NULL,
        events bigint NOT NULL DEFAULT 0,
        bytes bigint NOT NULL DEFAULT 0,
        PRIMARY KEY (tenant, day)
    )
    """,
)


def upgrade() -> None:
    """Create the tables."""
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Remove them and everything in them."""
    for table in ("usage", "claim", "delivery", "outbox", "idempotency", "event"):
        op.execute(f"DROP TABLE bridge.{table}")
    op.execute("DROP FUNCTION bridge.event_day")

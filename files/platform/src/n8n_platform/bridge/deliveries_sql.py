# SPDX-License-Identifier: GPL-3.0-or-later
"""The statements of :mod:`n8n_platform.bridge.deliveries`; each is a transaction of its own."""

EVENT = """
    e.id, e.tenant, e.execution_id, e.type, e.workflow, e.route, e.topic, e.body, e.content_type, e.traceparent,
    e.created_at, e.expires_at
"""

LOOK = """
    SELECT e.id, e.tenant, e.route, e.topic, d.state
    FROM unnest($1::uuid[], $2::date[]) AS asked (id, day)
    JOIN bridge.event e ON e.day = asked.day AND e.id = asked.id
    LEFT JOIN bridge.delivery d ON d.event_id = e.id
    WHERE e.day = ANY ($2::date[])
"""

# A delivery that waits for another attempt belongs to the scheduler, and so does a lease that ran out.
TAKE = f"""
    WITH asked AS (
        SELECT * FROM unnest($1::uuid[], $2::date[], $3::text[], $4::float8[], $5::text[])
            AS a (id, day, message_id, lease, state)
    ), taken AS (
        INSERT INTO bridge.delivery AS d (
            event_id, tenant, route, state, attempt, generation, lease_owner, lease_until, next_at, message_id, done_at)
        SELECT e.id, e.tenant, e.route, a.state,
            CASE WHEN a.state = 'retry' THEN 0 ELSE 1 END,
            1,
            CASE WHEN a.state = 'leased' THEN $6::text END,
            now() + a.lease * interval '1 second',
            CASE WHEN a.state = 'retry' THEN now() END,
            a.message_id,
            CASE WHEN a.state = 'done' THEN now() END
        FROM asked a JOIN bridge.event e ON e.day = a.day AND e.id = a.id
        WHERE e.day = ANY ($2::date[])
        ORDER BY e.id
        ON CONFLICT (event_id) DO UPDATE SET
            state = excluded.state,
            attempt = d.attempt + excluded.attempt,
            generation = d.generation + 1,
            lease_owner = excluded.lease_owner,
            lease_until = excluded.lease_until,
            next_at = excluded.next_at,
            message_id = excluded.message_id,
            done_at = excluded.done_at
        WHERE d.state = 'waiting'
        RETURNING event_id, attempt, generation, state, message_id
    )
    SELECT {EVENT}, t.attempt, t.generation, t.state, t.message_id
    FROM taken t JOIN asked a ON a.id = t.event_id JOIN bridge.event e ON e.day = a.day AND e.id = a.id
    WHERE e.day = ANY ($2::date[]) AND t.state = 'leased'
"""  # noqa: S608  (constants)

END = """
    WITH ended AS (
        SELECT * FROM unnest(
            $1::uuid[], $2::int[], $3::text[], $4::int[], $5::text[], $6::float8[], $7::text[], $8::int[]
        ) AS x (id, generation, state, status, error, delay, topic, free)
    ), changed AS (
        UPDATE bridge.delivery d SET
            state = x.state,
            lease_owner = NULL,
            lease_until = NULL,
            next_at = CASE WHEN x.state = 'retry' THEN now() + x.delay * interval '1 second' END,
            attempt = d.attempt - x.free,
            last_status = coalesce(x.status, d.last_status),
            last_error = CASE WHEN x.state = 'done' THEN NULL ELSE x.error END,
            done_at = CASE WHEN x.state <> 'retry' THEN now() END
        FROM ended x
        WHERE d.event_id = x.id AND d.generation = x.generation AND d.state = 'leased'
        RETURNING d.event_id, d.tenant, x.topic, x.error
    ), letters AS (
        INSERT INTO bridge.outbox (event_id, topic, tenant, reason)
        SELECT event_id, topic, tenant, coalesce(error, 'given up') FROM changed WHERE topic IS NOT NULL
    )
    SELECT event_id FROM changed
    UNION
    -- Recorded before, when only the answer was lost.
    SELECT d.event_id FROM ended x JOIN bridge.delivery d ON d.event_id = x.id
    WHERE d.generation = x.generation AND d.state = x.state
"""

# The pairs of tenant and route that have something due: one look at the index for each, however many rows it has.
DUE = """
    WITH RECURSIVE pairs AS (
        (SELECT tenant, route FROM bridge.delivery WHERE state = 'retry' ORDER BY tenant, route LIMIT 1)
        UNION ALL
        SELECT n.tenant, n.route FROM pairs p CROSS JOIN LATERAL (
            SELECT tenant, route FROM bridge.delivery
            WHERE state = 'retry' AND (tenant, route) > (p.tenant, p.route) ORDER BY tenant, route LIMIT 1
        ) n
    )
    SELECT tenant, route FROM pairs p WHERE EXISTS (
        SELECT FROM bridge.delivery d
        WHERE d.state = 'retry' AND d.tenant = p.tenant AND d.route = p.route AND d.next_at <= now()
    )
"""

LEASE = """
    WITH rooms AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::int[], $4::float8[]) AS r (tenant, route, room, lease)
    ), due AS (
        SELECT d.event_id, r.lease FROM rooms r CROSS JOIN LATERAL (
            SELECT event_id FROM bridge.delivery
            WHERE state = 'retry' AND tenant = r.tenant AND route = r.route AND next_at <= now()
            ORDER BY next_at LIMIT r.room FOR UPDATE SKIP LOCKED
        ) d
    ), taken AS (
        UPDATE bridge.delivery d SET state = 'leased', attempt = d.attempt + 1, generation = d.generation + 1,
            lease_owner = $5, lease_until = now() + due.lease * interval '1 second', next_at = NULL
        FROM due WHERE d.event_id = due.event_id
        RETURNING d.event_id, d.tenant, d.route, d.attempt, d.generation, d.message_id
    )
    SELECT event_id, tenant, route, attempt, generation, message_id FROM taken
"""

READ = f"""
    SELECT {EVENT} FROM unnest($1::uuid[], $2::date[]) AS asked (id, day)
    JOIN bridge.event e ON e.day = asked.day AND e.id = asked.id
    WHERE e.day = ANY ($2::date[])
"""  # noqa: S608  (constants)

RELEASE = """
    WITH old AS (
        SELECT event_id FROM bridge.delivery WHERE state = 'leased' AND {which} LIMIT 1000 FOR UPDATE SKIP LOCKED
    ), freed AS (
        UPDATE bridge.delivery d SET state = 'retry', next_at = now(), lease_owner = NULL, lease_until = NULL,
            last_error = 'the process that called n8n ended or lost touch'
        FROM old WHERE d.event_id = old.event_id RETURNING 1
    )
    SELECT count(*) FROM freed
"""
EXPIRED = RELEASE.format(which="lease_until < now()")
OWN = RELEASE.format(which="lease_owner = $1")
FORMER = RELEASE.format(which="lease_owner LIKE $1 AND lease_owner <> $2")

# Leases of this process that it does not work on: the answer to the statement that took them was lost.
LOOSE = """
    SELECT event_id, generation FROM bridge.delivery
    WHERE state = 'leased' AND lease_owner = $1 AND event_id <> ALL ($2::uuid[])
"""
FREE = RELEASE.format(
    which="lease_owner = $1 AND (event_id, generation) IN (SELECT * FROM unnest($2::uuid[], $3::int[]))"
)

# An event whose payload is gone cannot be delivered by anybody.
LOST = """
    UPDATE bridge.delivery SET state = 'dead', lease_owner = NULL, lease_until = NULL, done_at = now(),
        last_error = 'the payload is older than payloads are kept'
    WHERE event_id = ANY ($1::uuid[]) AND state = 'leased' AND lease_owner = $2
"""

COUNTS = """
    SELECT (SELECT count(*) FROM bridge.delivery WHERE state = 'retry') AS retry,
           (SELECT count(*) FROM bridge.delivery WHERE state = 'dead' AND replaced_by IS NULL) AS dead
"""

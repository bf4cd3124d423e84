# SPDX-License-Identifier: GPL-3.0-or-later
"""All SQL of the guard. n8n's tables are only changed where a docstring says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from n8n_platform.schema import Schema, StoreError
from n8n_platform.settings import Settings

# Modes of executions that go through the queue. All others run inside the process of their parent and have no job.
QUEUED_MODES = ("webhook", "trigger", "retry", "error", "chat", "manual", "evaluation")
# Runs that a person watches in the editor or that tests do; they are settled, but nobody was promised their result.
UNLISTED_MODES = ("manual", "evaluation", "cli", "internal")
# A rerun that fails is not listed beside its original: the original is open (again) as long as it has not succeeded.
COVERED_BY_ORIGINAL = """EXISTS (
    SELECT FROM n8n_platform.lost_execution l
    WHERE e."retryOf" ~ '^[0-9]+$' AND l.execution_id = e."retryOf"::bigint
      AND (l.state <> 'closed' OR e.id <= greatest(l.rerun_id, l.claimed_above)))"""

LISTED = """
    SELECT execution_id, workflow_id, workflow_name, mode, reason, detail, created_at, started_at, found_at, state,
           attempts, rerun_id, coalesce(octet_length(data), 0) AS size
    FROM n8n_platform.lost_execution"""


class Store(Schema):
    """The database as the guard and the command line use it."""

    # --- executions under way ----------------------------------------------------------------------------------------

    def unsettled(self, grace_seconds: int) -> list[dict[str, Any]]:
        """Return id, mode and status of executions that are queued or running and began a while ago."""
        return self.rows(
            """
            SELECT id, mode, status FROM execution_entity
            WHERE status IN ('new', 'running')
              AND coalesce("startedAt", "createdAt") < now() - make_interval(secs => %(grace)s)
            """,
            grace=grace_seconds,
        )

    def parents(self, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Return of sub-workflow executions: status of their parent, whether it is listed, own age (seconds)."""
        found = self.rows(
            """
            SELECT e.id, p.id AS parent_id, p.status AS parent_status,
                   EXISTS (SELECT FROM n8n_platform.lost_execution l
                           WHERE l.execution_id = parent AND l.state <> 'closed') AS listed,
                   extract(epoch FROM now() - coalesce(e."startedAt", e."createdAt"))::int AS age
            FROM execution_entity e
            LEFT JOIN execution_data d ON d."executionId" = e.id
            CROSS JOIN LATERAL (SELECT coalesce(
                n8n_platform.parent_of(d.data),
                (SELECT n8n_platform.parent_of(k.data) FROM n8n_platform.execution_payload k
                 WHERE k.execution_id = e.id LIMIT 1)
            ) AS parent) AS q
            LEFT JOIN execution_entity p ON p.id = parent
            WHERE e.id = ANY (%(ids)s)
            """,
            ids=list(ids),
        )
        return {row["id"]: row for row in found}

    def mark_crashed(self, ids: Iterable[int]) -> list[int]:
        """End executions in n8n's table as its recovery would, unless they have moved on meanwhile; return which."""
        changed = self.rows(
            """
            UPDATE execution_entity SET status = 'crashed', "stoppedAt" = now(), "waitTill" = NULL
            WHERE id = ANY (%(ids)s) AND status IN ('new', 'running') RETURNING id
            """,
            ids=list(ids),
        )
        return [row["id"] for row in changed]

    # --- unfinished business -----------------------------------------------------------------------------------------

    def crashed(self) -> list[dict[str, Any]]:
        """Return crashed executions that are not listed: id and mode."""
        return self.rows(
            f"""
            SELECT e.id, e.mode FROM execution_entity e
            WHERE e.status = 'crashed' AND e.mode != ALL (%(unlisted)s) AND e."retrySuccessId" IS NULL
              AND NOT EXISTS (SELECT FROM n8n_platform.lost_execution l WHERE l.execution_id = e.id)
              AND NOT {COVERED_BY_ORIGINAL}
            """,  # noqa: S608  (a constant)
            unlisted=list(UNLISTED_MODES),
        )

    def died(self, window_seconds: int) -> list[dict[str, Any]]:
        """Return executions that lately ended with an error that was not their workflow's: id, mode and reason."""
        return self.rows(
            f"""
            SELECT e.id, e.mode,
                   CASE WHEN n8n_platform.ran_nothing(d.data) THEN 'payload-overwritten'
                        ELSE 'platform-error' END AS reason
            FROM execution_entity e JOIN execution_data d ON d."executionId" = e.id
            WHERE e."stoppedAt" > now() - make_interval(secs => %(window)s) AND e.status = 'error'
              AND e."deletedAt" IS NULL AND e.mode != ALL (%(unlisted)s) AND e."retrySuccessId" IS NULL
              AND n8n_platform.died(d.data)
              AND NOT EXISTS (SELECT FROM n8n_platform.lost_execution l WHERE l.execution_id = e.id)
              AND NOT {COVERED_BY_ORIGINAL}
            """,  # noqa: S608  (a constant)
            window=window_seconds,
            unlisted=list(UNLISTED_MODES),
        )

    def add(self, ids: Sequence[int], reason: str) -> list[int]:
        """List executions with the best payload there is: n8n's if it can still start, else the copy."""
        added = self.rows(
            """
            INSERT INTO n8n_platform.lost_execution
                   (execution_id, workflow_id, workflow_name, mode, reason, created_at, started_at,
                    data, workflow_data, detail)
            SELECT e.id, e."workflowId", coalesce(w.name, ''), e.mode, %(reason)s, e."createdAt", e."startedAt",
                   CASE WHEN n8n_platform.can_start(d.data) THEN d.data
                        ELSE (SELECT k.data FROM n8n_platform.execution_payload k
                              WHERE k.execution_id = e.id LIMIT 1) END,
                   d."workflowData"::text,
                   left(coalesce(n8n_platform.item(CASE WHEN e.status = 'error' THEN d.data::jsonb END,
                                                   'resultData', 'error', 'message') #>> '{}', ''), 300)
            FROM execution_entity e
            LEFT JOIN execution_data d ON d."executionId" = e.id
            LEFT JOIN workflow_entity w ON w.id = e."workflowId"
            WHERE e.id = ANY (%(ids)s)
            ON CONFLICT (execution_id) DO NOTHING RETURNING execution_id
            """,
            ids=list(ids),
            reason=reason,
        )
        return [row["execution_id"] for row in added]

    def cover(self, ids: Sequence[int]) -> None:
        """Remember crashed sub-workflow executions as settled: they run again when their parent does."""
        self.rows(
            """
            INSERT INTO n8n_platform.lost_execution
                   (execution_id, workflow_id, mode, reason, created_at, started_at, state, closed_at, outcome)
            SELECT id, "workflowId", mode, 'crashed', "createdAt", "startedAt", 'closed', now(), 'part of its parent'
            FROM execution_entity WHERE id = ANY (%(ids)s) ON CONFLICT (execution_id) DO NOTHING
            """,
            ids=list(ids),
        )

    def reconcile(self, claim_seconds: int) -> Mapping[str, int]:
        """Follow up the entries that are not closed by what n8n says now; return how many changed, by outcome."""
        counts = {}
        for outcome, query in FOLLOW_UPS.items():
            counts[outcome] = len(self.rows(query, claim=claim_seconds))
        return {outcome: count for outcome, count in counts.items() if count}

    def listed(self, ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return the entries that are not closed, oldest first; or those with the given ids, closed or not."""
        if ids is None:
            return self.rows(f"{LISTED} WHERE state <> 'closed' ORDER BY execution_id")
        return self.rows(f"{LISTED} WHERE execution_id = ANY (%(ids)s) ORDER BY execution_id", ids=list(ids))

    def data(self, execution_id: int) -> str | None:
        """Return the data an execution would be run again with, from the list, the copies, or n8n itself."""
        found = self.value(
            """
            SELECT coalesce((SELECT data FROM n8n_platform.lost_execution WHERE execution_id = %(id)s),
                            (SELECT data FROM n8n_platform.execution_payload WHERE execution_id = %(id)s LIMIT 1),
                            (SELECT data FROM execution_data WHERE "executionId" = %(id)s))
            """,
            id=execution_id,
        )
        return None if found is None else str(found)

    # --- running again -----------------------------------------------------------------------------------------------

    def claim(self, execution_id: int) -> bool:
        """Take an open entry for a rerun; only one caller can, so nothing is run twice by accident."""
        taken = self.rows(
            """
            UPDATE n8n_platform.lost_execution
            SET state = 'rerunning', attempts = attempts + 1, claimed_at = now(), rerun_id = NULL,
                claimed_above = (SELECT max(id) FROM execution_entity)
            WHERE execution_id = %(id)s AND state = 'open' RETURNING execution_id
            """,
            id=execution_id,
        )
        return bool(taken)

    def release(self, execution_id: int) -> None:
        """Give an entry back whose rerun did not start."""
        self.rows(
            "UPDATE n8n_platform.lost_execution SET state = 'open' WHERE execution_id = %(id)s AND state = 'rerunning'",
            id=execution_id,
        )

    def restore(self, execution_id: int) -> None:
        """Put the payload back into n8n's tables, so that n8n's own retry can use it.

        Changes only an execution that is not under way and did not succeed; one that n8n has pruned is created again.
        """
        with self.connection.transaction():
            self.rows(
                """
                INSERT INTO execution_entity
                       (id, finished, mode, "workflowId", status, "createdAt", "startedAt", "stoppedAt")
                SELECT execution_id, false, mode, workflow_id, 'crashed', created_at, started_at, found_at
                FROM n8n_platform.lost_execution WHERE execution_id = %(id)s
                ON CONFLICT (id) DO UPDATE SET "deletedAt" = NULL WHERE execution_entity."deletedAt" IS NOT NULL
                """,
                id=execution_id,
            )
            self.rows(
                """
                INSERT INTO execution_data ("executionId", data, "workflowData")
                SELECT l.execution_id, l.data, l.workflow_data::json
                FROM n8n_platform.lost_execution l JOIN execution_entity e ON e.id = l.execution_id
                WHERE execution_id = %(id)s AND l.data IS NOT NULL AND l.workflow_data IS NOT NULL
                  AND e.status IN ('crashed', 'error')
                ON CONFLICT ("executionId") DO UPDATE SET data = excluded.data
                WHERE NOT n8n_platform.can_start(execution_data.data)
                """,
                id=execution_id,
            )

    def rerun_of(self, execution_id: int) -> int | None:
        """Return the id of the rerun n8n has begun, and remember it."""
        found = self.value(
            """
            UPDATE n8n_platform.lost_execution l SET rerun_id = r.id
            FROM (SELECT max(e.id) AS id
                  FROM execution_entity e JOIN n8n_platform.lost_execution o ON o.execution_id = %(id)s
                  WHERE e.id > o.claimed_above AND e."retryOf" = %(text)s) AS r
            WHERE l.execution_id = %(id)s AND r.id IS NOT NULL RETURNING r.id
            """,
            id=execution_id,
            text=str(execution_id),
        )
        return None if found is None else int(found)

    def dismiss(self, execution_id: int) -> bool:
        """Close an entry because a person says so."""
        return bool(
            self.rows(
                "UPDATE n8n_platform.lost_execution SET state = 'closed', closed_at = now(), outcome = 'dismissed',"
                " claimed_above = (SELECT max(id) FROM execution_entity)"
                " WHERE execution_id = %(id)s AND state <> 'closed' RETURNING execution_id",
                id=execution_id,
            )
        )

    # --- numbers -----------------------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, Any]:
        """Return what the metrics and the doctor show."""
        return self.rows(
            """
            SELECT count(*) FILTER (WHERE state = 'open') AS open,
                   count(*) FILTER (WHERE state = 'open' AND data IS NULL) AS without_payload,
                   count(*) FILTER (WHERE state = 'rerunning') AS rerunning,
                   extract(epoch FROM min(created_at) FILTER (WHERE state = 'open'))::bigint AS oldest,
                   (SELECT count(*) FROM execution_entity
                    WHERE "waitTill" < now() - interval '5 minutes' AND status = 'waiting' AND "deletedAt" IS NULL
                   ) AS overdue_waits,
                   (SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint FROM pg_inherits
                    WHERE inhparent = to_regclass('n8n_platform.execution_payload')) AS payload_bytes
            FROM n8n_platform.lost_execution WHERE state <> 'closed'
            """
        )[0]

    def owner_email(self) -> str | None:
        """Return the address n8n's owner signs in with."""
        found = self.value("""SELECT email FROM "user" WHERE "roleSlug" = 'global:owner' LIMIT 1""")
        return None if found is None else str(found)


# In this order. Each closes, reopens or forgets entries and returns them.
FOLLOW_UPS = {
    "finished after all": """
        UPDATE n8n_platform.lost_execution l SET state = 'closed', closed_at = now(), outcome = 'finished after all'
        FROM execution_entity e
        WHERE e.id = l.execution_id AND l.state <> 'closed' AND e.status IN ('success', 'canceled')
        RETURNING l.execution_id""",
    "under way after all": """
        DELETE FROM n8n_platform.lost_execution l USING execution_entity e
        WHERE e.id = l.execution_id AND l.state = 'open' AND e.status IN ('new', 'running', 'waiting')
        RETURNING l.execution_id""",
    "succeeded when run again": """
        UPDATE n8n_platform.lost_execution l
        SET state = 'closed', closed_at = now(), outcome = 'succeeded when run again',
            rerun_id = e."retrySuccessId"::bigint
        FROM execution_entity e WHERE e.id = l.execution_id AND l.state <> 'closed' AND e."retrySuccessId" IS NOT NULL
        RETURNING l.execution_id""",
    "rerun found": """
        UPDATE n8n_platform.lost_execution l SET rerun_id = r.id
        FROM (SELECT o.execution_id, max(e.id) AS id
              FROM n8n_platform.lost_execution o
              JOIN execution_entity e ON e.id > o.claimed_above AND e."retryOf" = o.execution_id::text
              WHERE o.state = 'rerunning' AND o.rerun_id IS NULL GROUP BY o.execution_id) AS r
        WHERE l.execution_id = r.execution_id RETURNING l.execution_id""",
    "ended in an error of the workflow when run again": """
        UPDATE n8n_platform.lost_execution l
        SET state = 'closed', closed_at = now(), outcome = 'ended in an error of the workflow when run again'
        FROM execution_entity e JOIN execution_data d ON d."executionId" = e.id
        WHERE e.id = l.rerun_id AND l.state = 'rerunning' AND e.status IN ('error', 'canceled')
          AND NOT n8n_platform.died(d.data)
        RETURNING l.execution_id""",
    "ended when run again, n8n kept no record": """
        UPDATE n8n_platform.lost_execution l
        SET state = 'closed', closed_at = now(), outcome = 'ended when run again, n8n kept no record'
        WHERE l.state = 'rerunning' AND l.rerun_id IS NOT NULL
          AND NOT EXISTS (SELECT FROM execution_entity e WHERE e.id = l.rerun_id)
        RETURNING l.execution_id""",
    "reopened": """
        UPDATE n8n_platform.lost_execution l SET state = 'open'
        WHERE l.state = 'rerunning'
          AND (EXISTS (SELECT FROM execution_entity e WHERE e.id = l.rerun_id AND e.status IN ('crashed', 'error'))
               OR (l.rerun_id IS NULL AND l.claimed_at < now() - make_interval(secs => %(claim)s)))
        RETURNING l.execution_id""",
}


def connect(settings: Settings) -> Store:
    """Connect to n8n's database as n8n's role; raise StoreError when that fails."""
    import psycopg  # noqa: PLC0415  (a slow import that some commands do not need)
    from psycopg.rows import dict_row  # noqa: PLC0415

    database = settings.database
    tls = {"sslmode": "verify-ca", "sslrootcert": database.ca_file} if database.ca_file else {}
    try:
        return Store(
            psycopg.connect(
                host=database.host,
                port=database.port,
                dbname=database.name,
                user=database.user,
                password=settings.secret("postgres_n8n_password"),
                application_name="n8n-platform",
                connect_timeout=5,
                # The bounds of partitions must not move when the server's time zone does.
                options="-c statement_timeout=60000 -c timezone=UTC",
                autocommit=True,
                row_factory=dict_row,
                **tls,
            ),
            (psycopg.Error,),
        )
    except psycopg.Error as error:
        raise StoreError(f"PostgreSQL does not answer: {error}") from error

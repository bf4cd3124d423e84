-- SPDX-License-Identifier: GPL-3.0-or-later
-- The platform's own objects in n8n's database, in a schema of their own. Safe to run again. n8n's role owns them.

CREATE SCHEMA IF NOT EXISTS n8n_platform;

-- What each execution started with. n8n overwrites it when the execution ends, even when it ends by a crash.
CREATE TABLE IF NOT EXISTS n8n_platform.execution_payload (
    execution_id bigint NOT NULL,
    kept_at timestamptz NOT NULL DEFAULT now(),
    data text COMPRESSION lz4 NOT NULL
) PARTITION BY RANGE (kept_at);
-- Ids grow with time, so a few bytes for each block range find them; it costs an insert next to nothing.
CREATE INDEX IF NOT EXISTS execution_payload_execution_id ON n8n_platform.execution_payload
    USING brin (execution_id) WITH (pages_per_range = 32, autosummarize = on);
CREATE TABLE IF NOT EXISTS n8n_platform.execution_payload_default PARTITION OF n8n_platform.execution_payload DEFAULT;

-- What is left of executions after n8n has pruned or a person has deleted them.
CREATE TABLE IF NOT EXISTS n8n_platform.execution_archive (
    execution_id bigint NOT NULL,
    workflow_id text NOT NULL,
    status text NOT NULL,
    mode text NOT NULL,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    stopped_at timestamptz,
    retry_of text,
    retry_success_id text,
    json_bytes bigint NOT NULL,
    archived_at timestamptz NOT NULL DEFAULT now()
) PARTITION BY RANGE (archived_at);
CREATE INDEX IF NOT EXISTS execution_archive_workflow ON n8n_platform.execution_archive (workflow_id, created_at);
CREATE TABLE IF NOT EXISTS n8n_platform.execution_archive_default PARTITION OF n8n_platform.execution_archive DEFAULT;

-- Unfinished business: executions that n8n acknowledged and that did not come to an end of their own.
CREATE TABLE IF NOT EXISTS n8n_platform.lost_execution (
    execution_id bigint PRIMARY KEY,
    workflow_id text NOT NULL,
    workflow_name text NOT NULL DEFAULT '',
    mode text NOT NULL,
    -- crashed: its process or job vanished. payload-overwritten: n8n ended it with an error and threw its payload away.
    -- platform-error: a node failed because n8n's own database or queue did.
    reason text NOT NULL,
    detail text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    found_at timestamptz NOT NULL DEFAULT now(),
    data text COMPRESSION lz4,
    workflow_data text COMPRESSION lz4,
    state text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'rerunning', 'closed')),
    attempts int NOT NULL DEFAULT 0,
    claimed_at timestamptz,
    -- Reruns have ids above this one, so that looking for them does not read the whole table.
    claimed_above bigint,
    rerun_id bigint,
    closed_at timestamptz,
    outcome text NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS lost_execution_open ON n8n_platform.lost_execution (execution_id) WHERE state <> 'closed';

-- n8n inserts a row when it accepts an execution. Whatever goes wrong here, n8n's insert must succeed and must not wait.
CREATE OR REPLACE FUNCTION n8n_platform.keep_payload() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = n8n_platform, pg_temp SET lock_timeout = '200ms' AS $$
BEGIN
    INSERT INTO n8n_platform.execution_payload (execution_id, data) VALUES (NEW."executionId", NEW.data);
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE LOG 'n8n_platform: no payload kept of execution %: %', to_jsonb(NEW) ->> 'executionId', SQLERRM;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION n8n_platform.archive_executions() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = n8n_platform, pg_temp SET lock_timeout = '2s' AS $$
BEGIN
    INSERT INTO n8n_platform.execution_archive (execution_id, workflow_id, status, mode, created_at, started_at, stopped_at,
                                                retry_of, retry_success_id, json_bytes)
    SELECT id, "workflowId", status, mode, "createdAt", "startedAt", "stoppedAt", "retryOf", "retrySuccessId", "jsonSizeBytes"
    FROM gone;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    RAISE LOG 'n8n_platform: deleted executions were not archived: %', SQLERRM;
    RETURN NULL;
END $$;

-- Data of executions is a list of items that refer to each other by position (see flatted.py).
CREATE OR REPLACE FUNCTION n8n_platform.item(items jsonb, VARIADIC path text[]) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    found jsonb := items -> 0;
    step text;
BEGIN
    FOREACH step IN ARRAY path LOOP
        found := items -> ((found ->> step)::int);
    END LOOP;
    RETURN found;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;

-- Whether the data can start an execution: it still has a stack of nodes to run.
CREATE OR REPLACE FUNCTION n8n_platform.can_start(data text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN coalesce(jsonb_array_length(n8n_platform.item(data::jsonb, 'executionData', 'nodeExecutionStack')) > 0, false);
EXCEPTION WHEN OTHERS THEN
    RETURN false;
END $$;

-- Whether not a single node has a result, which tells an error of the platform from one of the workflow.
CREATE OR REPLACE FUNCTION n8n_platform.ran_nothing(data text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN coalesce(n8n_platform.item(data::jsonb, 'resultData', 'runData') = '{}', false);
EXCEPTION WHEN OTHERS THEN
    RETURN false;
END $$;

-- Whether an execution that ended in an error was ended by the platform, not by its workflow: n8n's handling of a lost job leaves
-- neither results nor a payload; a node that met n8n's own failing database or queue shows their client in the stack.
CREATE OR REPLACE FUNCTION n8n_platform.died(data text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN octet_length(data) < 262144 AND n8n_platform.ran_nothing(data) AND NOT n8n_platform.can_start(data)
        OR data ~ 'node_modules/(@n8n/typeorm|ioredis|bull)/'
           AND coalesce(n8n_platform.item(data::jsonb, 'resultData', 'error', 'stack') #>> '{}'
                        ~ 'node_modules/(@n8n/typeorm|ioredis|bull)/', false);
EXCEPTION WHEN OTHERS THEN
    RETURN false;
END $$;

-- The execution that called this one as a sub-workflow.
CREATE OR REPLACE FUNCTION n8n_platform.parent_of(data text) RETURNS bigint
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN (n8n_platform.item(data::jsonb, 'parentExecution', 'executionId') #>> '{}')::bigint;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;

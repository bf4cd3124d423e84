-- What the guard needs of n8n's tables, as n8n 2.41 creates them.
SET ROLE n8n;
CREATE TABLE IF NOT EXISTS workflow_entity (id varchar(36) PRIMARY KEY, name varchar NOT NULL);
CREATE TABLE IF NOT EXISTS "user" (id int PRIMARY KEY, email varchar, "roleSlug" varchar);
CREATE TABLE IF NOT EXISTS execution_entity (
    id serial PRIMARY KEY,
    finished boolean NOT NULL,
    mode varchar NOT NULL,
    "retryOf" varchar,
    "retrySuccessId" varchar,
    "startedAt" timestamptz(3),
    "stoppedAt" timestamptz(3),
    "waitTill" timestamptz(3),
    status varchar NOT NULL,
    "workflowId" varchar(36) NOT NULL REFERENCES workflow_entity ON DELETE CASCADE,
    "deletedAt" timestamptz(3),
    "createdAt" timestamptz(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3),
    "jsonSizeBytes" bigint NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS execution_data (
    "executionId" int PRIMARY KEY REFERENCES execution_entity ON DELETE CASCADE,
    "workflowData" json NOT NULL,
    data text NOT NULL,
    "workflowVersionId" varchar(36)
);
INSERT INTO workflow_entity VALUES ('w1', 'Orders') ON CONFLICT DO NOTHING;
INSERT INTO "user" VALUES (1, 'owner@n8n.test', 'global:owner') ON CONFLICT DO NOTHING;

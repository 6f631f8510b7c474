-- The revocation log and what proves that every process has read it: docs/revocation.md. A *seq* is never used twice;
-- commit order is seq order, because the head's only row is locked last and its seq is taken under that lock.

CREATE TABLE revocation_head (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    chain uuid NOT NULL,                            -- of the log's very first row: hints of another log are not ours
    seq bigint NOT NULL,
    id uuid NOT NULL,                               -- of the log's row at seq
    era_id uuid NOT NULL,                           -- of the era row that seq stands under
    server_start timestamptz NOT NULL,              -- the server start under which seq was taken
    lease_seconds double precision NOT NULL DEFAULT 5 CHECK (lease_seconds BETWEEN 0.05 AND 60),      -- L
    drift_seconds double precision NOT NULL DEFAULT 0.25 CHECK (drift_seconds BETWEEN 0 AND 60),      -- d
    protocol_version integer NOT NULL DEFAULT 1
) WITH (fillfactor = 10);

COMMENT ON COLUMN revocation_head.lease_seconds IS
    'One value for all processes. Change it, and drift_seconds, only while no process runs.';

CREATE TABLE revocation_log (
    seq bigint PRIMARY KEY,
    id uuid NOT NULL UNIQUE,
    previous uuid NOT NULL,                         -- id of the row before
    kind smallint NOT NULL,                         -- 1 session, 2 user, 3 everyone, 4 rights, 5 API key, 6 era
    bound bigint NOT NULL,                          -- sessions with born < bound die: the row's *first* seq
    sid text NOT NULL DEFAULT '',
    subject text NOT NULL DEFAULT '',
    except_sid text NOT NULL DEFAULT '',
    api_key text NOT NULL DEFAULT '',
    code smallint NOT NULL DEFAULT 4501,
    reason text NOT NULL DEFAULT '',
    message text NOT NULL DEFAULT '',
    min_version integer NOT NULL DEFAULT 1,         -- the least reader version that can apply this row
    receipt uuid,
    spread_seconds double precision NOT NULL DEFAULT 0,
    committed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX revocation_log_everyone ON revocation_log (bound) WHERE kind = 3;
CREATE INDEX revocation_log_by_receipt ON revocation_log (receipt) WHERE receipt IS NOT NULL;
CREATE INDEX revocation_log_by_time ON revocation_log (committed_at, seq);

-- Why everyone's sessions ended that includes this one: the first row that kills it, or none. Such a row marks no
-- session, so whoever reads a session's row asks this in the same statement.
CREATE FUNCTION revoked_with_everyone(born bigint, sid text)
RETURNS TABLE (code smallint, reason text, message text, at timestamptz) LANGUAGE sql STABLE AS $$
    SELECT l.code, l.reason, l.message, l.committed_at
    FROM revocation_log l
    WHERE l.kind = 3 AND l.bound > $1 AND l.except_sid <> $2
    ORDER BY l.bound LIMIT 1
$$;

CREATE TABLE processes (
    node text PRIMARY KEY,
    policy text NOT NULL CHECK (policy IN ('freeze', 'serve')),
    version integer NOT NULL,                       -- reader version
    host text NOT NULL DEFAULT '',
    pid integer NOT NULL DEFAULT 0,
    applied_seq bigint,                             -- what it acknowledged last, with the id of that row
    applied_id uuid,
    applied_era uuid,                               -- and of the era row that it stands under on its chain
    beat bigint NOT NULL DEFAULT 0,                 -- another number with every renewal
    registered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    renewed_at timestamptz NOT NULL DEFAULT clock_timestamp()           -- for people; nothing is decided by it
) WITH (fillfactor = 50);

CREATE TABLE receipts (
    id uuid PRIMARY KEY,
    actor text NOT NULL DEFAULT '',
    seq bigint NOT NULL,                            -- of its last row
    era_id uuid NOT NULL,
    rows integer NOT NULL,
    sessions integer NOT NULL,                      -- how many it ended
    complete boolean NOT NULL DEFAULT true,         -- false while transactions of it are still to come
    progress text NOT NULL DEFAULT '',              -- how far these are
    committed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    confirmed_by text CHECK (confirmed_by IN ('acks', 'lease')),
    elapsed_ms double precision
);

CREATE INDEX receipts_by_time ON receipts (committed_at);

-- Written by the node itself, in the statement that acknowledges. No reference to receipts: a failover may lose one.
CREATE TABLE receipt_nodes (
    receipt uuid NOT NULL,
    node text NOT NULL,
    applied_at timestamptz NOT NULL,
    connections_closed integer NOT NULL,
    PRIMARY KEY (receipt, node)
);

CREATE TABLE idempotency (
    caller text NOT NULL,
    key text NOT NULL,
    body_hash bytea NOT NULL,
    receipt uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    asked integer NOT NULL DEFAULT 0,               -- written by whoever asks again, so that its commit waits for a standby
    PRIMARY KEY (caller, key)
);

CREATE INDEX idempotency_by_time ON idempotency (created_at);

WITH first AS (
    INSERT INTO revocation_log (seq, id, previous, kind, bound)
    VALUES (4294967296, gen_random_uuid(), '00000000-0000-0000-0000-000000000000', 6, 4294967296)
    RETURNING seq, id
)
INSERT INTO revocation_head (chain, seq, id, era_id, server_start) SELECT id, seq, id, id, pg_postmaster_start_time() FROM first;

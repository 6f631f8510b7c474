-- Work that is done later. A row is a job; done is deleted. Who takes one moves `run_at` to the end of the claim, so
-- what a dead process had taken comes due again.

CREATE TABLE jobs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),  -- stays over all attempts: receivers tell repeats by it
    kind text NOT NULL,
    key text UNIQUE,                                -- at most one job with a key waits; null: any number
    payload jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    run_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts integer NOT NULL DEFAULT 0,            -- counted when it is claimed; whoever finishes must still hold it
    claimed_by text,
    error text NOT NULL DEFAULT '',
    dead_at timestamptz                             -- given up: an admin looks at it
) WITH (fillfactor = 80);

CREATE INDEX jobs_due ON jobs (run_at) WHERE dead_at IS NULL;
CREATE INDEX jobs_dead ON jobs (dead_at, id) WHERE dead_at IS NOT NULL;
CREATE INDEX jobs_by_time ON jobs (created_at, id);

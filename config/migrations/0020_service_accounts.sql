-- API keys that are replaced without a gap, and whom they belong to.

CREATE TABLE service_accounts (
    name text PRIMARY KEY CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,63}$'),    -- what the audit calls the keys of it
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_by text NOT NULL,
    disabled_at timestamptz                         -- from then on none of its keys is good
);

ALTER TABLE api_keys
    ADD COLUMN service_account text REFERENCES service_accounts,
    ADD COLUMN owner text,                          -- the user who made it: it may no more than they may
    ADD COLUMN previous_hash bytea UNIQUE CHECK (octet_length(previous_hash) = 32),
    ADD COLUMN previous_until timestamptz;          -- until then the secret before is good as well

CREATE INDEX api_keys_by_service_account ON api_keys (service_account);

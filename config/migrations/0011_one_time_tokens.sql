-- What a letter carries: good once, for a while, for one purpose. Only hashes are kept.

CREATE TABLE one_time_tokens (
    hash bytea PRIMARY KEY,                         -- SHA-256 of the token
    purpose text NOT NULL,
    subject text NOT NULL REFERENCES subjects (id) ON DELETE CASCADE,
    detail jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL
);

CREATE INDEX one_time_tokens_of ON one_time_tokens (subject, purpose);
CREATE INDEX one_time_tokens_over ON one_time_tokens (expires_at);

-- Sessions and the subjects that they belong to. A subject is all that sessions know of a user: what a login is checked
-- against (state, credential version), what it may (roles), and below which position of the log its sessions are dead.

CREATE TABLE subjects (
    id text PRIMARY KEY CHECK (octet_length(id) BETWEEN 1 AND 512),
    state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'disabled')),
    credential_version bigint NOT NULL DEFAULT 1,
    roles text[] NOT NULL DEFAULT '{}',
    revoked_below bigint NOT NULL DEFAULT 0,        -- sessions with born < revoked_below are over
    revoked_code smallint,                          -- the close code and texts of the row that said so
    revoked_reason text,
    revoked_message text,
    revoked_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE sessions (
    sid text PRIMARY KEY CHECK (sid ~ '^[A-Za-z0-9_-]{1,64}$'),
    subject text NOT NULL REFERENCES subjects (id),
    kind text NOT NULL CHECK (kind IN ('cookie', 'token', 'external')),
    issuer text NOT NULL DEFAULT '',
    born bigint NOT NULL,                           -- the log's head as the login's transaction read it
    secret_hash bytea UNIQUE CHECK (octet_length(secret_hash) = 32),    -- SHA-256 of the cookie's secret
    refresh_key bytea,                              -- the session's key for refresh tokens, sealed
    refresh_counter bigint NOT NULL DEFAULT 0,      -- the generation that may renew
    refresh_rotated_at timestamptz,                 -- when that generation was made, written once a generation
    refresh_client bytea,                           -- for which client binding
    device text NOT NULL DEFAULT '',                -- the user agent as it was sent, cut
    address text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL,                -- the absolute end; nothing moves it
    idle_seconds double precision NOT NULL CHECK (idle_seconds > 0),
    auth_time timestamptz,
    aal smallint NOT NULL DEFAULT 1,
    forget_at timestamptz,                          -- from when on no token can name this external session again
    ended_at timestamptz,                           -- a mark that the log's row leaves; NULL proves nothing
    ended_code smallint,
    ended_reason text NOT NULL DEFAULT '',
    ended_message text NOT NULL DEFAULT '',
    CHECK ((ended_at IS NULL) = (ended_code IS NULL))
) WITH (fillfactor = 85);                           -- last_seen_at stands in no index, so its updates stay on the page

CREATE INDEX sessions_unended_of_subject ON sessions (subject, born, created_at) WHERE ended_at IS NULL;
CREATE INDEX sessions_to_forget ON sessions (forget_at) WHERE forget_at IS NOT NULL AND ended_at IS NULL;
CREATE INDEX sessions_by_age ON sessions (created_at, sid);
CREATE INDEX sessions_of_subject_by_age ON sessions (subject, created_at, sid);

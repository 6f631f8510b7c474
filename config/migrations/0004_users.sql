-- People with an account here. What sessions need to know of them (state, roles, credential version) stands in subjects.

CREATE TABLE users (
    id text PRIMARY KEY REFERENCES subjects (id) CHECK (id ~ '^u_[a-z2-7]{26}$'),
    email text NOT NULL CHECK (octet_length(email) BETWEEN 3 AND 320),  -- as it was written
    email_key text NOT NULL UNIQUE,                 -- NFKC, case-folded: two spellings of one address are one account
    display_name text NOT NULL DEFAULT '',
    password_hash text,                             -- "<pepper id>$2b$...": which pepper and cost is read off it
    password_changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    failures integer NOT NULL DEFAULT 0,            -- wrong passwords since the last right one
    last_failure_at timestamptz,
    last_login_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX users_by_age ON users (created_at, id);
CREATE INDEX users_by_email_prefix ON users (email_key text_pattern_ops, created_at, id);

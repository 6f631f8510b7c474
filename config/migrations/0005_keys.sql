-- The keys that sign access tokens, and the keys that backends call the API with.

-- next: published, signs nothing yet. active: signs. retiring: verifies what it signed until that has expired.
-- retired: refused, its private half is gone.
CREATE TABLE signing_keys (
    kid text PRIMARY KEY CHECK (kid ~ '^[A-Za-z0-9_-]{1,64}$'),
    algorithm text NOT NULL CHECK (algorithm IN ('ES256', 'EdDSA')),
    state text NOT NULL CHECK (state IN ('next', 'active', 'retiring', 'retired')),
    sealed bytea,                                   -- the private key; the public one is derived from it, so that a
                                                    -- writer of this table who lacks the secret cannot plant a key
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    activated_at timestamptz,
    retiring_at timestamptz,
    retired_at timestamptz,
    CHECK ((state = 'retired') = (sealed IS NULL))
);

CREATE UNIQUE INDEX signing_keys_one_active ON signing_keys (state) WHERE state IN ('next', 'active');

CREATE TABLE api_keys (
    id text PRIMARY KEY CHECK (id ~ '^[0-9a-f]{32}$'),  -- public; what the revocation log names
    hash bytea NOT NULL UNIQUE CHECK (octet_length(hash) = 32),     -- SHA-256 of the key, which has 256 random bits
    name text NOT NULL,
    scopes text[] NOT NULL,                         -- "*" is all of them
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_by text NOT NULL DEFAULT '',
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz
);

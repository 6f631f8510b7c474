-- Second factors: a secret that an app on the phone makes codes from, and codes for the day on which it is lost.

CREATE TABLE totp (
    subject text PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    sealed_secret bytea NOT NULL,                   -- bound to the subject
    confirmed_at timestamptz,                       -- on since then; null: begun
    last_step bigint NOT NULL DEFAULT 0,            -- of the last code that was taken: a code is good once
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE recovery_codes (
    subject text NOT NULL REFERENCES totp (subject) ON DELETE CASCADE,
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),    -- HMAC-SHA256; a used one is deleted
    PRIMARY KEY (subject, hash)
);

-- Passkeys: public keys of a person's devices, with which they log in without a password, or after one.

CREATE TABLE passkeys (
    id uuid PRIMARY KEY,                            -- what people and routes name it by
    credential_id bytea NOT NULL UNIQUE CHECK (octet_length(credential_id) BETWEEN 1 AND 1023),
    subject text NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    sealed_key bytea NOT NULL,                      -- bound to the subject and the credential: nobody plants one here
    sign_count bigint NOT NULL,                     -- what the authenticator counted last; 0: it does not count
    transports text[] NOT NULL,
    name text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_used_at timestamptz
);
CREATE INDEX passkeys_subject ON passkeys (subject);

-- Challenges are sealed and not kept; of those that were answered it is kept that they were.
CREATE TABLE answered_challenges (
    id bytea PRIMARY KEY,
    until timestamptz NOT NULL                      -- it is over by itself then
);
CREATE INDEX answered_challenges_until ON answered_challenges (until);

-- Recovery codes are for the day on which any factor is lost.
ALTER TABLE recovery_codes DROP CONSTRAINT recovery_codes_subject_fkey;
ALTER TABLE recovery_codes ADD FOREIGN KEY (subject) REFERENCES users (id) ON DELETE CASCADE;

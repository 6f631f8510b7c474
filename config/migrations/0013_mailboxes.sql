-- Accounts whose address is confirmed by a letter first, and addresses that are about to change.

ALTER TABLE users ADD COLUMN email_verified_at timestamptz;

-- Who asked for an account. It becomes one when the link in the letter is opened: until then it holds no address, and
-- several may stand for the same one.
CREATE TABLE registrations (
    id uuid PRIMARY KEY,
    email text NOT NULL,
    email_key text NOT NULL,
    display_name text NOT NULL,
    password_hash text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE INDEX registrations_of ON registrations (email_key, created_at);
CREATE INDEX registrations_by_time ON registrations (created_at);

-- A change of address, done when both mailboxes have said yes. One a user: another one replaces it.
CREATE TABLE email_changes (
    subject text PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    id uuid NOT NULL,
    email text NOT NULL,
    credential_version integer NOT NULL,            -- of the password that it was asked with
    new_confirmed boolean NOT NULL DEFAULT false,
    old_confirmed boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

ALTER TABLE one_time_tokens ALTER COLUMN subject DROP NOT NULL;     -- who only registers has no subject yet

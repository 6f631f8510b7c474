-- A guest is a subject of ours without a row in users: no e-mail address, no password, one session. Registering makes a
-- person of the same id of it. Those that never came back go once their session's row is gone.

ALTER TABLE subjects ADD COLUMN guest boolean NOT NULL DEFAULT false;

CREATE INDEX subjects_guests ON subjects (created_at) WHERE guest;

-- Bans, which end by themselves; and a picture. `banned_until` is a moment of this database's clock.

ALTER TABLE subjects ADD COLUMN banned_until timestamptz NOT NULL DEFAULT '-infinity';
ALTER TABLE users ADD COLUMN avatar_url text NOT NULL DEFAULT '';

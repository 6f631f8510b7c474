-- How often a user ended their own sessions from elsewhere: devices that were trusted before are trusted no longer.

ALTER TABLE subjects ADD COLUMN trust_ended integer NOT NULL DEFAULT 0;

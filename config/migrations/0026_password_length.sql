-- Whether a password is as long as those who have rights over others need theirs: that length, or 0 where it is shorter,
-- or has not been seen since this column is there. A login tells it.

ALTER TABLE users ADD COLUMN password_at_least smallint NOT NULL DEFAULT 0;

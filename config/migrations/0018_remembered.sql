-- Whether a session's cookie outlives the browser: what shows a factor again sets it anew, and must know.

ALTER TABLE sessions ADD COLUMN remembered boolean NOT NULL DEFAULT true;

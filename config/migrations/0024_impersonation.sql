-- Sessions of a user in which somebody else acts: who that is stands with the session. With which session of theirs it
-- ends stands apart, in a table that is as small as such sessions are rare, so that every end can look there.

ALTER TABLE sessions ADD COLUMN act text;

CREATE TABLE impersonations (
    sid text PRIMARY KEY REFERENCES sessions ON DELETE CASCADE,
    subject text NOT NULL,
    act text NOT NULL,
    act_sid text NOT NULL
);

CREATE INDEX impersonations_by_session ON impersonations (act_sid);
CREATE INDEX impersonations_by_actor ON impersonations (act);
CREATE INDEX impersonations_by_subject ON impersonations (subject);

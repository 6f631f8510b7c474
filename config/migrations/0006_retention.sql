-- What goes after its time needs a way to be found: logins that are over; and the audit's rows by action and by session.
-- sessions_over: `ended_at` and `expires_at` stand in it, `last_seen_at` in no index (its updates stay on the page).

CREATE INDEX sessions_over ON sessions ((coalesce(ended_at, expires_at))) WHERE kind <> 'external';

CREATE INDEX audit_by_action ON audit (action COLLATE "C", at, id);
CREATE INDEX audit_by_session ON audit (sid, at, id) WHERE sid <> '';

-- The server start against which some process has renewed for L + d (6b): then no process lives on the lease of a server
-- before it, and whoever starts later need not wait for that again.
ALTER TABLE revocation_head ADD COLUMN settled_start timestamptz;

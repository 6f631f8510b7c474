-- not transactional
-- What lists are filtered by, also where hardly any row fits: without an index such a page reads the whole table.

CREATE INDEX CONCURRENTLY IF NOT EXISTS sessions_of_issuer ON sessions (issuer, created_at, sid) WHERE issuer <> '';
CREATE INDEX CONCURRENTLY IF NOT EXISTS sessions_of_kind ON sessions (kind, created_at, sid);
CREATE INDEX CONCURRENTLY IF NOT EXISTS subjects_with_roles ON subjects USING gin (roles) WHERE roles <> '{}';
CREATE INDEX CONCURRENTLY IF NOT EXISTS subjects_disabled ON subjects (id) WHERE state = 'disabled';

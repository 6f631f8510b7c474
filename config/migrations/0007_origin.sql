-- Is this still the database in which the log was written? `origin` names the one that somebody vouched for: a process
-- that remembers the log across a change, or an operator (run.py restore). NULL: nobody has looked yet.

ALTER TABLE revocation_head ADD COLUMN origin text;

-- The system identifier, the timeline, and the OID of the head's table: a restore changes at least one of them, unless
-- a data folder was put back as it was. A server that does not tell counts as always the same.
CREATE FUNCTION database_origin() RETURNS text LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT system_identifier FROM pg_control_system())
        || '/' || ltrim(left(pg_walfile_name(pg_current_wal_insert_lsn()), 8), '0')
        || '/' || 'revocation_head'::regclass::oid;
EXCEPTION WHEN insufficient_privilege OR feature_not_supported OR undefined_function
    OR object_not_in_prerequisite_state THEN
    RETURN 'untold/' || 'revocation_head'::regclass::oid;
END
$$;

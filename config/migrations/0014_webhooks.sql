-- Addresses that want to hear what happens. An event is a row of the audit, so it is there exactly when the deed is: the
-- trigger makes one job for each address that wants it, in the same transaction.

CREATE TABLE webhooks (
    id uuid PRIMARY KEY,
    url text NOT NULL,
    events text[] NOT NULL,                         -- 'session.revoked', or 'session.*', or '*'
    sealed_secret bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    delivered_at timestamptz,                       -- when one was last taken
    disabled_at timestamptz,
    disabled_why text NOT NULL DEFAULT ''
);

-- What a deed is called outside.
CREATE FUNCTION webhook_event(action text, detail jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN action = 'session.opened' THEN 'session.created'
        WHEN action IN ('session.ended', 'session.all_ended', 'session.token_reuse') THEN 'session.revoked'
        WHEN action IN ('user.revoked', 'role.revoked', 'everyone.revoked') THEN 'session.revoked'
        WHEN action <> 'user.changed' THEN action
        WHEN detail->'before'->'disabled' = 'false' AND detail->'after'->'disabled' = 'true' THEN 'user.disabled'
        WHEN detail->'before'->'disabled' = 'true' AND detail->'after'->'disabled' = 'false' THEN 'user.enabled'
        ELSE 'user.roles_changed'
    END
$$;

CREATE FUNCTION webhook_payload(webhook uuid, event text, entry audit) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_build_object('webhook', webhook, 'type', event, 'at', extract(epoch FROM entry.at), 'data',
        jsonb_build_object('action', entry.action, 'actor', entry.actor, 'target', entry.target, 'sid', entry.sid,
            'detail', entry.detail))
$$;

CREATE FUNCTION webhook_wants(events text[], event text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT events && ARRAY['*', event, split_part(event, '.', 1) || '.*']
$$;

CREATE FUNCTION webhooks_hear() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO jobs (kind, payload)
    SELECT 'webhook', webhook_payload(w.id, webhook_event(NEW.action, NEW.detail), NEW) FROM webhooks w
    WHERE w.disabled_at IS NULL AND webhook_wants(w.events, webhook_event(NEW.action, NEW.detail));
    RETURN NULL;
END $$;

CREATE TRIGGER webhooks_hear AFTER INSERT ON audit FOR EACH ROW EXECUTE FUNCTION webhooks_hear();

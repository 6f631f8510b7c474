-- Words about people in the audit stand apart from what was done, so that they may go: `detail` keeps a salted hash of
-- them, which the chain covers, and they keep the salt. And people whose account was erased: the id is never another's.

ALTER TABLE subjects ADD COLUMN erased_at timestamptz;
ALTER TABLE audit ADD COLUMN personal jsonb NOT NULL DEFAULT '{}';

CREATE OR REPLACE FUNCTION webhook_payload(webhook uuid, event text, entry audit) RETURNS jsonb LANGUAGE sql IMMUTABLE AS $$
    SELECT jsonb_build_object('webhook', webhook, 'type', event, 'at', extract(epoch FROM entry.at), 'data',
        jsonb_build_object('action', entry.action, 'actor', entry.actor, 'target', entry.target, 'sid', entry.sid,
            'detail', (entry.detail - 'personal') || (entry.personal - 'salt')))
$$;

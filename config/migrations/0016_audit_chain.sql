-- not transactional
-- The audit's rows are sealed in batches, each linked to the one before. What is not sealed yet stands in a table of its
-- own, put there in the transaction of the row: so a row that commits late is sealed late, and none is skipped.

CREATE TABLE IF NOT EXISTS audit_unsealed (
    at timestamptz NOT NULL,
    id bigint NOT NULL
);

CREATE TABLE IF NOT EXISTS audit_batches (
    number bigint PRIMARY KEY,                      -- without gaps; the first is 1
    sealed_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,                   -- of its rows
    members bytea NOT NULL,                         -- its rows in order, 64 bytes each
    digest bytea NOT NULL,                          -- of these and of the batch before
    sealed bytea NOT NULL                           -- the key of its addresses, sealed for this digest and no other
);

-- Where the chain begins when batches before it have gone with their rows: one row, sealed.
CREATE TABLE IF NOT EXISTS audit_anchor (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    sealed bytea NOT NULL
);

CREATE OR REPLACE FUNCTION audit_to_seal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit_unsealed (at, id) VALUES (NEW.at, NEW.id);
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER audit_to_seal AFTER INSERT ON audit FOR EACH ROW EXECUTE FUNCTION audit_to_seal();

-- Rows from before: the trigger waited for all who were writing, so what it did not see is committed by now.
INSERT INTO audit_unsealed (at, id)
SELECT at, id FROM audit a WHERE NOT EXISTS (SELECT FROM audit_unsealed u WHERE u.at = a.at AND u.id = a.id);

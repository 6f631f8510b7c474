-- The operator's last decision about a restored database: the era that it began. A process that could not reach the
-- database meanwhile, and remembers rows that it does not have, must not doubt it again.

ALTER TABLE revocation_head ADD COLUMN decided uuid;

-- The guest who asked for the account: nobody else is taken over by the link of its letter. No reference: a guest may go.

ALTER TABLE registrations ADD COLUMN guest text;

-- JSON arrays of texts, as the caller gave them.
ALTER TABLE sandboxes ADD COLUMN allow_out TEXT NOT NULL DEFAULT '[]';
ALTER TABLE sandboxes ADD COLUMN deny_out TEXT NOT NULL DEFAULT '[]';
-- It follows from the lists and internet_access.
ALTER TABLE sandboxes DROP COLUMN egress;

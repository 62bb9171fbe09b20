-- What sandboxes of a build get where their create does not say it: JSON. NULL: nothing is said.
ALTER TABLE builds ADD COLUMN policy TEXT;

-- The quota's count looks at states: with them in the index it reads no row, of which there is one for each living sandbox.
DROP INDEX live_sandboxes;
CREATE INDEX live_sandboxes ON sandboxes (team_id, state) WHERE state <> 'dead';

-- A page of a team's sandboxes is read from it in order; the state is there so that rows of other states are not read.
CREATE INDEX sandboxes_by_start ON sandboxes (team_id, coalesce(started_at, created_at), sandbox_id, state) WHERE state <> 'dead';

-- States: creating, running, pausing, paused, resuming, killing, dead. The last pause; all NULL when there was none.
ALTER TABLE sandboxes ADD COLUMN pause_epoch BIGINT;
-- control, host
ALTER TABLE sandboxes ADD COLUMN pause_by TEXT;
ALTER TABLE sandboxes ADD COLUMN paused_at BIGINT;
ALTER TABLE sandboxes ADD COLUMN pause_memory BIGINT;
-- At the deadline: kill, pause, pause_disk.
ALTER TABLE sandboxes ADD COLUMN at_deadline TEXT NOT NULL DEFAULT 'kill';
-- NULL: traffic does not resume it. Else for how many milliseconds.
ALTER TABLE sandboxes ADD COLUMN auto_resume BIGINT;
-- The build whose layers the host has; NULL: it is build_id.
ALTER TABLE sandboxes ADD COLUMN host_build_id TEXT;

-- Snapshots that sandboxes can be created from. Each is a build of a template; its name on the host is snapshot_name.
CREATE TABLE snapshots (
    build_id TEXT PRIMARY KEY,
    template_id TEXT NOT NULL,
    team_id TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    snapshot_name TEXT NOT NULL UNIQUE,
    host_build_id TEXT NOT NULL,
    memory BIGINT NOT NULL,
    disk_bytes BIGINT NOT NULL,
    image_bytes BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE INDEX snapshots_of_team ON snapshots (team_id, created_at);

-- Times are Unix milliseconds, sizes MiB, flags 0 or 1.

CREATE TABLE teams (
    team_id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    slug TEXT NOT NULL UNIQUE,
    banned INTEGER NOT NULL DEFAULT 0,
    blocked INTEGER NOT NULL DEFAULT 0,
    blocked_reason TEXT,
    -- NULL: the installation's setting holds.
    max_sandboxes INTEGER,
    max_sandbox_hours INTEGER,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE api_keys (
    key_id TEXT PRIMARY KEY NOT NULL,
    team_id TEXT NOT NULL REFERENCES teams (team_id),
    name TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,
    prefix TEXT NOT NULL,
    value_length INTEGER NOT NULL,
    mask_prefix TEXT NOT NULL,
    mask_suffix TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_used_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE access_tokens (
    key_id TEXT PRIMARY KEY NOT NULL,
    team_id TEXT NOT NULL REFERENCES teams (team_id),
    name TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,
    prefix TEXT NOT NULL,
    value_length INTEGER NOT NULL,
    mask_prefix TEXT NOT NULL,
    mask_suffix TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_used_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE templates (
    template_id TEXT PRIMARY KEY NOT NULL,
    team_id TEXT NOT NULL REFERENCES teams (team_id),
    public INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    spawn_count INTEGER NOT NULL DEFAULT 0,
    last_spawned_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE builds (
    build_id TEXT PRIMARY KEY NOT NULL,
    template_id TEXT NOT NULL REFERENCES templates (template_id),
    -- waiting, building, ready, failed
    status TEXT NOT NULL,
    cpu_milli INTEGER NOT NULL,
    memory_mib INTEGER NOT NULL,
    disk_mib INTEGER NOT NULL,
    pids INTEGER NOT NULL,
    default_user TEXT NOT NULL,
    default_workdir TEXT NOT NULL,
    envd_version TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    finished_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE aliases (
    -- Empty: global.
    namespace TEXT NOT NULL,
    alias TEXT NOT NULL,
    template_id TEXT NOT NULL REFERENCES templates (template_id),
    PRIMARY KEY (namespace, alias)
) STRICT, WITHOUT ROWID;

-- Rows are only ever added; the newest one of a template and tag holds.
CREATE TABLE assignments (
    assignment_number INTEGER PRIMARY KEY AUTOINCREMENT,
    assignment_id TEXT NOT NULL UNIQUE,
    template_id TEXT NOT NULL REFERENCES templates (template_id),
    build_id TEXT NOT NULL REFERENCES builds (build_id),
    tag TEXT NOT NULL,
    assigned_at INTEGER NOT NULL
) STRICT;

CREATE INDEX assignments_of_tag ON assignments (template_id, tag, assignment_number);

CREATE TABLE sandboxes (
    sandbox_id TEXT PRIMARY KEY NOT NULL,
    team_id TEXT NOT NULL,
    template_id TEXT NOT NULL,
    build_id TEXT NOT NULL,
    alias TEXT,
    -- JSON object of strings.
    metadata TEXT NOT NULL,
    cpu_milli INTEGER NOT NULL,
    memory_mib INTEGER NOT NULL,
    disk_mib INTEGER NOT NULL,
    pids INTEGER NOT NULL,
    -- denied, open
    egress TEXT NOT NULL,
    internet_access INTEGER,
    secure INTEGER NOT NULL,
    public_traffic INTEGER NOT NULL,
    envd_version TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    -- creating, running, killing, dead
    state TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    started_at INTEGER,
    deadline INTEGER NOT NULL,
    ended_at INTEGER,
    cause TEXT
) STRICT, WITHOUT ROWID;

-- The quota counts by it on every create, and lists read by it.
CREATE INDEX live_sandboxes ON sandboxes (team_id) WHERE state <> 'dead';
CREATE INDEX dead_sandboxes ON sandboxes (ended_at) WHERE state = 'dead';

CREATE TABLE idempotency_claims (
    team_id TEXT NOT NULL,
    claim_key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    sandbox_id TEXT NOT NULL,
    claimed_at INTEGER NOT NULL,
    PRIMARY KEY (team_id, claim_key)
) STRICT, WITHOUT ROWID;

-- Builds that are made over the API. A deleted template keeps its row, so that its ID is never a name.
ALTER TABLE templates ADD COLUMN deleted_at INTEGER;

CREATE TABLE build_details (
    build_id TEXT PRIMARY KEY NOT NULL REFERENCES builds (build_id),
    min_free_disk_mib INTEGER,
    -- JSON, each of them.
    specification TEXT,
    finished TEXT,
    failure TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE build_lines (
    line_number INTEGER PRIMARY KEY AUTOINCREMENT,
    build_id TEXT NOT NULL REFERENCES builds (build_id),
    logged_at INTEGER NOT NULL,
    -- 0 debug, 1 info, 2 warning, 3 error
    level INTEGER NOT NULL,
    step TEXT,
    message TEXT NOT NULL
) STRICT;

CREATE INDEX lines_of_build ON build_lines (build_id, line_number);
CREATE INDEX unfinished_builds ON builds (template_id) WHERE status IN ('waiting', 'building');

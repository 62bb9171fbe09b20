-- Logs of sandboxes. What the daemon inside says (is_guest) goes by the number that it has there, the rest by one of its server.
CREATE TABLE log_lines (
    sandbox_id TEXT NOT NULL,
    is_guest INTEGER NOT NULL,
    logged_at INTEGER NOT NULL,
    line_number INTEGER NOT NULL,
    -- 0 debug, 1 info, 2 warning, 3 error
    level INTEGER NOT NULL,
    logger TEXT NOT NULL,
    message TEXT NOT NULL,
    -- JSON
    fields TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    -- By the clock of the server: a guest may give its lines any time.
    kept_at INTEGER NOT NULL,
    PRIMARY KEY (sandbox_id, is_guest, logged_at, line_number)
) STRICT, WITHOUT ROWID;

CREATE INDEX lines_by_age ON log_lines (kept_at);

-- What sandboxes used and how many a team had, a point for some minutes.
CREATE TABLE samples (
    -- The ID of a sandbox or of a team.
    subject TEXT NOT NULL,
    taken_at INTEGER NOT NULL,
    -- JSON
    sample TEXT NOT NULL,
    PRIMARY KEY (subject, taken_at)
) STRICT, WITHOUT ROWID;

CREATE INDEX samples_by_age ON samples (taken_at);

-- Builds that are deleted here and that hosts may still know.
CREATE TABLE forgotten_builds (
    build_id TEXT PRIMARY KEY
);

CREATE INDEX assignments_of_build ON assignments (build_id);

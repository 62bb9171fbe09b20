-- What several servers note, each at a moment of its own, is one line: of a sandbox's decisions, those numbered from 2^62 on. The greatest
-- number is that of ends, of which older servers may have left two.
CREATE UNIQUE INDEX lines_once ON log_lines (sandbox_id, line_number)
    WHERE is_guest = 0 AND line_number >= 4611686018427387904 AND line_number < 9223372036854775807;

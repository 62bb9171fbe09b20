//! What the daemon does for its clients, kept for the host to read: a ring, bounded in lines and bytes, where the oldest go first.
//!
//! Never what programs read or print, nor their environment.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use soulbox_envd_proto::{LogLevel, LogLine, MAX_LOG_BYTES, MAX_LOG_LINES};

/// The longest value of a field, in characters; the rest is cut off.
const LONGEST_VALUE: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct Log {
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    /// With their JSON, which is what counts.
    lines: VecDeque<(u64, String)>,
    bytes: usize,
    last: u64,
}

impl Log {
    pub(crate) fn note(
        &self,
        level: LogLevel,
        logger: &str,
        message: &str,
        fields: impl IntoIterator<Item = (&'static str, String)>,
    ) {
        let fields: BTreeMap<_, _> = fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), cut(value)))
            .collect();
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.last += 1;
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let line = LogLine {
            number: ring.last,
            at: since.map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }),
            level,
            logger: logger.to_owned(),
            message: message.to_owned(),
            fields,
        };
        let Ok(mut text) = serde_json::to_string(&line) else {
            return;
        };
        text.push('\n');
        ring.bytes += text.len();
        let number = ring.last;
        ring.lines.push_back((number, text));
        while ring.lines.len() > MAX_LOG_LINES || ring.bytes > MAX_LOG_BYTES {
            let Some((_, oldest)) = ring.lines.pop_front() else {
                break;
            };
            ring.bytes -= oldest.len();
        }
    }

    /// All lines after that number, as JSON each.
    pub(crate) fn after(&self, number: u64) -> String {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = ring.lines.iter().filter(|(it, _)| *it > number);
        lines.map(|(_, text)| text.as_str()).collect()
    }
}

fn cut(mut value: String) -> String {
    if let Some((end, _)) = value.char_indices().nth(LONGEST_VALUE) {
        value.truncate(end);
        value.push('…');
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> Vec<u64> {
        let line = |line| {
            serde_json::from_str::<LogLine>(line)
                .expect("a line")
                .number
        };
        text.lines().map(line).collect()
    }

    #[test]
    fn lines_are_numbered_and_read_from_where_the_reader_was() {
        let log = Log::default();
        for _ in 0..3 {
            log.note(
                LogLevel::Info,
                "process",
                "a message",
                [("pid", "7".to_owned())],
            );
        }
        assert_eq!(numbers(&log.after(0)), [1, 2, 3]);
        assert_eq!(numbers(&log.after(2)), [3]);
        assert_eq!(log.after(3), "");
    }

    #[test]
    fn neither_many_lines_nor_long_ones_grow_it() {
        let log = Log::default();
        for _ in 0..2 * MAX_LOG_LINES {
            log.note(LogLevel::Info, "process", "a message", []);
        }
        let kept = numbers(&log.after(0));
        assert_eq!(kept.len(), MAX_LOG_LINES);
        assert_eq!(kept.last(), Some(&(2 * MAX_LOG_LINES as u64)));
        for _ in 0..2 * MAX_LOG_LINES {
            log.note(
                LogLevel::Info,
                "process",
                "",
                [("command", "\u{1}é".repeat(LONGEST_VALUE))],
            );
        }
        let text = log.after(0);
        assert!(
            text.len() <= MAX_LOG_BYTES && text.len() > MAX_LOG_BYTES / 2,
            "{}",
            text.len()
        );
    }
}

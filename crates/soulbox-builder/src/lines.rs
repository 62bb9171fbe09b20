//! Output of programs as lines of a log: split at line ends, bounded, and never held back for long.

use std::collections::VecDeque;

/// A line is cut here; programs that draw progress bars write for ever without an end of line.
const LONGEST: usize = 8 << 10;
/// Lines that a failure repeats, and how much of each: all of them are less than a line of a log may be.
const LAST: usize = 10;
const LONGEST_REPEATED: usize = 1 << 10;

/// One stream of a program.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// The lines that these bytes complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut whole = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                whole.push(self.take());
            } else {
                self.begun.push(*byte);
                if self.begun.len() >= LONGEST {
                    whole.push(self.take());
                }
            }
        }
        whole
    }

    /// What is left without an end of line.
    pub(crate) fn finish(&mut self) -> Option<String> {
        (!self.begun.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let bytes = std::mem::take(&mut self.begun);
        let text = String::from_utf8_lossy(&bytes);
        // What was drawn over on a terminal is not shown.
        let text = text.trim_end_matches('\r');
        text.rsplit('\r').next().unwrap_or("").to_owned()
    }
}

/// The last lines of a program, for its failure.
#[derive(Debug, Default)]
pub(crate) struct Tail(VecDeque<String>);

impl Tail {
    pub(crate) fn push(&mut self, line: &str) {
        if self.0.len() == LAST {
            self.0.pop_front();
        }
        let line = &line[..line.floor_char_boundary(LONGEST_REPEATED)];
        self.0.push_back(line.to_owned());
    }

    /// Empty, or the lines, each begun by an end of line.
    pub(crate) fn text(&self) -> String {
        self.0.iter().map(|line| format!("\n{line}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_bounded() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"one\ntw"), ["one"]);
        assert_eq!(lines.push(b"o\r\n\n10%\r20%\n"), ["two", "", "20%"]);
        assert_eq!(lines.push(b"\xff"), [""; 0]);
        assert_eq!(lines.finish().as_deref(), Some("\u{fffd}"));
        assert_eq!(lines.finish(), None);
        let long = lines.push(&vec![b'x'; 3 * LONGEST + 1]);
        assert_eq!(
            long.iter().map(String::len).collect::<Vec<_>>(),
            [LONGEST; 3]
        );
    }

    #[test]
    fn a_tail_is_the_last_lines() {
        let mut tail = Tail::default();
        assert_eq!(tail.text(), "");
        for number in 0..12 {
            tail.push(&number.to_string());
        }
        assert_eq!(tail.text(), "\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11");
        for _ in 0..10 {
            tail.push(&"ü".repeat(LONGEST_REPEATED));
        }
        assert_eq!(tail.text().len(), 10 * (LONGEST_REPEATED + 1));
    }
}

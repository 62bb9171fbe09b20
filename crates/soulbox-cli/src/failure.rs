//! How a command fails: a cause, a hint, an exit status. Printed once, by `main`.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

/// Exit status 1: it was asked right and could not be done.
const FAILED: u8 = 1;
/// Exit status 2: it was asked wrong (arguments, configuration).
const USAGE: u8 = 2;
/// Exit status 3: what it works on is of a newer soulbox, so starting it again does not help.
pub const TOO_OLD: u8 = 3;
/// A signal ended it, as a shell says it of its own programs.
pub const INTERRUPTED: u8 = 130;

/// The end of a command that did not do what it was asked to.
#[derive(Debug)]
pub struct Failure {
    cause: anyhow::Error,
    hint: Option<String>,
    status: u8,
}

impl Failure {
    /// Could not be done; exit status 1.
    pub fn new(cause: impl Into<anyhow::Error>) -> Self {
        Self {
            cause: cause.into(),
            hint: None,
            status: FAILED,
        }
    }

    /// Was asked wrong; exit status 2.
    pub fn usage(cause: impl Into<anyhow::Error>) -> Self {
        Self {
            cause: cause.into(),
            hint: None,
            status: USAGE,
        }
    }

    /// Somebody stopped it; exit status 130.
    pub fn interrupted(cause: impl Into<anyhow::Error>) -> Self {
        Self {
            cause: cause.into(),
            hint: None,
            status: INTERRUPTED,
        }
    }

    /// This soulbox is older than what it was to work on; exit status 3.
    #[must_use]
    pub fn too_old(mut self) -> Self {
        self.status = TOO_OLD;
        self
    }

    /// What the user can do about it, in one line.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn hint_if(self, hint: Option<impl Into<String>>) -> Self {
        match hint {
            Some(hint) => self.hint(hint),
            None => self,
        }
    }

    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.status)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(cause: anyhow::Error) -> Self {
        Self::new(cause)
    }
}

/// `error: ` and the whole chain in one line; `hint: ` in a second one.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", one_line(&chain(self.cause.as_ref())))?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {}", one_line(hint)),
            None => Ok(()),
        }
    }
}

/// An error and its causes, joined by colons.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Without what a terminal would obey: neither a model nor a sandbox has anything to command here.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\n' | '\t' | '\r' => c,
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

fn one_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_not_commanded() {
        assert_eq!(plain("a\x1b[2J\tb\n\u{9b}"), "a\u{fffd}[2J\tb\n\u{fffd}");
    }

    #[test]
    fn a_failure_is_a_line_of_cause_and_a_line_of_hint() {
        let cause = anyhow::anyhow!("no such\nfile").context("failed to open `x`");
        let failure = Failure::new(cause).hint("create it");
        assert_eq!(
            failure.to_string(),
            "error: failed to open `x`: no such file\nhint: create it"
        );
    }
}

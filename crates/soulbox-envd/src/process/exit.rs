//! How a process ended, in the words that clients know.

use rustix::process::WaitIdStatus;
use soulbox_envd_proto::rpc::process::process_event::EndEvent;

/// Signal names 1 to 15, as clients know them.
const SIGNALS: [&str; 15] = [
    "hangup",
    "interrupt",
    "quit",
    "illegal instruction",
    "trace/breakpoint trap",
    "aborted",
    "bus error",
    "floating point exception",
    "killed",
    "user defined signal 1",
    "segmentation fault",
    "user defined signal 2",
    "broken pipe",
    "alarm clock",
    "terminated",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(i32),
    Signal { number: i32, core_dumped: bool },
}

/// Whether the process outlived the deadline of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    Within,
    Expired,
}

impl Exit {
    /// `None` for a status that is no exit.
    pub(crate) fn of(status: &WaitIdStatus) -> Option<Self> {
        if let Some(code) = status.exit_status() {
            return Some(Self::Code(code));
        }
        status.terminating_signal().map(|number| Self::Signal {
            number,
            core_dumped: status.dumped(),
        })
    }

    pub(crate) fn event(self, lifetime: Lifetime) -> EndEvent {
        let (exit_code, exited, status) = match self {
            Self::Code(code) => (code, true, format!("exit status {code}")),
            Self::Signal {
                number,
                core_dumped,
            } => {
                let name = usize::try_from(number - 1)
                    .ok()
                    .and_then(|index| SIGNALS.get(index))
                    .map_or_else(|| format!("signal {number}"), |name| (*name).to_owned());
                (
                    -1,
                    false,
                    format!(
                        "signal: {name}{}",
                        if core_dumped { " (core dumped)" } else { "" }
                    ),
                )
            }
        };
        let error = match (self, lifetime) {
            (Self::Code(0), Lifetime::Within) => None,
            (Self::Code(0), Lifetime::Expired) => Some("context deadline exceeded".to_owned()),
            _ => Some(status.clone()),
        };
        EndEvent {
            exit_code,
            exited,
            status,
            error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        exit: Exit,
        lifetime: Lifetime,
        code: i32,
        exited: bool,
        status: &str,
        error: Option<&str>,
    ) {
        let event = exit.event(lifetime);
        assert_eq!(
            (
                event.exit_code,
                event.exited,
                event.status.as_str(),
                event.error.as_deref()
            ),
            (code, exited, status, error)
        );
    }

    #[test]
    fn ends_have_the_known_words() {
        use Lifetime::{Expired, Within};
        check(Exit::Code(0), Within, 0, true, "exit status 0", None);
        check(
            Exit::Code(0),
            Expired,
            0,
            true,
            "exit status 0",
            Some("context deadline exceeded"),
        );
        check(
            Exit::Code(3),
            Within,
            3,
            true,
            "exit status 3",
            Some("exit status 3"),
        );
        let killed = Exit::Signal {
            number: 9,
            core_dumped: false,
        };
        check(
            killed,
            Within,
            -1,
            false,
            "signal: killed",
            Some("signal: killed"),
        );
        let crashed = Exit::Signal {
            number: 11,
            core_dumped: true,
        };
        check(
            crashed,
            Within,
            -1,
            false,
            "signal: segmentation fault (core dumped)",
            Some("signal: segmentation fault (core dumped)"),
        );
        let odd = Exit::Signal {
            number: 34,
            core_dumped: false,
        };
        check(
            odd,
            Within,
            -1,
            false,
            "signal: signal 34",
            Some("signal: signal 34"),
        );
    }
}

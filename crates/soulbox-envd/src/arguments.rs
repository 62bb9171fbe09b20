//! The command line.

use std::net::SocketAddr;

pub const USAGE: &str = "usage: soulbox-envd (--listen-fd N | --listen ADDR) [--init-secret-fd N] [--default-user USER] \
[--default-workdir DIR] | --version";

#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    Version,
    Serve(Serve),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Serve {
    pub listen: Listen,
    pub init_secret_fd: Option<i32>,
    pub default_user: Option<String>,
    pub default_workdir: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listen {
    /// An inherited socket that listens already.
    Inherited(i32),
    Address(SocketAddr),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    #[error("unknown argument '{0}'")]
    Unknown(String),
    #[error("argument '{0}' needs a value")]
    NoValue(&'static str),
    #[error("argument '{name}' cannot be '{value}'")]
    Invalid { name: &'static str, value: String },
    #[error("either --listen-fd or --listen is needed")]
    NoListener,
}

pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Command, ArgumentError> {
    let mut arguments = arguments.into_iter();
    let (mut listen, mut init_secret_fd, mut default_user, mut default_workdir) =
        (None, None, None, None);
    while let Some(argument) = arguments.next() {
        let mut value = |name| arguments.next().ok_or(ArgumentError::NoValue(name));
        match argument.as_str() {
            "--version" => return Ok(Command::Version),
            "--listen-fd" => {
                listen = Some(Listen::Inherited(number(
                    "--listen-fd",
                    value("--listen-fd")?,
                )?))
            }
            "--listen" => listen = Some(Listen::Address(number("--listen", value("--listen")?)?)),
            "--init-secret-fd" => {
                init_secret_fd = Some(number("--init-secret-fd", value("--init-secret-fd")?)?)
            }
            "--default-user" => default_user = Some(value("--default-user")?),
            "--default-workdir" => default_workdir = Some(value("--default-workdir")?),
            _ => return Err(ArgumentError::Unknown(argument)),
        }
    }
    let listen = listen.ok_or(ArgumentError::NoListener)?;
    Ok(Command::Serve(Serve {
        listen,
        init_secret_fd,
        default_user,
        default_workdir,
    }))
}

fn number<T: std::str::FromStr>(name: &'static str, value: String) -> Result<T, ArgumentError> {
    value
        .parse()
        .map_err(|_| ArgumentError::Invalid { name, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: Result<Command, ArgumentError>) {
        assert_eq!(
            parse(line.split_whitespace().map(str::to_owned)),
            expected,
            "{line}"
        );
    }

    #[test]
    fn lines_parse_or_say_why_not() {
        check("--version", Ok(Command::Version));
        let serve = Serve {
            listen: Listen::Inherited(3),
            init_secret_fd: Some(4),
            default_user: Some("user".into()),
            default_workdir: None,
        };
        check(
            "--listen-fd 3 --init-secret-fd 4 --default-user user",
            Ok(Command::Serve(serve)),
        );
        check("--default-user user", Err(ArgumentError::NoListener));
        check("--listen", Err(ArgumentError::NoValue("--listen")));
        check(
            "--listen x",
            Err(ArgumentError::Invalid {
                name: "--listen",
                value: "x".into(),
            }),
        );
        check("--port 1", Err(ArgumentError::Unknown("--port".into())));
    }
}

//! Mistakes in settings: where, what, and what to do.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::failure::Failure;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    File {
        path: PathBuf,
        line: usize,
        column: usize,
    },
    Variable(String),
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => {
                write!(f, "{} line {line}, column {column}", path.display())
            }
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("failed to read config file `{path}`")]
    FileUnreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{at}: {message}")]
    FileSyntax { at: Source, message: String },
    #[error("{at}: unknown setting `{key}`")]
    UnknownKey {
        at: Source,
        key: String,
        known: String,
    },
    #[error("{at}: `{value}` is not {wanted}")]
    BadValue {
        at: Source,
        value: String,
        wanted: String,
    },
    #[error("{given} is set and {missing} is not")]
    HalfTls {
        given: &'static str,
        missing: &'static str,
    },
    #[error("failed to read the TLS {what} `{path}`")]
    TlsUnreadable {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{path}` contains no TLS {what} in PEM form")]
    NotPem { what: &'static str, path: PathBuf },
    #[error("others can reach {listen}, and there is no TLS")]
    OpenWithoutTls { listen: SocketAddr },
    #[error("data directory `{path}` cannot be made absolute")]
    DataDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl SettingsError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::FileUnreadable { .. } => "name a readable file with --config or SOULBOX_CONFIG".into(),
            Self::FileSyntax { .. } => "the config file is TOML, with lines such as listen = \"127.0.0.1:3000\"".into(),
            Self::UnknownKey { known, .. } => format!("known are {known}"),
            Self::BadValue { at, .. } => format!("correct {at}"),
            Self::HalfTls { missing, .. } => format!("give both, or neither: --{}", missing.replace('_', "-")),
            Self::TlsUnreadable { .. } => "give the path of a file that root can read".into(),
            Self::NotPem { .. } => "a PEM file has lines such as -----BEGIN CERTIFICATE-----".into(),
            Self::OpenWithoutTls { .. } => {
                "give --tls-cert and --tls-key, listen on 127.0.0.1, or accept plain text with --insecure".into()
            }
            Self::DataDir { .. } => "give an absolute path with --data-dir".into(),
        }
    }
}

impl From<SettingsError> for Failure {
    fn from(error: SettingsError) -> Self {
        let hint = error.hint();
        Self::usage(error).hint(hint)
    }
}

/// A value that its key does not take; where it stood is added by the reader.
#[derive(Debug)]
pub(super) struct BadValue {
    value: String,
    wanted: String,
}

impl BadValue {
    pub(super) fn new(value: &str, wanted: impl Into<String>) -> Self {
        Self {
            value: value.chars().take(200).collect(),
            wanted: wanted.into(),
        }
    }

    pub(super) fn from(self, at: Source) -> SettingsError {
        SettingsError::BadValue {
            at,
            value: self.value,
            wanted: self.wanted,
        }
    }
}

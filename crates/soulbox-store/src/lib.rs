//! Implementations of [`soulbox_control::Store`]: SQLite ([`SqliteStore`]). The only crate that links sqlx.
#![forbid(unsafe_code)]

mod sqlite;

pub use sqlite::{OpenError, SqliteStore};

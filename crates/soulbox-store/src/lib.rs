//! Implementations of [`soulbox_control::Store`]: SQLite ([`SqliteStore`]) for one server, PostgreSQL ([`PostgresStore`]) for several.
//! The only crate that links sqlx. One suite, `tests/store.rs`, holds both to the same rules.
#![forbid(unsafe_code)]

mod backup;
mod open;
mod postgres;
mod rows;
mod sqlite;
mod templates;

pub use backup::BackupError;
pub use open::{Brought, OpenError};
pub use postgres::{PostgresStore, postgres_options};
pub use sqlite::SqliteStore;
pub use sqlx::postgres::PgConnectOptions;

use soulbox_control::StoreError;

/// What a failed query becomes.
fn failed<E>(action: &'static str) -> impl FnOnce(E) -> StoreError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |source| StoreError {
        action,
        source: Box::new(source),
    }
}

//! Implementations of [`soulbox_control::Store`]: SQLite ([`SqliteStore`]) for one server, PostgreSQL ([`PostgresStore`]) for several.
//! The only crate that links sqlx. One suite, `tests/store.rs`, holds both to the same rules.
#![forbid(unsafe_code)]

mod backup;
mod history;
mod open;
mod pages;
mod postgres;
mod retired;
mod rows;
mod sqlite;
mod statements;
mod store;
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
    move |source| {
        let source: Box<dyn std::error::Error + Send + Sync> = Box::new(source);
        StoreError {
            action,
            unreachable: source.downcast_ref().is_some_and(is_unreachable),
            source,
        }
    }
}

/// Whether a server could not be reached, or is ending or starting; a file of SQLite is always there.
fn is_unreachable(error: &sqlx::Error) -> bool {
    // Class 08 is of connections; 57P01 to 57P03 are a server that ends, has crashed, or is not ready yet.
    const SERVER: [&str; 3] = ["57P01", "57P02", "57P03"];
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        sqlx::Error::Database(error) => error
            .code()
            .is_some_and(|code| code.starts_with("08") || SERVER.contains(&&*code)),
        _ => false,
    }
}

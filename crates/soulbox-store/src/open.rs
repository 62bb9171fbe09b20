//! The schema: which version a database has, and bringing it to the one that this build knows. Both databases count alike.

use std::cmp::Ordering;
use std::path::PathBuf;

use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::{Database, Pool};

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

/// The database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("failed to open the database `{path}`")]
    Open {
        path: PathBuf,
        #[source]
        source: sqlx::Error,
    },
    #[error("the database URL is not usable: {0}")]
    Url(String),
    #[error("failed to connect to the database")]
    Connect(#[source] sqlx::Error),
    #[error("the database has schema version {found}, this soulbox knows versions up to {known}")]
    Newer { found: i64, known: i64 },
    #[error("the database has schema version {found}, this soulbox needs {known}")]
    Older { found: i64, known: i64 },
    #[error("failed to bring the database to schema version {to}")]
    Migrate {
        to: i64,
        #[source]
        source: MigrateError,
    },
    #[error("failed to read the version of the database's schema")]
    Version(#[source] MigrateError),
}

/// From which version to which a database was brought; 0 is an empty one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brought {
    pub from: i64,
    pub to: i64,
}

/// The migrations of one kind of database.
pub(crate) struct Schema(&'static Migrator);

impl Schema {
    pub(crate) fn sqlite() -> Self {
        Self(&SQLITE)
    }

    pub(crate) fn postgres() -> Self {
        Self(&POSTGRES)
    }

    /// The newest version that this build knows.
    pub(crate) fn newest(&self) -> i64 {
        self.0
            .iter()
            .map(|migration| migration.version)
            .max()
            .unwrap_or(0)
    }

    /// Refuses a database that is not of the newest version; changes nothing.
    pub(crate) async fn demand_newest<DB: Database>(&self, pool: &Pool<DB>) -> Result<(), OpenError>
    where
        DB::Connection: Migrate,
    {
        let (found, known) = (found(pool).await?, self.newest());
        match found.cmp(&known) {
            Ordering::Equal => Ok(()),
            Ordering::Greater => Err(OpenError::Newer { found, known }),
            Ordering::Less => Err(OpenError::Older { found, known }),
        }
    }

    /// Runs what is missing. Each migration is a transaction.
    ///
    /// # Errors
    /// [`OpenError::Newer`] without a change when the database is ahead of this build.
    pub(crate) async fn bring_up<DB: Database>(&self, pool: &Pool<DB>) -> Result<Brought, OpenError>
    where
        DB::Connection: Migrate,
    {
        let from = found(pool).await?;
        let known = self.newest();
        if from > known {
            return Err(OpenError::Newer { found: from, known });
        }
        self.0
            .run(pool)
            .await
            .map_err(|source| OpenError::Migrate { to: known, source })?;
        Ok(Brought { from, to: known })
    }
}

async fn found<DB: Database>(pool: &Pool<DB>) -> Result<i64, OpenError>
where
    DB::Connection: Migrate,
{
    let version = |error: sqlx::Error| OpenError::Version(error.into());
    let table = &Migrator::DEFAULT.table_name;
    let mut connection = pool.acquire().await.map_err(version)?;
    // Two that make the table at once: one of them would hear of a type that exists already.
    connection.lock().await.map_err(OpenError::Version)?;
    let applied = match connection.ensure_migrations_table(table).await {
        Ok(()) => connection.list_applied_migrations(table).await,
        Err(error) => Err(error),
    };
    connection.unlock().await.map_err(OpenError::Version)?;
    let applied = applied.map_err(OpenError::Version)?;
    Ok(applied.iter().map(|it| it.version).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_databases_know_the_same_newest_version() {
        assert_eq!(Schema::sqlite().newest(), Schema::postgres().newest());
    }
}

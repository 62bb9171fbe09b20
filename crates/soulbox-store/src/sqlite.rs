//! The records in SQLite, in WAL mode.
//!
//! Two writers: rows of sandboxes are written with `synchronous=NORMAL`, so that no create waits for a disk (a power failure ends
//! sandboxes anyway); everything else with `FULL`. The first one never checkpoints: `Store::maintain` does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use soulbox_control::{
    Change, Changes, IdempotencyClaim, Progress, Reservation, SandboxRow, StoreError, Swap,
};
use soulbox_types::{DeathCause, Epoch, SandboxId, SandboxState, TeamId};
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Row, Sqlite, Transaction};

use crate::failed;
use crate::open::{Brought, OpenError, Schema};
use crate::rows::{self, number, optional};
use crate::statements::on_sqlite;
use crate::store::Told;

/// How long a writer waits for the other one.
const BUSY: Duration = Duration::from_secs(5);
const READERS: u32 = 4;
/// How soon a change of `soulbox admin` takes effect.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The records in one SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    fast: SqlitePool,
    durable: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the file, makes it if it is not there, and brings it to the newest schema. The directory must exist.
    ///
    /// # Errors
    /// The file cannot be opened, or is of a newer schema.
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        let durable = open_durable(path, true).await?;
        Schema::sqlite().bring_up(&durable).await?;
        Self::around(durable, path).await
    }

    /// Opens a file of the newest schema beside the server that uses it; changes nothing.
    ///
    /// # Errors
    /// There is no such file, or it has another schema.
    pub async fn open_as_is(path: &Path) -> Result<Self, OpenError> {
        let durable = open_durable(path, false).await?;
        Schema::sqlite().demand_newest(&durable).await?;
        Self::around(durable, path).await
    }

    /// Brings the schema of a file to the newest version.
    ///
    /// # Errors
    /// There is no such file, it is newer than this build knows, or a step failed.
    pub async fn migrate(path: &Path) -> Result<Brought, OpenError> {
        let durable = open_durable(path, false).await?;
        let brought = Schema::sqlite().bring_up(&durable).await;
        durable.close().await;
        brought
    }

    /// The other connections, for a schema that does not change any more: one that has read an older one ends its thread when a statement
    /// of it turns out to have another number of columns.
    async fn around(durable: SqlitePool, path: &Path) -> Result<Self, OpenError> {
        let fast = options(path)
            .synchronous(SqliteSynchronous::Normal)
            // A checkpoint syncs; the durable writer does that.
            .pragma("wal_autocheckpoint", "0");
        let readers = options(path).read_only(true);
        Ok(Self {
            durable,
            fast: pool(1).connect_with(fast).await.map_err(unopened(path))?,
            readers: pool(READERS)
                .connect_with(readers)
                .await
                .map_err(unopened(path))?,
        })
    }

    /// An empty database in memory that ends with the value; for tests of what lies above.
    ///
    /// # Errors
    /// SQLite has no memory left.
    pub async fn open_in_memory() -> Result<Self, OpenError> {
        let options = SqliteConnectOptions::new()
            .in_memory(true)
            .foreign_keys(true);
        // Every connection would be a database of its own, so there is one.
        let only = pool(1)
            .connect_with(options)
            .await
            .map_err(|source| OpenError::Open {
                path: PathBuf::from(":memory:"),
                source,
            })?;
        Schema::sqlite().bring_up(&only).await?;
        Ok(Self {
            fast: only.clone(),
            durable: only.clone(),
            readers: only,
        })
    }

    /// Tells the server that uses the file that another program changed keys, teams or templates.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn announce(&self) -> Result<(), StoreError> {
        let announced = async {
            let mut transaction = self.begin().await?;
            let next = told(&mut *transaction).await?.wrapping_add(1);
            sqlx::query(sqlx::AssertSqlSafe(format!("PRAGMA user_version = {next}")))
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await
        };
        announced.await.map_err(failed("announce a change"))
    }

    /// Writes everything to the file proper and closes it; calls after that fail.
    pub async fn close(&self) {
        self.readers.close().await;
        self.fast.close().await;
        self.durable.close().await;
    }
}

/// How often other programs announced a change: a number in the file's header that SQLite leaves to its users.
async fn told<'c>(
    from: impl sqlx::Executor<'c, Database = sqlx::Sqlite>,
) -> Result<i32, sqlx::Error> {
    sqlx::query("PRAGMA user_version")
        .fetch_one(from)
        .await?
        .try_get(0)
}

/// Looks for announced changes from time to time.
pub(crate) struct Announced {
    readers: SqlitePool,
    told: i32,
    /// The number says that there was a change, and not of what.
    also_templates: bool,
}

#[async_trait]
impl Changes for Announced {
    async fn next(&mut self) -> Change {
        if std::mem::take(&mut self.also_templates) {
            return Change::Templates;
        }
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // What cannot be read now is read the next time.
            if let Ok(told) = told(&self.readers).await
                && told != self.told
            {
                self.told = told;
                self.also_templates = true;
                return Change::Keys;
            }
        }
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(BUSY)
        .foreign_keys(true)
}

fn unopened(path: &Path) -> impl FnOnce(sqlx::Error) -> OpenError {
    let path = path.to_owned();
    |source| OpenError::Open { path, source }
}

/// The connection that comes first: it makes the file and its schema.
async fn open_durable(path: &Path, create: bool) -> Result<SqlitePool, OpenError> {
    let options = options(path)
        .create_if_missing(create)
        .synchronous(SqliteSynchronous::Full);
    let opened = pool(1).connect_with(options).await;
    opened.map_err(unopened(path))
}

/// All connections from the start on: each has a thread, and a server that has opened its last one does not grow any more.
fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .min_connections(connections)
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        // Connections are to a file: they do not go stale, and a ping would double the cost of a small query.
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
}

/// What [`crate::store`] needs of a database.
impl SqliteStore {
    /// One file is one server's.
    pub(crate) const SHARED: bool = false;

    pub(crate) async fn read(&self) -> Result<PoolConnection<Sqlite>, sqlx::Error> {
        self.readers.acquire().await
    }

    /// A transaction that sees one moment.
    pub(crate) async fn begin_reading(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.readers.begin().await
    }

    /// A transaction that is on disk when it is committed.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.durable.begin_with("BEGIN IMMEDIATE").await
    }

    /// A transaction that a power failure may undo: of rows of sandboxes, and of logs.
    pub(crate) async fn begin_fast(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.fast.begin_with("BEGIN IMMEDIATE").await
    }

    /// A transaction that nobody waits for.
    pub(crate) async fn begin_behind(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.begin_fast().await
    }

    /// A transaction in which sandboxes of the team are counted: there is one writer.
    pub(crate) async fn begin_placing(
        &self,
        _: &TeamId,
    ) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.begin_fast().await
    }

    pub(crate) async fn commit(
        &self,
        transaction: Transaction<'static, Sqlite>,
        _: Told<'_>,
    ) -> Result<(), sqlx::Error> {
        transaction.commit().await
    }

    pub(crate) async fn reserve_row(
        &self,
        row: &SandboxRow,
        limit: u32,
        claim: Option<&IdempotencyClaim>,
    ) -> Result<Reservation, sqlx::Error> {
        if claim.is_none() {
            // One statement needs no transaction, and no create waits for its round trips.
            let mut connection = self.fast.acquire().await?;
            return on_sqlite::reserve(&mut connection, row, limit, None).await;
        }
        let mut transaction = self.begin_fast().await?;
        let outcome = on_sqlite::reserve(&mut transaction, row, limit, claim).await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    pub(crate) async fn advance_row(
        &self,
        sandbox_id: &SandboxId,
        expected: (SandboxState, Epoch),
        progress: &Progress,
    ) -> Result<Swap, sqlx::Error> {
        // A pause outlives a power failure, unlike what runs.
        let writer = if progress.state == SandboxState::Paused {
            &self.durable
        } else {
            &self.fast
        };
        let (pause_epoch, pause_by, paused_at, pause_memory) = rows::pause_columns(progress.pause);
        let changed = sqlx::query(
            "UPDATE sandboxes SET state = ?, epoch = ?, started_at = ?, deadline = ?, ended_at = ?, cause = ?, \
             pause_epoch = ?, pause_by = ?, paused_at = ?, pause_memory = ? \
             WHERE sandbox_id = ? AND state = ? AND epoch = ?",
        )
        .bind(rows::state_name(progress.state))
        .bind(number(progress.epoch.0))
        .bind(optional(progress.started_at))
        .bind(number(progress.deadline.0))
        .bind(optional(progress.ended_at))
        .bind(progress.cause.map(DeathCause::as_str))
        .bind(pause_epoch)
        .bind(pause_by)
        .bind(paused_at)
        .bind(pause_memory)
        .bind(sandbox_id.as_str())
        .bind(rows::state_name(expected.0))
        .bind(number(expected.1.0))
        .execute(writer)
        .await?;
        Ok(if changed.rows_affected() == 1 {
            Swap::Done
        } else {
            Swap::Conflict
        })
    }

    pub(crate) async fn listen(&self) -> Result<Announced, sqlx::Error> {
        let readers = self.readers.clone();
        let told = told(&readers).await?;
        Ok(Announced {
            readers,
            told,
            also_templates: false,
        })
    }

    pub(crate) async fn checkpoint(&self) -> Result<(), sqlx::Error> {
        // PASSIVE never makes a writer wait.
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
            .execute(&self.durable)
            .await
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_connections_are_there_from_the_start() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("soulbox.db");
        let store = SqliteStore::open(&path).await.expect("a file");
        assert_eq!(store.readers.size(), READERS);
        store.close().await;
    }
}

//! The records in PostgreSQL, for records that more than one server shares.
//!
//! The rules are those of SQLite. Where that one has a single writer, this one has locks: a reservation takes an advisory lock of its
//! team for the length of its transaction, a compare-and-swap is one UPDATE. Every commit is durable: a crash of PostgreSQL, unlike a power
//! failure, does not end sandboxes. What one server changes the others hear by NOTIFY in the same transaction ([`changes`]).

mod changes;

use std::str::FromStr;
use std::time::Duration;

use soulbox_control::{IdempotencyClaim, Progress, Reservation, SandboxRow, Swap};
use soulbox_types::{DeathCause, Epoch, SandboxId, SandboxState, TeamId};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{Postgres, Transaction};

use self::changes::Heard;
use crate::open::{Brought, OpenError, Schema};
use crate::rows::{self, number, optional};
use crate::statements::on_postgres;
use crate::store::Told;

/// Connections of one server; a create holds one for some milliseconds.
const CONNECTIONS: u32 = 16;
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
const ACQUIRE_WITHIN: Duration = Duration::from_secs(10);
/// No statement and no lock waits for ever, and a transaction that a dead server left ends.
const SESSION: [(&str, &str); 3] = [
    ("statement_timeout", "10s"),
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "30s"),
];

/// The records in one PostgreSQL database. Clones share the connections.
#[derive(Debug, Clone)]
pub struct PostgresStore {
    pool: PgPool,
    /// Names this server in notifications, so that it does not hear itself.
    origin: String,
}

/// Where a database is, from a URL such as `postgres://user:password@host:5432/name` or `postgres://user@localhost/name?host=/run/postgresql`.
///
/// # Errors
/// [`OpenError::Url`]; the password is in no message.
pub fn postgres_options(url: &str) -> Result<PgConnectOptions, OpenError> {
    if !["postgres://", "postgresql://"]
        .iter()
        .any(|scheme| url.starts_with(scheme))
    {
        return Err(OpenError::Url(
            "it does not begin with postgres://".to_owned(),
        ));
    }
    let options = PgConnectOptions::from_str(url).map_err(|error| match error {
        sqlx::Error::Configuration(why) => OpenError::Url(why.to_string()),
        other => OpenError::Url(other.to_string()),
    })?;
    match options.get_ssl_mode() {
        // Without TLS in this build, `prefer` would silently mean plain text: so it is said to be.
        PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer => {
            Ok(options.ssl_mode(PgSslMode::Disable))
        }
        _ => Err(OpenError::Url(
            "sslmode asks for TLS, which is not there: use a unix socket, loopback, or a tunnel"
                .to_owned(),
        )),
    }
}

impl PostgresStore {
    /// Connects and brings the database to the newest schema; of several servers that do so at once one works and the others wait.
    ///
    /// # Errors
    /// The database cannot be reached, or is of a newer schema.
    pub async fn open(options: PgConnectOptions) -> Result<Self, OpenError> {
        let store = Self::connect(options).await?;
        store.migrate().await?;
        Ok(store)
    }

    /// Connects to a database of the newest schema; changes nothing.
    ///
    /// # Errors
    /// The database cannot be reached, or has another schema.
    pub async fn open_as_is(options: PgConnectOptions) -> Result<Self, OpenError> {
        let store = Self::connect(options).await?;
        Schema::postgres().demand_newest(&store.pool).await?;
        Ok(store)
    }

    /// Brings the schema to the newest version.
    ///
    /// # Errors
    /// It is newer than this build knows, or a step failed.
    pub async fn migrate(&self) -> Result<Brought, OpenError> {
        Schema::postgres().bring_up(&self.pool).await
    }

    /// Connects and leaves the schema as it is, whatever it is.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn connect(options: PgConnectOptions) -> Result<Self, OpenError> {
        let options = options.application_name("soulbox").options(SESSION);
        let pool = PgPoolOptions::new()
            .min_connections(1)
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_WITHIN)
            .connect_with(options)
            .await
            .map_err(OpenError::Connect)?;
        let origin = random_origin();
        Ok(Self { pool, origin })
    }

    /// Closes the connections; calls after that fail. Waits a moment for those in use.
    pub async fn close(&self) {
        // One that is in use, such as a listening one, would be waited for without end; it ends with its owner.
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.pool.close()).await;
    }
}

/// Different for every process and every store in it.
fn random_origin() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    format!(
        "{:x}-{:x}-{:x}",
        since.as_nanos(),
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// What [`crate::store`] needs of a database.
impl PostgresStore {
    /// Other servers may change the records.
    pub(crate) const SHARED: bool = true;

    pub(crate) async fn read(&self) -> Result<PoolConnection<Postgres>, sqlx::Error> {
        self.pool.acquire().await
    }

    /// A transaction that sees one moment.
    pub(crate) async fn begin_reading(
        &self,
    ) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.pool
            .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
    }

    /// A transaction that is on disk when it is committed.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.pool.begin().await
    }

    /// All of them are durable here.
    pub(crate) async fn begin_fast(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        self.begin().await
    }

    /// A transaction that nobody waits for, so that it waits for no disk.
    pub(crate) async fn begin_behind(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        let mut transaction = self.begin().await?;
        sqlx::query("SET LOCAL synchronous_commit = off")
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    /// A transaction in which sandboxes of the team are counted. Those of one team come one after the other: READ COMMITTED lets two of
    /// them count the same rows otherwise. The lock is a statement of its own, since a statement sees what was committed before it began.
    pub(crate) async fn begin_placing(
        &self,
        team_id: &TeamId,
    ) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        let mut transaction = self.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('soulbox create ' || $1, 0))")
            .bind(team_id.as_str())
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    pub(crate) async fn commit(
        &self,
        mut transaction: Transaction<'static, Postgres>,
        told: Told<'_>,
    ) -> Result<(), sqlx::Error> {
        if let Some(payload) = changes::payload(&self.origin, told) {
            sqlx::query("SELECT pg_notify($1, $2)")
                .bind(changes::CHANNEL)
                .bind(payload)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await
    }

    pub(crate) async fn reserve_row(
        &self,
        row: &SandboxRow,
        limit: u32,
        claim: Option<&IdempotencyClaim>,
    ) -> Result<Reservation, sqlx::Error> {
        let mut transaction = self.begin_placing(&row.team_id).await?;
        let outcome = on_postgres::reserve(&mut transaction, row, limit, claim).await?;
        transaction.commit().await?;
        Ok(outcome)
    }

    /// One statement and one round trip: the swap, and the news of it only when it was made.
    pub(crate) async fn advance_row(
        &self,
        sandbox_id: &SandboxId,
        expected: (SandboxState, Epoch),
        progress: &Progress,
    ) -> Result<Swap, sqlx::Error> {
        let (pause_epoch, pause_by, paused_at, pause_memory) = rows::pause_columns(progress.pause);
        // An end at a deadline waits for no disk: without it the row says that it runs, until a deadline that is over. Commits that notify come
        // one after the other, so many ends at once would each wait for all the disk writes before.
        let expired = progress.cause == Some(DeathCause::Expired);
        let swapped = sqlx::query(
            "WITH haste AS (SELECT set_config('synchronous_commit', CASE WHEN $16 THEN 'off' ELSE current_setting('synchronous_commit') END, true)), \
             swapped AS (UPDATE sandboxes SET state = $1, epoch = $2, started_at = $3, deadline = $4, ended_at = $5, cause = $6, \
             pause_epoch = $12, pause_by = $13, paused_at = $14, pause_memory = $15 \
             WHERE sandbox_id = $7 AND state = $8 AND epoch = $9 RETURNING 1) SELECT pg_notify($10, $11) FROM swapped, haste",
        )
        .bind(rows::state_name(progress.state))
        .bind(number(progress.epoch.0))
        .bind(optional(progress.started_at))
        .bind(number(progress.deadline.0))
        .bind(optional(progress.ended_at))
        .bind(progress.cause.map(DeathCause::as_str))
        .bind(sandbox_id.as_str())
        .bind(rows::state_name(expected.0))
        .bind(number(expected.1.0))
        .bind(changes::CHANNEL)
        .bind(changes::payload(&self.origin, Told::Sandbox(sandbox_id)))
        .bind(pause_epoch)
        .bind(pause_by)
        .bind(paused_at)
        .bind(pause_memory)
        .bind(expired)
        .fetch_optional(&self.pool)
        .await?;
        Ok(if swapped.is_some() {
            Swap::Done
        } else {
            Swap::Conflict
        })
    }

    pub(crate) async fn listen(&self) -> Result<Heard, sqlx::Error> {
        Heard::start(&self.pool, self.origin.clone()).await
    }

    pub(crate) async fn checkpoint(&self) -> Result<(), sqlx::Error> {
        // PostgreSQL does its own housekeeping.
        Ok(())
    }
}

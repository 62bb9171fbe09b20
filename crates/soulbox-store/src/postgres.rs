//! [`Store`] on PostgreSQL, for records that more than one server shares.
//!
//! The rules are those of SQLite. Where that one has a single writer, this one has locks: a reservation takes an advisory lock of its
//! team for the length of its transaction, a compare-and-swap is one UPDATE. Every commit is durable: a crash of PostgreSQL, unlike a power
//! failure, does not end sandboxes. What one server changes the others hear by NOTIFY in the same transaction ([`changes`]).

mod changes;
mod sandboxes;
mod templates;

use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use soulbox_control::{
    AliasRow, AssignmentRow, AtDeadline, BuildRow, CatalogRows, Changes, IdempotencyClaim, KeyKind,
    KeyRow, ListQuery, Network, Page, Progress, Reclaim, Reservation, SandboxRow, SnapshotRow,
    Spawns, Store, StoreError, Swap, TeamRow, TemplateRow,
};
use soulbox_types::{BuildId, Epoch, SandboxId, SandboxState, TeamId, TemplateId, UnixMillis};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use sqlx::{PgConnection, Postgres, Transaction};

use crate::failed;
use crate::open::{Brought, OpenError, Schema};
use crate::pages;
use crate::rows::{self, number};

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

    pub(crate) fn log_writer(&self) -> &PgPool {
        &self.pool
    }

    pub(crate) async fn tell_of_templates(
        &self,
        transaction: &mut Transaction<'static, Postgres>,
    ) -> Result<(), sqlx::Error> {
        self.tell(transaction, changes::TEMPLATES).await
    }

    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Closes the connections; calls after that fail. Waits a moment for those in use.
    pub async fn close(&self) {
        // One that is in use, such as a listening one, would be waited for without end; it ends with its owner.
        let _ = tokio::time::timeout(CLOSE_WITHIN, self.pool.close()).await;
    }

    async fn begin(
        &self,
        action: &'static str,
    ) -> Result<Transaction<'static, Postgres>, StoreError> {
        self.pool.begin().await.map_err(failed(action))
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

/// The table of a kind of key.
fn key_table(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::ApiKey => "api_keys",
        KeyKind::AccessToken => "access_tokens",
    }
}

async fn insert_key(
    connection: &mut PgConnection,
    kind: KeyKind,
    key: &KeyRow,
    on_conflict: &str,
) -> Result<(), sqlx::Error> {
    let table = key_table(kind);
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "INSERT INTO {table} (key_id, team_id, name, hash, prefix, value_length, mask_prefix, mask_suffix, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) {on_conflict}"
    )))
    .bind(&key.key_id)
    .bind(key.team_id.as_str())
    .bind(&key.name)
    .bind(&key.hash)
    .bind(&key.prefix)
    .bind(i64::from(key.value_length))
    .bind(&key.mask_prefix)
    .bind(&key.mask_suffix)
    .bind(number(key.created_at.0))
    .execute(connection)
    .await
    .map(drop)
}

#[async_trait]
impl Store for PostgresStore {
    async fn ensure_team(&self, team: &TeamRow) -> Result<TeamRow, StoreError> {
        const ACTION: &str = "ensure a team";
        let read = || sqlx::query("SELECT * FROM teams WHERE slug = $1").bind(&team.slug);
        let found = read().fetch_optional(&self.pool).await;
        if let Some(row) = found.map_err(failed(ACTION))? {
            return rows::team(&row).map_err(failed(ACTION));
        }
        sqlx::query(
            "INSERT INTO teams (team_id, name, slug, banned, blocked, blocked_reason, max_sandboxes, \
             max_sandbox_hours, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (slug) DO NOTHING",
        )
        .bind(team.team_id.as_str())
        .bind(&team.name)
        .bind(&team.slug)
        .bind(i64::from(team.banned))
        .bind(i64::from(team.blocked))
        .bind(&team.blocked_reason)
        .bind(team.max_sandboxes.map(i64::from))
        .bind(team.max_sandbox_hours.map(i64::from))
        .bind(number(team.created_at.0))
        .execute(&self.pool)
        .await
        .map_err(failed(ACTION))?;
        let row = read().fetch_one(&self.pool).await.map_err(failed(ACTION))?;
        rows::team(&row).map_err(failed(ACTION))
    }

    async fn team(&self, team_id: &TeamId) -> Result<Option<TeamRow>, StoreError> {
        const ACTION: &str = "read a team";
        sqlx::query("SELECT * FROM teams WHERE team_id = $1")
            .bind(team_id.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed(ACTION))?
            .map(|row| rows::team(&row).map_err(failed(ACTION)))
            .transpose()
    }

    async fn teams(&self) -> Result<Vec<TeamRow>, StoreError> {
        const ACTION: &str = "list teams";
        sqlx::query("SELECT * FROM teams ORDER BY slug")
            .fetch_all(&self.pool)
            .await
            .map_err(failed(ACTION))?
            .iter()
            .map(|row| rows::team(row).map_err(failed(ACTION)))
            .collect()
    }

    async fn update_team(&self, team: &TeamRow) -> Result<bool, StoreError> {
        const ACTION: &str = "change a team";
        let mut transaction = self.begin(ACTION).await?;
        let changed = sqlx::query(
            "UPDATE teams SET name = $1, banned = $2, blocked = $3, blocked_reason = $4, max_sandboxes = $5, \
             max_sandbox_hours = $6 WHERE team_id = $7",
        )
        .bind(&team.name)
        .bind(i64::from(team.banned))
        .bind(i64::from(team.blocked))
        .bind(&team.blocked_reason)
        .bind(team.max_sandboxes.map(i64::from))
        .bind(team.max_sandbox_hours.map(i64::from))
        .bind(team.team_id.as_str())
        .execute(&mut *transaction)
        .await
        .map_err(failed(ACTION))?
        .rows_affected();
        self.tell(&mut transaction, changes::KEYS)
            .await
            .map_err(failed(ACTION))?;
        transaction.commit().await.map_err(failed(ACTION))?;
        Ok(changed > 0)
    }

    async fn replace_key(&self, kind: KeyKind, key: &KeyRow) -> Result<(), StoreError> {
        const ACTION: &str = "replace a key";
        let table = key_table(kind);
        let mut transaction = self.begin(ACTION).await?;
        let deleted = sqlx::query(sqlx::AssertSqlSafe(format!(
            "DELETE FROM {table} WHERE team_id = $1 AND name = $2 AND hash <> $3"
        )))
        .bind(key.team_id.as_str())
        .bind(&key.name)
        .bind(&key.hash)
        .execute(&mut *transaction)
        .await
        .map_err(failed(ACTION))?
        .rows_affected();
        insert_key(&mut transaction, kind, key, "ON CONFLICT (hash) DO NOTHING")
            .await
            .map_err(failed(ACTION))?;
        if deleted > 0 {
            self.tell(&mut transaction, changes::KEYS)
                .await
                .map_err(failed(ACTION))?;
        }
        transaction.commit().await.map_err(failed(ACTION))
    }

    async fn key(
        &self,
        kind: KeyKind,
        hash: &str,
    ) -> Result<Option<(KeyRow, TeamRow)>, StoreError> {
        const ACTION: &str = "read a key";
        let table = key_table(kind);
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT * FROM {table} WHERE hash = $1"
        )))
        .bind(hash)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed(ACTION))?;
        let Some(row) = row else { return Ok(None) };
        let key = rows::key(&row).map_err(failed(ACTION))?;
        let team = self.team(&key.team_id).await?;
        Ok(team.map(|team| (key, team)))
    }

    async fn insert_api_key(&self, key: &KeyRow) -> Result<(), StoreError> {
        const ACTION: &str = "insert a key";
        let mut connection = self.pool.acquire().await.map_err(failed(ACTION))?;
        insert_key(&mut connection, KeyKind::ApiKey, key, "")
            .await
            .map_err(failed(ACTION))
    }

    async fn api_keys(&self, team_id: &TeamId) -> Result<Vec<KeyRow>, StoreError> {
        const ACTION: &str = "read the keys of a team";
        sqlx::query("SELECT * FROM api_keys WHERE team_id = $1 ORDER BY created_at, key_id")
            .bind(team_id.as_str())
            .fetch_all(&self.pool)
            .await
            .map_err(failed(ACTION))?
            .iter()
            .map(|row| rows::key(row).map_err(failed(ACTION)))
            .collect()
    }

    async fn rename_api_key(
        &self,
        team_id: &TeamId,
        key_id: &str,
        name: &str,
    ) -> Result<bool, StoreError> {
        sqlx::query("UPDATE api_keys SET name = $1 WHERE team_id = $2 AND key_id = $3")
            .bind(name)
            .bind(team_id.as_str())
            .bind(key_id)
            .execute(&self.pool)
            .await
            .map(|done| done.rows_affected() > 0)
            .map_err(failed("rename a key"))
    }

    async fn delete_api_key(&self, team_id: &TeamId, key_id: &str) -> Result<bool, StoreError> {
        const ACTION: &str = "delete a key";
        let mut transaction = self.begin(ACTION).await?;
        let deleted = sqlx::query("DELETE FROM api_keys WHERE team_id = $1 AND key_id = $2")
            .bind(team_id.as_str())
            .bind(key_id)
            .execute(&mut *transaction)
            .await
            .map_err(failed(ACTION))?
            .rows_affected();
        self.tell(&mut transaction, changes::KEYS)
            .await
            .map_err(failed(ACTION))?;
        transaction.commit().await.map_err(failed(ACTION))?;
        Ok(deleted > 0)
    }

    async fn touch_keys(&self, used: &[(String, UnixMillis)]) -> Result<(), StoreError> {
        const ACTION: &str = "note the use of keys";
        let mut transaction = self.begin(ACTION).await?;
        // In one order, so that two servers that note the same keys do not wait for each other.
        let mut used: Vec<_> = used.iter().collect();
        used.sort();
        for (key_id, at) in used {
            sqlx::query(
                "UPDATE api_keys SET last_used_at = greatest(last_used_at, $1) WHERE key_id = $2",
            )
            .bind(number(at.0))
            .bind(key_id)
            .execute(&mut *transaction)
            .await
            .map_err(failed(ACTION))?;
        }
        transaction.commit().await.map_err(failed(ACTION))
    }

    async fn register_template(
        &self,
        template: &TemplateRow,
        build: &BuildRow,
        aliases: &[AliasRow],
        assignment: &AssignmentRow,
    ) -> Result<(), StoreError> {
        const ACTION: &str = "register a template";
        let mut transaction = self.begin(ACTION).await?;
        templates::register(&mut transaction, template, build, aliases, assignment)
            .await
            .map_err(failed(ACTION))?;
        self.tell(&mut transaction, changes::TEMPLATES)
            .await
            .map_err(failed(ACTION))?;
        transaction.commit().await.map_err(failed(ACTION))
    }

    async fn register_snapshot(
        &self,
        template: &TemplateRow,
        build: &BuildRow,
        aliases: &[AliasRow],
        assignment: &AssignmentRow,
        snapshot: &SnapshotRow,
    ) -> Result<(), StoreError> {
        const ACTION: &str = "keep a snapshot";
        let mut transaction = self.begin(ACTION).await?;
        templates::register(&mut transaction, template, build, aliases, assignment)
            .await
            .map_err(failed(ACTION))?;
        templates::insert_snapshot(&mut transaction, snapshot)
            .await
            .map_err(failed(ACTION))?;
        self.tell(&mut transaction, changes::TEMPLATES)
            .await
            .map_err(failed(ACTION))?;
        transaction.commit().await.map_err(failed(ACTION))
    }

    async fn forget_snapshots(&self, builds: &[BuildId]) -> Result<(), StoreError> {
        const ACTION: &str = "forget a snapshot";
        let mut transaction = self.begin(ACTION).await?;
        for build_id in builds {
            sqlx::query("DELETE FROM snapshots WHERE build_id = $1")
                .bind(build_id.as_str())
                .execute(&mut *transaction)
                .await
                .map_err(failed(ACTION))?;
        }
        self.tell(&mut transaction, changes::TEMPLATES)
            .await
            .map_err(failed(ACTION))?;
        transaction.commit().await.map_err(failed(ACTION))
    }

    async fn catalog(&self) -> Result<CatalogRows, StoreError> {
        templates::catalog(&self.pool)
            .await
            .map_err(failed("read the templates"))
    }

    async fn add_spawns(&self, spawns: &[Spawns]) -> Result<(), StoreError> {
        const ACTION: &str = "count spawns";
        let mut transaction = self.begin(ACTION).await?;
        templates::add_spawns(&mut transaction, spawns)
            .await
            .map_err(failed(ACTION))?;
        transaction.commit().await.map_err(failed(ACTION))
    }

    async fn reserve(
        &self,
        row: &SandboxRow,
        limit: u32,
        claim: Option<&IdempotencyClaim>,
    ) -> Result<Reservation, StoreError> {
        const ACTION: &str = "insert a sandbox";
        let mut transaction = self.begin(ACTION).await?;
        let reservation = sandboxes::reserve(&mut transaction, row, limit, claim)
            .await
            .map_err(failed(ACTION))?;
        transaction.commit().await.map_err(failed(ACTION))?;
        Ok(reservation)
    }

    async fn advance(
        &self,
        sandbox_id: &SandboxId,
        expected: (SandboxState, Epoch),
        progress: &Progress,
    ) -> Result<Swap, StoreError> {
        sandboxes::advance(&self.pool, &self.origin, sandbox_id, expected, progress)
            .await
            .map_err(failed("change a sandbox"))
    }

    async fn reclaim(
        &self,
        team_id: &TeamId,
        sandbox_id: &SandboxId,
        expected: (SandboxState, Epoch),
        progress: &Progress,
        limit: u32,
    ) -> Result<Reclaim, StoreError> {
        const ACTION: &str = "take a paused sandbox's place back";
        let mut transaction = self.begin(ACTION).await?;
        let ids = (team_id, sandbox_id);
        let reclaim = sandboxes::reclaim(
            &mut transaction,
            &self.origin,
            ids,
            expected,
            progress,
            limit,
        )
        .await
        .map_err(failed(ACTION))?;
        transaction.commit().await.map_err(failed(ACTION))?;
        Ok(reclaim)
    }

    async fn set_network(
        &self,
        sandbox_id: &SandboxId,
        network: &Network,
    ) -> Result<(), StoreError> {
        sandboxes::set_network(&self.pool, &self.origin, sandbox_id, network)
            .await
            .map_err(failed("change the network of a sandbox"))
    }

    async fn set_at_deadline(
        &self,
        sandbox_id: &SandboxId,
        at_deadline: AtDeadline,
    ) -> Result<(), StoreError> {
        sandboxes::set_at_deadline(&self.pool, &self.origin, sandbox_id, at_deadline)
            .await
            .map_err(failed("change the deadline of a sandbox"))
    }

    async fn sandbox(&self, sandbox_id: &SandboxId) -> Result<Option<SandboxRow>, StoreError> {
        const ACTION: &str = "read a sandbox";
        sqlx::query("SELECT * FROM sandboxes WHERE sandbox_id = $1")
            .bind(sandbox_id.as_str())
            .fetch_optional(&self.pool)
            .await
            .map_err(failed(ACTION))?
            .map(|row| rows::sandbox(&row).map_err(failed(ACTION)))
            .transpose()
    }

    async fn live_sandboxes(
        &self,
        team_id: Option<&TeamId>,
    ) -> Result<Vec<SandboxRow>, StoreError> {
        const ACTION: &str = "list sandboxes";
        let query = match team_id {
            Some(team_id) => {
                sqlx::query("SELECT * FROM sandboxes WHERE team_id = $1 AND state <> 'dead'")
                    .bind(team_id.as_str().to_owned())
            }
            None => sqlx::query("SELECT * FROM sandboxes WHERE state <> 'dead'"),
        };
        query
            .fetch_all(&self.pool)
            .await
            .map_err(failed(ACTION))?
            .iter()
            .map(|row| rows::sandbox(row).map_err(failed(ACTION)))
            .collect()
    }

    async fn page(
        &self,
        team_id: &TeamId,
        template: Option<&TemplateId>,
        query: &ListQuery,
    ) -> Result<Page<SandboxRow>, StoreError> {
        const ACTION: &str = "list sandboxes";
        let mut connection = self.pool.acquire().await.map_err(failed(ACTION))?;
        pages::on_postgres(&mut connection, team_id, template, query)
            .await
            .map_err(failed(ACTION))
    }

    async fn prune(&self, before: UnixMillis) -> Result<u64, StoreError> {
        sandboxes::prune(&self.pool, before)
            .await
            .map_err(failed("prune sandboxes"))
    }

    async fn maintain(&self) -> Result<(), StoreError> {
        // PostgreSQL does its own housekeeping.
        Ok(())
    }

    fn shared(&self) -> bool {
        true
    }

    async fn changes(&self) -> Result<Option<Box<dyn Changes>>, StoreError> {
        let heard = changes::Heard::start(&self.pool, self.origin.clone())
            .await
            .map_err(failed("listen for changes"))?;
        Ok(Some(Box::new(heard)))
    }
}

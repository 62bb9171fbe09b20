//! [`Store`] on SQLite, in WAL mode.
//!
//! Two writers: rows of sandboxes are written with `synchronous=NORMAL`, so that no create waits for a disk (a power failure ends
//! sandboxes anyway); everything else with `FULL`. The first one never checkpoints: [`Store::maintain`] does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use soulbox_control::{
    AliasRow, AssignmentRow, AtDeadline, BuildRow, CatalogRows, Change, Changes, IdempotencyClaim,
    KeyKind, KeyRow, ListQuery, Network, Page, Progress, Reclaim, Reservation, SandboxRow,
    SnapshotRow, Spawns, Store, StoreError, Swap, TeamRow, TemplateRow,
};
use soulbox_types::{
    BuildId, DeathCause, Epoch, HostMask, SandboxId, SandboxState, TeamId, TemplateId, UnixMillis,
};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Row, SqliteConnection};

use crate::failed;
use crate::open::{Brought, OpenError, Schema};
use crate::pages;
use crate::rows::{self, flag, number, optional};

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
        let store = Self::connect(path, true).await?;
        store.migrate().await?;
        Ok(store)
    }

    /// Opens a file of the newest schema beside the server that uses it; changes nothing.
    ///
    /// # Errors
    /// There is no such file, or it has another schema.
    pub async fn open_as_is(path: &Path) -> Result<Self, OpenError> {
        let store = Self::connect(path, false).await?;
        Schema::sqlite().demand_newest(&store.durable).await?;
        Ok(store)
    }

    /// Brings the schema to the newest version.
    ///
    /// # Errors
    /// It is newer than this build knows, or a step failed.
    pub async fn migrate(&self) -> Result<Brought, OpenError> {
        Schema::sqlite().bring_up(&self.durable).await
    }

    /// Opens the file and leaves its schema as it is, whatever it is.
    ///
    /// # Errors
    /// It is not there and shall not be made, or is no database.
    pub async fn connect(path: &Path, create: bool) -> Result<Self, OpenError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(create)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(BUSY)
            .foreign_keys(true);
        let fast = options
            .clone()
            .synchronous(SqliteSynchronous::Normal)
            // A checkpoint syncs; the durable writer does that.
            .pragma("wal_autocheckpoint", "0");
        let durable = options.clone().synchronous(SqliteSynchronous::Full);
        let wrap = |source| OpenError::Open {
            path: path.to_owned(),
            source,
        };
        // The durable connection comes first: it makes the file.
        let durable = pool(1).connect_with(durable).await.map_err(wrap)?;
        let fast = pool(1).connect_with(fast).await.map_err(wrap)?;
        let readers = pool(READERS)
            .connect_with(options.read_only(true))
            .await
            .map_err(wrap)?;
        Ok(Self {
            fast,
            durable,
            readers,
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

    /// Tells the server that uses the file that a key or a team was changed by another program.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn announce(&self) -> Result<(), StoreError> {
        const ACTION: &str = "announce a change";
        let mut transaction = self
            .durable
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed(ACTION))?;
        let told = told(&mut *transaction).await.map_err(failed(ACTION))?;
        let next = told.wrapping_add(1);
        sqlx::query(sqlx::AssertSqlSafe(format!("PRAGMA user_version = {next}")))
            .execute(&mut *transaction)
            .await
            .map_err(failed(ACTION))?;
        transaction.commit().await.map_err(failed(ACTION))
    }

    pub(crate) fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// Lines of logs are not worth waiting for a disk.
    pub(crate) fn log_writer(&self) -> &SqlitePool {
        &self.fast
    }

    pub(crate) fn durable(&self) -> &SqlitePool {
        &self.durable
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
struct Announced {
    readers: SqlitePool,
    told: i32,
}

#[async_trait]
impl Changes for Announced {
    async fn next(&mut self) -> Change {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // What cannot be read now is read the next time.
            if let Ok(told) = told(&self.readers).await
                && told != self.told
            {
                self.told = told;
                return Change::Keys;
            }
        }
    }
}

fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .min_connections(1)
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        // Connections are to a file: they do not go stale, and a ping would double the cost of a small query.
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
}

#[async_trait]
impl Store for SqliteStore {
    async fn ensure_team(&self, team: &TeamRow) -> Result<TeamRow, StoreError> {
        const ACTION: &str = "ensure a team";
        let read = || sqlx::query("SELECT * FROM teams WHERE slug = ?").bind(&team.slug);
        if let Some(row) = read()
            .fetch_optional(&self.readers)
            .await
            .map_err(failed(ACTION))?
        {
            return rows::team(&row).map_err(failed(ACTION));
        }
        sqlx::query(
            "INSERT INTO teams (team_id, name, slug, banned, blocked, blocked_reason, max_sandboxes, \
             max_sandbox_hours, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (slug) DO NOTHING",
        )
        .bind(team.team_id.as_str())
        .bind(&team.name)
        .bind(&team.slug)
        .bind(team.banned)
        .bind(team.blocked)
        .bind(&team.blocked_reason)
        .bind(team.max_sandboxes)
        .bind(team.max_sandbox_hours)
        .bind(number(team.created_at.0))
        .execute(&self.durable)
        .await
        .map_err(failed(ACTION))?;
        let row = read()
            .fetch_one(&self.readers)
            .await
            .map_err(failed(ACTION))?;
        rows::team(&row).map_err(failed(ACTION))
    }

    async fn team(&self, team_id: &TeamId) -> Result<Option<TeamRow>, StoreError> {
        const ACTION: &str = "read a team";
        sqlx::query("SELECT * FROM teams WHERE team_id = ?")
            .bind(team_id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(failed(ACTION))?
            .map(|row| rows::team(&row).map_err(failed(ACTION)))
            .transpose()
    }

    async fn teams(&self) -> Result<Vec<TeamRow>, StoreError> {
        const ACTION: &str = "list teams";
        sqlx::query("SELECT * FROM teams ORDER BY slug")
            .fetch_all(&self.readers)
            .await
            .map_err(failed(ACTION))?
            .iter()
            .map(|row| rows::team(row).map_err(failed(ACTION)))
            .collect()
    }

    async fn update_team(&self, team: &TeamRow) -> Result<bool, StoreError> {
        sqlx::query(
            "UPDATE teams SET name = ?, banned = ?, blocked = ?, blocked_reason = ?, max_sandboxes = ?, \
             max_sandbox_hours = ? WHERE team_id = ?",
        )
        .bind(&team.name)
        .bind(team.banned)
        .bind(team.blocked)
        .bind(&team.blocked_reason)
        .bind(team.max_sandboxes)
        .bind(team.max_sandbox_hours)
        .bind(team.team_id.as_str())
        .execute(&self.durable)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(failed("change a team"))
    }

    async fn replace_key(&self, kind: KeyKind, key: &KeyRow) -> Result<(), StoreError> {
        const ACTION: &str = "replace a key";
        let (delete, insert) = match kind {
            KeyKind::ApiKey => (
                "DELETE FROM api_keys WHERE team_id = ? AND name = ? AND hash <> ?",
                "INSERT INTO api_keys (key_id, team_id, name, hash, prefix, value_length, mask_prefix, \
                 mask_suffix, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING",
            ),
            KeyKind::AccessToken => (
                "DELETE FROM access_tokens WHERE team_id = ? AND name = ? AND hash <> ?",
                "INSERT INTO access_tokens (key_id, team_id, name, hash, prefix, value_length, mask_prefix, \
                 mask_suffix, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING",
            ),
        };
        let mut transaction = self
            .durable
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed(ACTION))?;
        sqlx::query(delete)
            .bind(key.team_id.as_str())
            .bind(&key.name)
            .bind(&key.hash)
            .execute(&mut *transaction)
            .await
            .map_err(failed(ACTION))?;
        sqlx::query(insert)
            .bind(&key.key_id)
            .bind(key.team_id.as_str())
            .bind(&key.name)
            .bind(&key.hash)
            .bind(&key.prefix)
            .bind(key.value_length)
            .bind(&key.mask_prefix)
            .bind(&key.mask_suffix)
            .bind(number(key.created_at.0))
            .execute(&mut *transaction)
            .await
            .map_err(failed(ACTION))?;
        transaction.commit().await.map_err(failed(ACTION))
    }

    async fn key(
        &self,
        kind: KeyKind,
        hash: &str,
    ) -> Result<Option<(KeyRow, TeamRow)>, StoreError> {
        const ACTION: &str = "read a key";
        let query = match kind {
            KeyKind::ApiKey => "SELECT * FROM api_keys WHERE hash = ?",
            KeyKind::AccessToken => "SELECT * FROM access_tokens WHERE hash = ?",
        };
        let row = sqlx::query(query)
            .bind(hash)
            .fetch_optional(&self.readers)
            .await
            .map_err(failed(ACTION))?;
        let Some(row) = row else { return Ok(None) };
        let key = rows::key(&row).map_err(failed(ACTION))?;
        let team = self.team(&key.team_id).await?;
        Ok(team.map(|team| (key, team)))
    }

    async fn insert_api_key(&self, key: &KeyRow) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO api_keys (key_id, team_id, name, hash, prefix, value_length, mask_prefix, \
             mask_suffix, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&key.key_id)
        .bind(key.team_id.as_str())
        .bind(&key.name)
        .bind(&key.hash)
        .bind(&key.prefix)
        .bind(key.value_length)
        .bind(&key.mask_prefix)
        .bind(&key.mask_suffix)
        .bind(number(key.created_at.0))
        .execute(&self.durable)
        .await
        .map(drop)
        .map_err(failed("insert a key"))
    }

    async fn api_keys(&self, team_id: &TeamId) -> Result<Vec<KeyRow>, StoreError> {
        const ACTION: &str = "read the keys of a team";
        let rows =
            sqlx::query("SELECT * FROM api_keys WHERE team_id = ? ORDER BY created_at, key_id")
                .bind(team_id.as_str())
                .fetch_all(&self.readers)
                .await
                .map_err(failed(ACTION))?;
        let keys = rows.iter().map(rows::key).collect::<Result<_, _>>();
        keys.map_err(failed(ACTION))
    }

    async fn rename_api_key(
        &self,
        team_id: &TeamId,
        key_id: &str,
        name: &str,
    ) -> Result<bool, StoreError> {
        sqlx::query("UPDATE api_keys SET name = ? WHERE team_id = ? AND key_id = ?")
            .bind(name)
            .bind(team_id.as_str())
            .bind(key_id)
            .execute(&self.durable)
            .await
            .map(|done| done.rows_affected() > 0)
            .map_err(failed("rename a key"))
    }

    async fn delete_api_key(&self, team_id: &TeamId, key_id: &str) -> Result<bool, StoreError> {
        sqlx::query("DELETE FROM api_keys WHERE team_id = ? AND key_id = ?")
            .bind(team_id.as_str())
            .bind(key_id)
            .execute(&self.durable)
            .await
            .map(|done| done.rows_affected() > 0)
            .map_err(failed("delete a key"))
    }

    async fn touch_keys(&self, used: &[(String, UnixMillis)]) -> Result<(), StoreError> {
        const ACTION: &str = "note the use of keys";
        let mut transaction = self
            .durable
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed(ACTION))?;
        for (key_id, at) in used {
            sqlx::query("UPDATE api_keys SET last_used_at = ? WHERE key_id = ?")
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
        let mut transaction = self
            .durable
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed("register a template"))?;
        register(&mut transaction, template, build, aliases, assignment)
            .await
            .map_err(failed("register a template"))?;
        transaction
            .commit()
            .await
            .map_err(failed("register a template"))
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
        let mut transaction = self
            .durable
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed(ACTION))?;
        register(&mut transaction, template, build, aliases, assignment)
            .await
            .map_err(failed(ACTION))?;
        insert_snapshot(&mut transaction, snapshot)
            .await
            .map_err(failed(ACTION))?;
        transaction.commit().await.map_err(failed(ACTION))
    }

    async fn forget_snapshots(&self, builds: &[BuildId]) -> Result<(), StoreError> {
        for build_id in builds {
            sqlx::query("DELETE FROM snapshots WHERE build_id = ?")
                .bind(build_id.as_str())
                .execute(&self.durable)
                .await
                .map_err(failed("forget a snapshot"))?;
        }
        Ok(())
    }

    async fn catalog(&self) -> Result<CatalogRows, StoreError> {
        const ACTION: &str = "read the templates";
        // One transaction, so that the four tables fit together.
        let mut transaction = self.readers.begin().await.map_err(failed(ACTION))?;
        let mut catalog = CatalogRows::default();
        let all = sqlx::query("SELECT * FROM templates WHERE deleted_at IS NULL")
            .fetch_all(&mut *transaction)
            .await;
        for row in all.map_err(failed(ACTION))? {
            catalog
                .templates
                .push(rows::template(&row).map_err(failed(ACTION))?);
        }
        let all = sqlx::query("SELECT * FROM builds")
            .fetch_all(&mut *transaction)
            .await;
        for row in all.map_err(failed(ACTION))? {
            catalog
                .builds
                .push(rows::build(&row).map_err(failed(ACTION))?);
        }
        let all = sqlx::query("SELECT * FROM aliases")
            .fetch_all(&mut *transaction)
            .await;
        for row in all.map_err(failed(ACTION))? {
            catalog
                .aliases
                .push(rows::alias(&row).map_err(failed(ACTION))?);
        }
        let all = sqlx::query("SELECT * FROM snapshots")
            .fetch_all(&mut *transaction)
            .await;
        for row in all.map_err(failed(ACTION))? {
            catalog
                .snapshots
                .push(rows::snapshot(&row).map_err(failed(ACTION))?);
        }
        let all = sqlx::query("SELECT * FROM assignments ORDER BY assignment_number")
            .fetch_all(&mut *transaction)
            .await;
        for row in all.map_err(failed(ACTION))? {
            catalog
                .assignments
                .push(rows::assignment(&row).map_err(failed(ACTION))?);
        }
        Ok(catalog)
    }

    async fn add_spawns(&self, spawns: &[Spawns]) -> Result<(), StoreError> {
        const ACTION: &str = "count spawns";
        let mut transaction = self
            .durable
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed(ACTION))?;
        for spawned in spawns {
            sqlx::query(
                "UPDATE templates SET spawn_count = spawn_count + ?, \
                 last_spawned_at = max(coalesce(last_spawned_at, 0), ?) WHERE template_id = ?",
            )
            .bind(number(spawned.count))
            .bind(number(spawned.last.0))
            .bind(spawned.template_id.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(failed(ACTION))?;
        }
        transaction.commit().await.map_err(failed(ACTION))
    }

    async fn reserve(
        &self,
        row: &SandboxRow,
        limit: u32,
        claim: Option<&IdempotencyClaim>,
    ) -> Result<Reservation, StoreError> {
        const ACTION: &str = "insert a sandbox";
        let Some(claim) = claim else {
            let mut connection = self.fast.acquire().await.map_err(failed(ACTION))?;
            let made = insert(&mut connection, row, limit)
                .await
                .map_err(failed(ACTION))?;
            return Ok(if made {
                Reservation::Made
            } else {
                Reservation::LimitReached
            });
        };
        let mut transaction = self
            .fast
            .begin_with("BEGIN IMMEDIATE")
            .await
            .map_err(failed(ACTION))?;
        let earlier = claimed(&mut transaction, row, claim)
            .await
            .map_err(failed(ACTION))?;
        if let Some((fingerprint, sandbox)) = earlier {
            return Ok(Reservation::AlreadyClaimed {
                fingerprint,
                sandbox,
            });
        }
        if !insert(&mut transaction, row, limit)
            .await
            .map_err(failed(ACTION))?
        {
            return Ok(Reservation::LimitReached);
        }
        sqlx::query(
            "INSERT INTO idempotency_claims (team_id, claim_key, fingerprint, sandbox_id, claimed_at) \
             VALUES (?, ?, ?, ?, ?) ON CONFLICT (team_id, claim_key) DO UPDATE SET \
             fingerprint = excluded.fingerprint, sandbox_id = excluded.sandbox_id, claimed_at = excluded.claimed_at",
        )
        .bind(row.team_id.as_str())
        .bind(&claim.key)
        .bind(&claim.fingerprint)
        .bind(row.sandbox_id.as_str())
        .bind(number(row.created_at.0))
        .execute(&mut *transaction)
        .await
        .map_err(failed(ACTION))?;
        transaction.commit().await.map_err(failed(ACTION))?;
        Ok(Reservation::Made)
    }

    async fn advance(
        &self,
        sandbox_id: &SandboxId,
        expected: (SandboxState, Epoch),
        progress: &Progress,
    ) -> Result<Swap, StoreError> {
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
        .await
        .map_err(failed("change a sandbox"))?
        .rows_affected();
        Ok(if changed == 1 {
            Swap::Done
        } else {
            Swap::Conflict
        })
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
        // One statement, so no two of them share the last place.
        let changed = sqlx::query(
            "UPDATE sandboxes SET state = ?, epoch = ?, deadline = ? WHERE sandbox_id = ? AND state = ? AND epoch = ? \
             AND (SELECT count(*) FROM sandboxes WHERE team_id = ? AND state <> 'dead' AND state <> 'paused') < ?",
        )
        .bind(rows::state_name(progress.state))
        .bind(number(progress.epoch.0))
        .bind(number(progress.deadline.0))
        .bind(sandbox_id.as_str())
        .bind(rows::state_name(expected.0))
        .bind(number(expected.1.0))
        .bind(team_id.as_str())
        .bind(limit)
        .execute(&self.fast)
        .await
        .map_err(failed(ACTION))?
        .rows_affected();
        if changed == 1 {
            return Ok(Reclaim::Done);
        }
        let found = self.sandbox(sandbox_id).await?;
        let as_expected =
            found.is_some_and(|row| (row.progress.state, row.progress.epoch) == expected);
        Ok(if as_expected {
            Reclaim::LimitReached
        } else {
            Reclaim::Conflict
        })
    }

    async fn sandbox(&self, sandbox_id: &SandboxId) -> Result<Option<SandboxRow>, StoreError> {
        const ACTION: &str = "read a sandbox";
        sqlx::query("SELECT * FROM sandboxes WHERE sandbox_id = ?")
            .bind(sandbox_id.as_str())
            .fetch_optional(&self.readers)
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
        let all = match team_id {
            Some(team_id) => {
                sqlx::query("SELECT * FROM sandboxes WHERE team_id = ? AND state <> 'dead'")
                    .bind(team_id.as_str())
                    .fetch_all(&self.readers)
                    .await
            }
            None => {
                sqlx::query("SELECT * FROM sandboxes WHERE state <> 'dead'")
                    .fetch_all(&self.readers)
                    .await
            }
        };
        all.map_err(failed(ACTION))?
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
        let mut reader = self.readers.acquire().await.map_err(failed(ACTION))?;
        pages::on_sqlite(&mut reader, team_id, template, query)
            .await
            .map_err(failed(ACTION))
    }

    async fn set_network(
        &self,
        sandbox_id: &SandboxId,
        network: &Network,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE sandboxes SET internet_access = ?, allow_out = ?, deny_out = ? \
             WHERE sandbox_id = ? AND state <> 'dead'",
        )
        .bind(network.internet_access())
        .bind(rows::list_text(network.allow_out()))
        .bind(rows::list_text(network.deny_out()))
        .bind(sandbox_id.as_str())
        .execute(&self.fast)
        .await
        .map_err(failed("change the network of a sandbox"))?;
        Ok(())
    }

    async fn set_at_deadline(
        &self,
        sandbox_id: &SandboxId,
        at_deadline: AtDeadline,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE sandboxes SET at_deadline = ? WHERE sandbox_id = ? AND state <> 'dead'",
        )
        .bind(rows::at_deadline_name(at_deadline))
        .bind(sandbox_id.as_str())
        .execute(&self.fast)
        .await
        .map_err(failed("change the deadline of a sandbox"))?;
        Ok(())
    }

    async fn prune(&self, before: UnixMillis) -> Result<u64, StoreError> {
        const ACTION: &str = "prune sandboxes";
        sqlx::query("DELETE FROM idempotency_claims WHERE claimed_at < ?")
            .bind(number(before.0))
            .execute(&self.fast)
            .await
            .map_err(failed(ACTION))?;
        let pruned = sqlx::query("DELETE FROM sandboxes WHERE state = 'dead' AND ended_at < ?")
            .bind(number(before.0))
            .execute(&self.fast)
            .await
            .map_err(failed(ACTION))?;
        Ok(pruned.rows_affected())
    }

    async fn changes(&self) -> Result<Option<Box<dyn Changes>>, StoreError> {
        let readers = self.readers.clone();
        let told = told(&readers).await.map_err(failed("look for changes"))?;
        Ok(Some(Box::new(Announced { readers, told })))
    }

    async fn maintain(&self) -> Result<(), StoreError> {
        // PASSIVE never makes a writer wait.
        sqlx::query("PRAGMA wal_checkpoint(PASSIVE)")
            .execute(&self.durable)
            .await
            .map_err(failed("write a checkpoint"))?;
        Ok(())
    }
}

/// Inserts the row if the team has fewer live sandboxes than `limit`: one statement, so no two creates share the last place.
async fn insert(
    connection: &mut SqliteConnection,
    row: &SandboxRow,
    limit: u32,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query(
        "INSERT INTO sandboxes (sandbox_id, team_id, template_id, build_id, alias, metadata, cpu_milli, memory_mib, \
         disk_mib, pids, internet_access, allow_out, deny_out, secure, public_traffic, host_mask, https_ports, envd_version, created_at, \
         state, epoch, started_at, deadline, ended_at, cause, at_deadline, auto_resume, host_build_id) \
         SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? \
         WHERE (SELECT count(*) FROM sandboxes WHERE team_id = ? AND state <> 'dead' AND state <> 'paused') < ?",
    )
    .bind(row.sandbox_id.as_str())
    .bind(row.team_id.as_str())
    .bind(row.template_id.as_str())
    .bind(row.build_id.as_str())
    .bind(&row.alias)
    .bind(rows::metadata_text(&row.metadata))
    .bind(row.limits.cpu.0)
    .bind(number(row.limits.memory.0))
    .bind(number(row.limits.disk.0))
    .bind(row.limits.pids)
    .bind(row.network.internet_access())
    .bind(rows::list_text(row.network.allow_out()))
    .bind(rows::list_text(row.network.deny_out()))
    .bind(row.secure)
    .bind(row.public_traffic)
    .bind(row.inbound.mask.as_ref().map(HostMask::as_str))
    .bind(rows::ports_text(&row.inbound.https))
    .bind(&row.envd_version)
    .bind(number(row.created_at.0))
    .bind(rows::state_name(row.progress.state))
    .bind(number(row.progress.epoch.0))
    .bind(optional(row.progress.started_at))
    .bind(number(row.progress.deadline.0))
    .bind(optional(row.progress.ended_at))
    .bind(row.progress.cause.map(DeathCause::as_str))
    .bind(rows::at_deadline_name(row.lifecycle.at_deadline))
    .bind(row.lifecycle.auto_resume.map(number))
    .bind(row.host_build_id.as_str())
    .bind(row.team_id.as_str())
    .bind(limit)
    .execute(connection)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// The earlier create of this key. One that failed to start has changed nothing, so the key is free again.
async fn claimed(
    connection: &mut SqliteConnection,
    row: &SandboxRow,
    claim: &IdempotencyClaim,
) -> Result<Option<(String, Option<Box<SandboxRow>>)>, sqlx::Error> {
    let earlier = sqlx::query(
        "SELECT fingerprint, sandbox_id FROM idempotency_claims WHERE team_id = ? AND claim_key = ?",
    )
    .bind(row.team_id.as_str())
    .bind(&claim.key)
    .fetch_optional(&mut *connection)
    .await?;
    let Some(earlier) = earlier else {
        return Ok(None);
    };
    let fingerprint: String = earlier.try_get("fingerprint")?;
    let sandbox = sqlx::query("SELECT * FROM sandboxes WHERE sandbox_id = ?")
        .bind(earlier.try_get::<String, _>("sandbox_id")?)
        .fetch_optional(&mut *connection)
        .await?
        .map(|row| rows::sandbox(&row))
        .transpose()?;
    let failed = sandbox.as_ref().is_some_and(|sandbox| {
        sandbox.progress.state == SandboxState::Dead
            && sandbox.progress.cause == Some(DeathCause::FailedToStart)
    });
    Ok(if failed {
        None
    } else {
        Some((fingerprint, sandbox.map(Box::new)))
    })
}

async fn insert_snapshot(
    connection: &mut SqliteConnection,
    snapshot: &SnapshotRow,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO snapshots (build_id, template_id, team_id, sandbox_id, snapshot_name, host_build_id, memory, disk_bytes, \
         image_bytes, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(snapshot.build_id.as_str())
    .bind(snapshot.template_id.as_str())
    .bind(snapshot.team_id.as_str())
    .bind(snapshot.sandbox_id.as_str())
    .bind(&snapshot.snapshot_name)
    .bind(snapshot.host_build_id.as_str())
    .bind(i64::from(snapshot.memory))
    .bind(number(snapshot.disk_bytes))
    .bind(number(snapshot.image_bytes))
    .bind(number(snapshot.created_at.0))
    .execute(connection)
    .await
    .map(drop)
}

async fn register(
    connection: &mut SqliteConnection,
    template: &TemplateRow,
    build: &BuildRow,
    aliases: &[AliasRow],
    assignment: &AssignmentRow,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO templates (template_id, team_id, public, created_at, updated_at) VALUES (?, ?, ?, ?, ?) \
         ON CONFLICT (template_id) DO UPDATE SET updated_at = max(updated_at, excluded.updated_at), deleted_at = NULL",
    )
    .bind(template.template_id.as_str())
    .bind(template.team_id.as_str())
    .bind(template.public)
    .bind(number(template.created_at.0))
    .bind(number(template.updated_at.0))
    .execute(&mut *connection)
    .await?;
    sqlx::query(
        "INSERT INTO builds (build_id, template_id, status, cpu_milli, memory_mib, disk_mib, pids, default_user, \
         default_workdir, envd_version, created_at, updated_at, finished_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (build_id) DO NOTHING",
    )
    .bind(build.build_id.as_str())
    .bind(build.template_id.as_str())
    .bind(rows::status_name(build.status))
    .bind(build.limits.cpu.0)
    .bind(number(build.limits.memory.0))
    .bind(number(build.limits.disk.0))
    .bind(build.limits.pids)
    .bind(&build.default_user)
    .bind(&build.default_workdir)
    .bind(&build.envd_version)
    .bind(number(build.created_at.0))
    .bind(number(build.updated_at.0))
    .bind(optional(build.finished_at))
    .execute(&mut *connection)
    .await?;
    for alias in aliases {
        sqlx::query(
            "INSERT INTO aliases (namespace, alias, template_id) VALUES (?, ?, ?) \
             ON CONFLICT (namespace, alias) DO UPDATE SET template_id = excluded.template_id",
        )
        .bind(&alias.namespace)
        .bind(&alias.alias)
        .bind(alias.template_id.as_str())
        .execute(&mut *connection)
        .await?;
    }
    let current = sqlx::query(
        "SELECT build_id = ? AS same FROM assignments WHERE template_id = ? AND tag = ? \
         ORDER BY assignment_number DESC LIMIT 1",
    )
    .bind(assignment.build_id.as_str())
    .bind(assignment.template_id.as_str())
    .bind(&assignment.tag)
    .fetch_optional(&mut *connection)
    .await?;
    if current
        .map(|row| flag(&row, "same"))
        .transpose()?
        .unwrap_or(false)
    {
        return Ok(());
    }
    sqlx::query(
        "INSERT INTO assignments (assignment_id, template_id, build_id, tag, assigned_at) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(&assignment.assignment_id)
    .bind(assignment.template_id.as_str())
    .bind(assignment.build_id.as_str())
    .bind(&assignment.tag)
    .bind(number(assignment.assigned_at.0))
    .execute(&mut *connection)
    .await?;
    Ok(())
}

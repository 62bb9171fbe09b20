//! [`Store`] on both databases: a macro makes both implementations from the statements that they share ([`crate::statements`]).
//!
//! What differs is in [`SqliteStore`] and [`PostgresStore`]: what a connection and a transaction is, who hears of a change, and the two
//! writes of a create's and a kill's way, `reserve_row` and `advance_row`.

use async_trait::async_trait;
use soulbox_control::{
    AliasRow, AssignmentRow, AtDeadline, BuildRow, CatalogRows, Changes, IdempotencyClaim, KeyKind,
    KeyRow, ListQuery, Page, Progress, Reclaim, Reservation, SandboxRow, SnapshotRow, Spawns,
    Store, StoreError, Swap, TeamRow, TemplateRow,
};
use soulbox_types::{
    BuildId, Epoch, Network, SandboxId, SandboxState, TeamId, TemplateId, UnixMillis,
};

use crate::statements::{on_postgres, on_sqlite};
use crate::{PostgresStore, SqliteStore, failed, pages};

/// What other servers hear of a transaction; in SQLite nobody.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Told<'a> {
    Nothing,
    Keys,
    Templates,
    Sandbox(&'a SandboxId),
}

/// What a failed query becomes.
pub(crate) async fn named<T>(
    action: &'static str,
    work: impl Future<Output = Result<T, sqlx::Error>> + Send,
) -> Result<T, StoreError> {
    work.await.map_err(failed(action))
}

macro_rules! store {
    ($store:ty, $on:ident) => {
        #[async_trait]
        impl Store for $store {
            async fn ensure_team(&self, team: &TeamRow) -> Result<TeamRow, StoreError> {
                named("ensure a team", async {
                    if let Some(found) =
                        $on::team_of_slug(&mut *self.read().await?, &team.slug).await?
                    {
                        return Ok(found);
                    }
                    let mut transaction = self.begin().await?;
                    $on::insert_team(&mut transaction, team).await?;
                    let found = $on::team_of_slug(&mut transaction, &team.slug).await?;
                    self.commit(transaction, Told::Nothing).await?;
                    found.ok_or(sqlx::Error::RowNotFound)
                })
                .await
            }

            async fn team(&self, team_id: &TeamId) -> Result<Option<TeamRow>, StoreError> {
                named("read a team", async {
                    $on::team(&mut *self.read().await?, team_id).await
                })
                .await
            }

            async fn teams(&self) -> Result<Vec<TeamRow>, StoreError> {
                named("list teams", async {
                    $on::teams(&mut *self.read().await?).await
                })
                .await
            }

            async fn update_team(&self, team: &TeamRow) -> Result<bool, StoreError> {
                named("change a team", async {
                    let mut transaction = self.begin().await?;
                    let changed = $on::update_team(&mut transaction, team).await?;
                    self.commit(transaction, Told::Keys).await?;
                    Ok(changed)
                })
                .await
            }

            async fn replace_key(&self, kind: KeyKind, key: &KeyRow) -> Result<(), StoreError> {
                named("replace a key", async {
                    let mut transaction = self.begin().await?;
                    let replaced = $on::replace_key(&mut transaction, kind, key).await?;
                    let told = if replaced { Told::Keys } else { Told::Nothing };
                    self.commit(transaction, told).await
                })
                .await
            }

            async fn key(
                &self,
                kind: KeyKind,
                hash: &str,
            ) -> Result<Option<(KeyRow, TeamRow)>, StoreError> {
                named("read a key", async {
                    $on::key(&mut *self.read().await?, kind, hash).await
                })
                .await
            }

            async fn insert_api_key(&self, key: &KeyRow) -> Result<(), StoreError> {
                named("insert a key", async {
                    let mut transaction = self.begin().await?;
                    $on::insert_key(&mut transaction, KeyKind::ApiKey, key, "").await?;
                    self.commit(transaction, Told::Nothing).await
                })
                .await
            }

            async fn api_keys(&self, team_id: &TeamId) -> Result<Vec<KeyRow>, StoreError> {
                named("read the keys of a team", async {
                    $on::api_keys(&mut *self.read().await?, team_id).await
                })
                .await
            }

            async fn rename_api_key(
                &self,
                team_id: &TeamId,
                key_id: &str,
                name: &str,
            ) -> Result<bool, StoreError> {
                named("rename a key", async {
                    let mut transaction = self.begin().await?;
                    let renamed =
                        $on::rename_api_key(&mut transaction, team_id, key_id, name).await?;
                    self.commit(transaction, Told::Nothing).await?;
                    Ok(renamed)
                })
                .await
            }

            async fn delete_api_key(
                &self,
                team_id: &TeamId,
                key_id: &str,
            ) -> Result<bool, StoreError> {
                named("delete a key", async {
                    let mut transaction = self.begin().await?;
                    let deleted = $on::delete_api_key(&mut transaction, team_id, key_id).await?;
                    self.commit(transaction, Told::Keys).await?;
                    Ok(deleted)
                })
                .await
            }

            async fn touch_keys(&self, used: &[(String, UnixMillis)]) -> Result<(), StoreError> {
                named("note the use of keys", async {
                    let mut transaction = self.begin().await?;
                    $on::touch_keys(&mut transaction, used).await?;
                    self.commit(transaction, Told::Nothing).await
                })
                .await
            }

            async fn register_template(
                &self,
                template: &TemplateRow,
                build: &BuildRow,
                aliases: &[AliasRow],
                assignment: &AssignmentRow,
            ) -> Result<(), StoreError> {
                named("register a template", async {
                    let mut transaction = self.begin().await?;
                    $on::register(&mut transaction, template, build, aliases, assignment).await?;
                    self.commit(transaction, Told::Templates).await
                })
                .await
            }

            async fn register_snapshot(
                &self,
                template: &TemplateRow,
                build: &BuildRow,
                aliases: &[AliasRow],
                assignment: &AssignmentRow,
                snapshot: &SnapshotRow,
            ) -> Result<(), StoreError> {
                named("keep a snapshot", async {
                    let mut transaction = self.begin().await?;
                    $on::register(&mut transaction, template, build, aliases, assignment).await?;
                    $on::insert_snapshot(&mut transaction, snapshot).await?;
                    self.commit(transaction, Told::Templates).await
                })
                .await
            }

            async fn forget_snapshots(&self, builds: &[BuildId]) -> Result<(), StoreError> {
                named("forget a snapshot", async {
                    let mut transaction = self.begin().await?;
                    $on::forget_snapshots(&mut transaction, builds).await?;
                    self.commit(transaction, Told::Templates).await
                })
                .await
            }

            async fn catalog(&self) -> Result<CatalogRows, StoreError> {
                named("read the templates", async {
                    let mut transaction = self.begin_reading().await?;
                    let catalog = $on::catalog(&mut transaction).await?;
                    transaction.commit().await?;
                    Ok(catalog)
                })
                .await
            }

            async fn add_spawns(&self, spawns: &[Spawns]) -> Result<(), StoreError> {
                named("count spawns", async {
                    let mut transaction = self.begin().await?;
                    $on::add_spawns(&mut transaction, spawns).await?;
                    self.commit(transaction, Told::Nothing).await
                })
                .await
            }

            async fn reserve(
                &self,
                row: &SandboxRow,
                limit: u32,
                claim: Option<&IdempotencyClaim>,
            ) -> Result<Reservation, StoreError> {
                named("insert a sandbox", self.reserve_row(row, limit, claim)).await
            }

            async fn advance(
                &self,
                sandbox_id: &SandboxId,
                expected: (SandboxState, Epoch),
                progress: &Progress,
            ) -> Result<Swap, StoreError> {
                let swap = self.advance_row(sandbox_id, expected, progress);
                named("change a sandbox", swap).await
            }

            async fn reclaim(
                &self,
                team_id: &TeamId,
                sandbox_id: &SandboxId,
                expected: (SandboxState, Epoch),
                progress: &Progress,
                limit: u32,
            ) -> Result<Reclaim, StoreError> {
                named("take a paused sandbox's place back", async {
                    let mut transaction = self.begin_placing(team_id).await?;
                    let outcome = $on::reclaim(
                        &mut transaction,
                        team_id,
                        sandbox_id,
                        expected,
                        progress,
                        limit,
                    )
                    .await?;
                    let told = match outcome {
                        Reclaim::Done => Told::Sandbox(sandbox_id),
                        Reclaim::LimitReached | Reclaim::Conflict => Told::Nothing,
                    };
                    self.commit(transaction, told).await?;
                    Ok(outcome)
                })
                .await
            }

            async fn set_network(
                &self,
                sandbox_id: &SandboxId,
                network: &Network,
            ) -> Result<(), StoreError> {
                named("change the network of a sandbox", async {
                    let mut transaction = self.begin_fast().await?;
                    let changed = $on::set_network(&mut transaction, sandbox_id, network).await?;
                    let told = if changed {
                        Told::Sandbox(sandbox_id)
                    } else {
                        Told::Nothing
                    };
                    self.commit(transaction, told).await
                })
                .await
            }

            async fn set_at_deadline(
                &self,
                sandbox_id: &SandboxId,
                at_deadline: AtDeadline,
            ) -> Result<(), StoreError> {
                named("change the deadline of a sandbox", async {
                    let mut transaction = self.begin_fast().await?;
                    let changed =
                        $on::set_at_deadline(&mut transaction, sandbox_id, at_deadline).await?;
                    let told = if changed {
                        Told::Sandbox(sandbox_id)
                    } else {
                        Told::Nothing
                    };
                    self.commit(transaction, told).await
                })
                .await
            }

            async fn sandbox(
                &self,
                sandbox_id: &SandboxId,
            ) -> Result<Option<SandboxRow>, StoreError> {
                named("read a sandbox", async {
                    $on::sandbox(&mut *self.read().await?, sandbox_id.as_str()).await
                })
                .await
            }

            async fn live_sandboxes(
                &self,
                team_id: Option<&TeamId>,
            ) -> Result<Vec<SandboxRow>, StoreError> {
                named("list sandboxes", async {
                    $on::live_sandboxes(&mut *self.read().await?, team_id).await
                })
                .await
            }

            async fn page(
                &self,
                team_id: &TeamId,
                template: Option<&TemplateId>,
                query: &ListQuery,
            ) -> Result<Page<SandboxRow>, StoreError> {
                named("list sandboxes", async {
                    pages::$on(&mut *self.read().await?, team_id, template, query).await
                })
                .await
            }

            async fn prune(&self, before: UnixMillis) -> Result<u64, StoreError> {
                named("prune sandboxes", async {
                    let mut transaction = self.begin_fast().await?;
                    let pruned = $on::prune(&mut transaction, before).await?;
                    self.commit(transaction, Told::Nothing).await?;
                    Ok(pruned)
                })
                .await
            }

            fn shared(&self) -> bool {
                Self::SHARED
            }

            async fn changes(&self) -> Result<Option<Box<dyn Changes>>, StoreError> {
                named("look for changes", async {
                    let changes: Box<dyn Changes> = Box::new(self.listen().await?);
                    Ok(Some(changes))
                })
                .await
            }

            async fn maintain(&self) -> Result<(), StoreError> {
                named("write a checkpoint", self.checkpoint()).await
            }
        }
    };
}

store!(SqliteStore, on_sqlite);
store!(PostgresStore, on_postgres);

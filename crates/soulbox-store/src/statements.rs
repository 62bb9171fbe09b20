//! The statements of [`soulbox_control::Store`] that both databases share, so a macro makes both sets of functions. Each takes a connection,
//! which may be a transaction of the caller's.
//!
//! Parameters are `$1` and so on, numbers are `i64`, and nothing is used that one database calls otherwise than the other.

use soulbox_control::{
    AliasRow, AssignmentRow, AtDeadline, BuildRow, CatalogRows, IdempotencyClaim, KeyKind, KeyRow,
    Progress, Reclaim, Reservation, SandboxRow, SnapshotRow, Spawns, TeamRow, TemplateRow,
};
use soulbox_types::{
    BuildId, DeathCause, Epoch, HostMask, Network, SandboxId, SandboxState, TeamId, TemplateId,
    UnixMillis,
};
use sqlx::sqlite::SqliteConnection;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::rows::{self, number, optional};

/// The table of a kind of key.
fn key_table(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::ApiKey => "api_keys",
        KeyKind::AccessToken => "access_tokens",
    }
}

macro_rules! statements {
    ($module:ident, $connection:ty) => {
        pub(crate) mod $module {
            use super::*;

            /// Inserts the team unless its slug exists.
            pub(crate) async fn insert_team(
                connection: &mut $connection,
                team: &TeamRow,
            ) -> Result<(), sqlx::Error> {
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
                .execute(connection)
                .await
                .map(drop)
            }

            pub(crate) async fn team_of_slug(
                connection: &mut $connection,
                slug: &str,
            ) -> Result<Option<TeamRow>, sqlx::Error> {
                let row = sqlx::query("SELECT * FROM teams WHERE slug = $1")
                    .bind(slug)
                    .fetch_optional(connection)
                    .await?;
                row.as_ref().map(rows::team).transpose()
            }

            pub(crate) async fn team(
                connection: &mut $connection,
                team_id: &TeamId,
            ) -> Result<Option<TeamRow>, sqlx::Error> {
                let row = sqlx::query("SELECT * FROM teams WHERE team_id = $1")
                    .bind(team_id.as_str())
                    .fetch_optional(connection)
                    .await?;
                row.as_ref().map(rows::team).transpose()
            }

            pub(crate) async fn teams(
                connection: &mut $connection,
            ) -> Result<Vec<TeamRow>, sqlx::Error> {
                let all = sqlx::query("SELECT * FROM teams ORDER BY slug")
                    .fetch_all(connection)
                    .await?;
                all.iter().map(rows::team).collect()
            }

            pub(crate) async fn update_team(
                connection: &mut $connection,
                team: &TeamRow,
            ) -> Result<bool, sqlx::Error> {
                sqlx::query(
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
                .execute(connection)
                .await
                .map(|done| done.rows_affected() > 0)
            }

            /// Makes this the one key of its team, kind and name; whether there were others.
            pub(crate) async fn replace_key(
                connection: &mut $connection,
                kind: KeyKind,
                key: &KeyRow,
            ) -> Result<bool, sqlx::Error> {
                let table = key_table(kind);
                let deleted = sqlx::query(AssertSqlSafe(format!(
                    "DELETE FROM {table} WHERE team_id = $1 AND name = $2 AND hash <> $3"
                )))
                .bind(key.team_id.as_str())
                .bind(&key.name)
                .bind(&key.hash)
                .execute(&mut *connection)
                .await?;
                insert_key(connection, kind, key, "ON CONFLICT (hash) DO NOTHING").await?;
                Ok(deleted.rows_affected() > 0)
            }

            pub(crate) async fn insert_key(
                connection: &mut $connection,
                kind: KeyKind,
                key: &KeyRow,
                on_conflict: &str,
            ) -> Result<(), sqlx::Error> {
                let table = key_table(kind);
                sqlx::query(AssertSqlSafe(format!(
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

            pub(crate) async fn key(
                connection: &mut $connection,
                kind: KeyKind,
                hash: &str,
            ) -> Result<Option<(KeyRow, TeamRow)>, sqlx::Error> {
                let table = key_table(kind);
                let statement = format!("SELECT * FROM {table} WHERE hash = $1");
                let row = sqlx::query(AssertSqlSafe(statement))
                    .bind(hash)
                    .fetch_optional(&mut *connection)
                    .await?;
                let Some(row) = row else { return Ok(None) };
                let key = rows::key(&row)?;
                let team = team(connection, &key.team_id).await?;
                Ok(team.map(|team| (key, team)))
            }

            pub(crate) async fn api_keys(
                connection: &mut $connection,
                team_id: &TeamId,
            ) -> Result<Vec<KeyRow>, sqlx::Error> {
                let all = sqlx::query(
                    "SELECT * FROM api_keys WHERE team_id = $1 ORDER BY created_at, key_id",
                )
                .bind(team_id.as_str())
                .fetch_all(connection)
                .await?;
                all.iter().map(rows::key).collect()
            }

            pub(crate) async fn rename_api_key(
                connection: &mut $connection,
                team_id: &TeamId,
                key_id: &str,
                name: &str,
            ) -> Result<bool, sqlx::Error> {
                sqlx::query("UPDATE api_keys SET name = $1 WHERE team_id = $2 AND key_id = $3")
                    .bind(name)
                    .bind(team_id.as_str())
                    .bind(key_id)
                    .execute(connection)
                    .await
                    .map(|done| done.rows_affected() > 0)
            }

            pub(crate) async fn delete_api_key(
                connection: &mut $connection,
                team_id: &TeamId,
                key_id: &str,
            ) -> Result<bool, sqlx::Error> {
                sqlx::query("DELETE FROM api_keys WHERE team_id = $1 AND key_id = $2")
                    .bind(team_id.as_str())
                    .bind(key_id)
                    .execute(connection)
                    .await
                    .map(|done| done.rows_affected() > 0)
            }

            pub(crate) async fn touch_keys(
                connection: &mut $connection,
                used: &[(String, UnixMillis)],
            ) -> Result<(), sqlx::Error> {
                // In one order, so that two servers that note the same keys do not wait for each other.
                let mut used: Vec<_> = used.iter().collect();
                used.sort();
                for (key_id, at) in used {
                    sqlx::query(
                        "UPDATE api_keys SET last_used_at = CASE WHEN last_used_at > $1 THEN last_used_at ELSE $1 END \
                         WHERE key_id = $2",
                    )
                    .bind(number(at.0))
                    .bind(key_id)
                    .execute(&mut *connection)
                    .await?;
                }
                Ok(())
            }

            /// Notes when a tag is taken from the build that it is on, for [`soulbox_control::RetiredBuilds`].
            pub(crate) async fn let_go(
                connection: &mut $connection,
                template_id: &TemplateId,
                tag: &str,
                at: UnixMillis,
            ) -> Result<(), sqlx::Error> {
                sqlx::query(
                    "UPDATE builds SET updated_at = $3 WHERE updated_at < $3 AND build_id = \
                     (SELECT held.build_id FROM assignments JOIN builds AS held ON held.build_id = assignments.build_id \
                     WHERE assignments.template_id = $1 AND assignments.tag = $2 AND held.status = 'ready' \
                     ORDER BY assignments.assignment_number DESC LIMIT 1)",
                )
                .bind(template_id.as_str())
                .bind(tag)
                .bind(number(at.0))
                .execute(&mut *connection)
                .await
                .map(drop)
            }

            /// The template's row comes first, which is a lock of it, so that two servers do not tag the same build twice.
            pub(crate) async fn register(
                connection: &mut $connection,
                template: &TemplateRow,
                build: &BuildRow,
                aliases: &[AliasRow],
                assignment: &AssignmentRow,
            ) -> Result<(), sqlx::Error> {
                sqlx::query(
                    "INSERT INTO templates (template_id, team_id, public, created_at, updated_at) VALUES ($1, $2, $3, $4, $5) \
                     ON CONFLICT (template_id) DO UPDATE SET deleted_at = NULL, \
                     updated_at = CASE WHEN templates.updated_at > excluded.updated_at THEN templates.updated_at \
                     ELSE excluded.updated_at END",
                )
                .bind(template.template_id.as_str())
                .bind(template.team_id.as_str())
                .bind(i64::from(template.public))
                .bind(number(template.created_at.0))
                .bind(number(template.updated_at.0))
                .execute(&mut *connection)
                .await?;
                sqlx::query(
                    "INSERT INTO builds (build_id, template_id, status, cpu_milli, memory_mib, disk_mib, pids, default_user, \
                     default_workdir, envd_version, created_at, updated_at, finished_at, policy) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) ON CONFLICT (build_id) DO NOTHING",
                )
                .bind(build.build_id.as_str())
                .bind(build.template_id.as_str())
                .bind(rows::status_name(build.status))
                .bind(i64::from(build.limits.cpu.0))
                .bind(number(build.limits.memory.0))
                .bind(number(build.limits.disk.0))
                .bind(i64::from(build.limits.pids))
                .bind(&build.default_user)
                .bind(&build.default_workdir)
                .bind(&build.envd_version)
                .bind(number(build.created_at.0))
                .bind(number(build.updated_at.0))
                .bind(optional(build.finished_at))
                .bind(rows::policy_text(&build.policy))
                .execute(&mut *connection)
                .await?;
                for alias in aliases {
                    sqlx::query(
                        "INSERT INTO aliases (namespace, alias, template_id) VALUES ($1, $2, $3) \
                         ON CONFLICT (namespace, alias) DO UPDATE SET template_id = excluded.template_id",
                    )
                    .bind(&alias.namespace)
                    .bind(&alias.alias)
                    .bind(alias.template_id.as_str())
                    .execute(&mut *connection)
                    .await?;
                }
                let current = sqlx::query(
                    "SELECT build_id FROM assignments WHERE template_id = $1 AND tag = $2 \
                     ORDER BY assignment_number DESC LIMIT 1",
                )
                .bind(assignment.template_id.as_str())
                .bind(&assignment.tag)
                .fetch_optional(&mut *connection)
                .await?;
                if let Some(current) = current
                    && current.try_get::<String, _>("build_id")? == assignment.build_id.as_str()
                {
                    return Ok(());
                }
                let at = assignment.assigned_at;
                let_go(&mut *connection, &assignment.template_id, &assignment.tag, at).await?;
                sqlx::query(
                    "INSERT INTO assignments (assignment_id, template_id, build_id, tag, assigned_at) \
                     VALUES ($1, $2, $3, $4, $5)",
                )
                .bind(&assignment.assignment_id)
                .bind(assignment.template_id.as_str())
                .bind(assignment.build_id.as_str())
                .bind(&assignment.tag)
                .bind(number(assignment.assigned_at.0))
                .execute(connection)
                .await
                .map(drop)
            }

            pub(crate) async fn insert_snapshot(
                connection: &mut $connection,
                snapshot: &SnapshotRow,
            ) -> Result<(), sqlx::Error> {
                sqlx::query(
                    "INSERT INTO snapshots (build_id, template_id, team_id, sandbox_id, snapshot_name, host_build_id, memory, \
                     disk_bytes, image_bytes, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
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

            pub(crate) async fn forget_snapshots(
                connection: &mut $connection,
                builds: &[BuildId],
            ) -> Result<(), sqlx::Error> {
                for build_id in builds {
                    sqlx::query("DELETE FROM snapshots WHERE build_id = $1")
                        .bind(build_id.as_str())
                        .execute(&mut *connection)
                        .await?;
                }
                Ok(())
            }

            /// Within a transaction that sees one moment, so that the tables fit together.
            pub(crate) async fn catalog(
                connection: &mut $connection,
            ) -> Result<CatalogRows, sqlx::Error> {
                let templates = sqlx::query("SELECT * FROM templates WHERE deleted_at IS NULL")
                    .fetch_all(&mut *connection)
                    .await?;
                let builds = sqlx::query("SELECT * FROM builds")
                    .fetch_all(&mut *connection)
                    .await?;
                let aliases = sqlx::query("SELECT * FROM aliases")
                    .fetch_all(&mut *connection)
                    .await?;
                let snapshots = sqlx::query("SELECT * FROM snapshots")
                    .fetch_all(&mut *connection)
                    .await?;
                let assignments =
                    sqlx::query("SELECT * FROM assignments ORDER BY assignment_number")
                        .fetch_all(connection)
                        .await?;
                Ok(CatalogRows {
                    templates: templates.iter().map(rows::template).collect::<Result<_, _>>()?,
                    builds: builds.iter().map(rows::build).collect::<Result<_, _>>()?,
                    aliases: aliases.iter().map(rows::alias).collect::<Result<_, _>>()?,
                    snapshots: snapshots.iter().map(rows::snapshot).collect::<Result<_, _>>()?,
                    assignments: assignments
                        .iter()
                        .map(rows::assignment)
                        .collect::<Result<_, _>>()?,
                })
            }

            pub(crate) async fn add_spawns(
                connection: &mut $connection,
                spawns: &[Spawns],
            ) -> Result<(), sqlx::Error> {
                // In one order, so that two servers do not wait for each other's rows.
                let mut spawns: Vec<_> = spawns.iter().collect();
                spawns.sort_by(|a, b| a.template_id.cmp(&b.template_id));
                for spawned in spawns {
                    sqlx::query(
                        "UPDATE templates SET spawn_count = spawn_count + $1, last_spawned_at = \
                         CASE WHEN last_spawned_at > $2 THEN last_spawned_at ELSE $2 END WHERE template_id = $3",
                    )
                    .bind(number(spawned.count))
                    .bind(number(spawned.last.0))
                    .bind(spawned.template_id.as_str())
                    .execute(&mut *connection)
                    .await?;
                }
                Ok(())
            }

            /// With a claim, or where several servers count, within a transaction that no other create of the team runs beside.
            pub(crate) async fn reserve(
                connection: &mut $connection,
                row: &SandboxRow,
                limit: u32,
                claim: Option<&IdempotencyClaim>,
            ) -> Result<Reservation, sqlx::Error> {
                if let Some(claim) = claim
                    && let Some((fingerprint, sandbox)) =
                        claimed(&mut *connection, row, claim).await?
                {
                    return Ok(Reservation::AlreadyClaimed {
                        fingerprint,
                        sandbox,
                    });
                }
                if !insert_sandbox(&mut *connection, row, limit).await? {
                    return Ok(Reservation::LimitReached);
                }
                if let Some(claim) = claim {
                    sqlx::query(
                        "INSERT INTO idempotency_claims (team_id, claim_key, fingerprint, sandbox_id, claimed_at) \
                         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (team_id, claim_key) DO UPDATE SET fingerprint = \
                         excluded.fingerprint, sandbox_id = excluded.sandbox_id, claimed_at = excluded.claimed_at",
                    )
                    .bind(row.team_id.as_str())
                    .bind(&claim.key)
                    .bind(&claim.fingerprint)
                    .bind(row.sandbox_id.as_str())
                    .bind(number(row.created_at.0))
                    .execute(connection)
                    .await?;
                }
                Ok(Reservation::Made)
            }

            /// Inserts the row if the team has fewer live sandboxes than `limit`: one statement, so that no two creates of one server share
            /// the last place.
            async fn insert_sandbox(
                connection: &mut $connection,
                row: &SandboxRow,
                limit: u32,
            ) -> Result<bool, sqlx::Error> {
                let inserted = sqlx::query(
                    "INSERT INTO sandboxes (sandbox_id, team_id, template_id, build_id, alias, metadata, cpu_milli, memory_mib, \
                     disk_mib, pids, internet_access, allow_out, deny_out, secure, public_traffic, host_mask, https_ports, \
                     envd_version, created_at, state, epoch, started_at, deadline, ended_at, cause, at_deadline, auto_resume, \
                     host_build_id) SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, \
                     $20, $21, $22, $23, $24, $25, $26, $27, $28 \
                     WHERE (SELECT count(*) FROM sandboxes WHERE team_id = $2 AND state <> 'dead' AND state <> 'paused') < $29",
                )
                .bind(row.sandbox_id.as_str())
                .bind(row.team_id.as_str())
                .bind(row.template_id.as_str())
                .bind(row.build_id.as_str())
                .bind(&row.alias)
                .bind(rows::metadata_text(&row.metadata))
                .bind(i64::from(row.limits.cpu.0))
                .bind(number(row.limits.memory.0))
                .bind(number(row.limits.disk.0))
                .bind(i64::from(row.limits.pids))
                .bind(row.network.internet_access().map(i64::from))
                .bind(rows::list_text(row.network.allow_out()))
                .bind(rows::list_text(row.network.deny_out()))
                .bind(i64::from(row.secure))
                .bind(i64::from(row.public_traffic))
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
                .bind(i64::from(limit))
                .execute(connection)
                .await?;
                Ok(inserted.rows_affected() == 1)
            }

            /// The earlier create of this key. One that failed to start has changed nothing, so the key is free again.
            async fn claimed(
                connection: &mut $connection,
                row: &SandboxRow,
                claim: &IdempotencyClaim,
            ) -> Result<Option<(String, Option<Box<SandboxRow>>)>, sqlx::Error> {
                let earlier = sqlx::query(
                    "SELECT fingerprint, sandbox_id FROM idempotency_claims WHERE team_id = $1 AND claim_key = $2",
                )
                .bind(row.team_id.as_str())
                .bind(&claim.key)
                .fetch_optional(&mut *connection)
                .await?;
                let Some(earlier) = earlier else {
                    return Ok(None);
                };
                let fingerprint: String = earlier.try_get("fingerprint")?;
                let sandbox = sandbox(connection, earlier.try_get("sandbox_id")?).await?;
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

            /// Within a transaction that no create or resume of the team runs beside.
            pub(crate) async fn reclaim(
                connection: &mut $connection,
                team_id: &TeamId,
                sandbox_id: &SandboxId,
                expected: (SandboxState, Epoch),
                progress: &Progress,
                limit: u32,
            ) -> Result<Reclaim, sqlx::Error> {
                let changed = sqlx::query(
                    "UPDATE sandboxes SET state = $1, epoch = $2, deadline = $3 WHERE sandbox_id = $4 AND state = $5 AND epoch = $6 \
                     AND (SELECT count(*) FROM sandboxes WHERE team_id = $7 AND state <> 'dead' AND state <> 'paused') < $8",
                )
                .bind(rows::state_name(progress.state))
                .bind(number(progress.epoch.0))
                .bind(number(progress.deadline.0))
                .bind(sandbox_id.as_str())
                .bind(rows::state_name(expected.0))
                .bind(number(expected.1.0))
                .bind(team_id.as_str())
                .bind(i64::from(limit))
                .execute(&mut *connection)
                .await?;
                if changed.rows_affected() == 1 {
                    return Ok(Reclaim::Done);
                }
                // Another server that has just resumed it takes the very place, and that is no limit.
                let found = sandbox(connection, sandbox_id.as_str()).await?;
                let as_expected = found
                    .is_some_and(|row| (row.progress.state, row.progress.epoch) == expected);
                Ok(if as_expected {
                    Reclaim::LimitReached
                } else {
                    Reclaim::Conflict
                })
            }

            pub(crate) async fn sandbox(
                connection: &mut $connection,
                sandbox_id: &str,
            ) -> Result<Option<SandboxRow>, sqlx::Error> {
                let row = sqlx::query("SELECT * FROM sandboxes WHERE sandbox_id = $1")
                    .bind(sandbox_id)
                    .fetch_optional(connection)
                    .await?;
                row.as_ref().map(rows::sandbox).transpose()
            }

            pub(crate) async fn live_sandboxes(
                connection: &mut $connection,
                team_id: Option<&TeamId>,
            ) -> Result<Vec<SandboxRow>, sqlx::Error> {
                let query = match team_id {
                    Some(team_id) => {
                        sqlx::query("SELECT * FROM sandboxes WHERE team_id = $1 AND state <> 'dead'")
                            .bind(team_id.as_str())
                    }
                    None => sqlx::query("SELECT * FROM sandboxes WHERE state <> 'dead'"),
                };
                let all = query.fetch_all(connection).await?;
                all.iter().map(rows::sandbox).collect()
            }

            /// False when it is dead or not there.
            pub(crate) async fn set_network(
                connection: &mut $connection,
                sandbox_id: &SandboxId,
                network: &Network,
            ) -> Result<bool, sqlx::Error> {
                sqlx::query(
                    "UPDATE sandboxes SET internet_access = $1, allow_out = $2, deny_out = $3 \
                     WHERE sandbox_id = $4 AND state <> 'dead'",
                )
                .bind(network.internet_access().map(i64::from))
                .bind(rows::list_text(network.allow_out()))
                .bind(rows::list_text(network.deny_out()))
                .bind(sandbox_id.as_str())
                .execute(connection)
                .await
                .map(|done| done.rows_affected() > 0)
            }

            /// As `set_network`.
            pub(crate) async fn set_at_deadline(
                connection: &mut $connection,
                sandbox_id: &SandboxId,
                at_deadline: AtDeadline,
            ) -> Result<bool, sqlx::Error> {
                sqlx::query(
                    "UPDATE sandboxes SET at_deadline = $1 WHERE sandbox_id = $2 AND state <> 'dead'",
                )
                .bind(rows::at_deadline_name(at_deadline))
                .bind(sandbox_id.as_str())
                .execute(connection)
                .await
                .map(|done| done.rows_affected() > 0)
            }

            pub(crate) async fn prune(
                connection: &mut $connection,
                before: UnixMillis,
            ) -> Result<u64, sqlx::Error> {
                sqlx::query("DELETE FROM idempotency_claims WHERE claimed_at < $1")
                    .bind(number(before.0))
                    .execute(&mut *connection)
                    .await?;
                sqlx::query("DELETE FROM sandboxes WHERE state = 'dead' AND ended_at < $1")
                    .bind(number(before.0))
                    .execute(connection)
                    .await
                    .map(|done| done.rows_affected())
            }
        }
    };
}

statements!(on_sqlite, SqliteConnection);
statements!(on_postgres, PgConnection);

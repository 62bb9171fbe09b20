//! Rows of sandboxes: reservations, compare-and-swap, idempotency claims.

use soulbox_control::{
    AtDeadline, IdempotencyClaim, Network, Progress, Reclaim, Reservation, SandboxRow, Swap,
};
use soulbox_types::{DeathCause, Epoch, HostMask, SandboxId, SandboxState, TeamId, UnixMillis};
use sqlx::postgres::PgPool;
use sqlx::{PgConnection, Row};

use super::changes;
use crate::rows::{self, number, optional};

/// Within a transaction of the caller's.
pub(super) async fn reserve(
    connection: &mut PgConnection,
    row: &SandboxRow,
    limit: u32,
    claim: Option<&IdempotencyClaim>,
) -> Result<Reservation, sqlx::Error> {
    // Creates of one team come one after the other: READ COMMITTED lets two of them count the same rows otherwise. The lock is a
    // statement of its own, since a statement sees what was committed before it began.
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('soulbox create ' || $1, 0))")
        .bind(row.team_id.as_str())
        .execute(&mut *connection)
        .await?;
    let Some(claim) = claim else {
        return Ok(if insert(connection, row, limit).await? {
            Reservation::Made
        } else {
            Reservation::LimitReached
        });
    };
    if let Some((fingerprint, sandbox)) = claimed(connection, row, claim).await? {
        return Ok(Reservation::AlreadyClaimed {
            fingerprint,
            sandbox,
        });
    }
    if !insert(connection, row, limit).await? {
        return Ok(Reservation::LimitReached);
    }
    sqlx::query(
        "INSERT INTO idempotency_claims (team_id, claim_key, fingerprint, sandbox_id, claimed_at) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (team_id, claim_key) DO UPDATE SET \
         fingerprint = excluded.fingerprint, sandbox_id = excluded.sandbox_id, claimed_at = excluded.claimed_at",
    )
    .bind(row.team_id.as_str())
    .bind(&claim.key)
    .bind(&claim.fingerprint)
    .bind(row.sandbox_id.as_str())
    .bind(number(row.created_at.0))
    .execute(connection)
    .await?;
    Ok(Reservation::Made)
}

async fn insert(
    connection: &mut PgConnection,
    row: &SandboxRow,
    limit: u32,
) -> Result<bool, sqlx::Error> {
    let inserted = sqlx::query(
        "INSERT INTO sandboxes (sandbox_id, team_id, template_id, build_id, alias, metadata, cpu_milli, memory_mib, \
         disk_mib, pids, internet_access, allow_out, deny_out, secure, public_traffic, host_mask, https_ports, envd_version, created_at, \
         state, epoch, started_at, deadline, ended_at, cause, at_deadline, auto_resume, host_build_id) \
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28 \
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
    connection: &mut PgConnection,
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
    let sandbox = sqlx::query("SELECT * FROM sandboxes WHERE sandbox_id = $1")
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

/// One statement and one round trip: the swap, and the news of it only when it was made.
pub(super) async fn advance(
    pool: &PgPool,
    origin: &str,
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
    .bind(changes::channel())
    .bind(changes::of_sandbox(origin, sandbox_id))
    .bind(pause_epoch)
    .bind(pause_by)
    .bind(paused_at)
    .bind(pause_memory)
    .bind(expired)
    .fetch_optional(pool)
    .await?;
    Ok(if swapped.is_some() {
        Swap::Done
    } else {
        Swap::Conflict
    })
}

/// Within a transaction of the caller's; creates and resumes of one team come one after the other.
pub(super) async fn reclaim(
    connection: &mut PgConnection,
    origin: &str,
    (team_id, sandbox_id): (&TeamId, &SandboxId),
    expected: (SandboxState, Epoch),
    progress: &Progress,
    limit: u32,
) -> Result<Reclaim, sqlx::Error> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended('soulbox create ' || $1, 0))")
        .bind(team_id.as_str())
        .execute(&mut *connection)
        .await?;
    let swapped = sqlx::query(
        "WITH swapped AS (UPDATE sandboxes SET state = $1, epoch = $2, deadline = $3 \
         WHERE sandbox_id = $4 AND state = $5 AND epoch = $6 \
         AND (SELECT count(*) FROM sandboxes WHERE team_id = $9 AND state <> 'dead' AND state <> 'paused') < $10 \
         RETURNING 1) SELECT pg_notify($7, $8) FROM swapped",
    )
    .bind(rows::state_name(progress.state))
    .bind(number(progress.epoch.0))
    .bind(number(progress.deadline.0))
    .bind(sandbox_id.as_str())
    .bind(rows::state_name(expected.0))
    .bind(number(expected.1.0))
    .bind(changes::channel())
    .bind(changes::of_sandbox(origin, sandbox_id))
    .bind(team_id.as_str())
    .bind(i64::from(limit))
    .fetch_optional(&mut *connection)
    .await?;
    if swapped.is_some() {
        return Ok(Reclaim::Done);
    }
    // Another server that has just resumed it takes the very place, and that is no limit.
    let as_expected: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM sandboxes WHERE sandbox_id = $1 AND state = $2 AND epoch = $3)",
    )
    .bind(sandbox_id.as_str())
    .bind(rows::state_name(expected.0))
    .bind(number(expected.1.0))
    .fetch_one(connection)
    .await?;
    Ok(if as_expected {
        Reclaim::LimitReached
    } else {
        Reclaim::Conflict
    })
}

pub(super) async fn set_network(
    pool: &PgPool,
    origin: &str,
    sandbox_id: &SandboxId,
    network: &Network,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "WITH changed AS (UPDATE sandboxes SET internet_access = $1, allow_out = $2, deny_out = $3 \
         WHERE sandbox_id = $4 AND state <> 'dead' RETURNING 1) SELECT pg_notify($5, $6) FROM changed",
    )
    .bind(network.internet_access().map(i64::from))
    .bind(rows::list_text(network.allow_out()))
    .bind(rows::list_text(network.deny_out()))
    .bind(sandbox_id.as_str())
    .bind(changes::channel())
    .bind(changes::of_sandbox(origin, sandbox_id))
    .execute(pool)
    .await
    .map(drop)
}

pub(super) async fn set_at_deadline(
    pool: &PgPool,
    origin: &str,
    sandbox_id: &SandboxId,
    at_deadline: AtDeadline,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "WITH changed AS (UPDATE sandboxes SET at_deadline = $1 WHERE sandbox_id = $2 AND state <> 'dead' RETURNING 1) \
         SELECT pg_notify($3, $4) FROM changed",
    )
    .bind(rows::at_deadline_name(at_deadline))
    .bind(sandbox_id.as_str())
    .bind(changes::channel())
    .bind(changes::of_sandbox(origin, sandbox_id))
    .execute(pool)
    .await
    .map(drop)
}

pub(super) async fn prune(pool: &PgPool, before: UnixMillis) -> Result<u64, sqlx::Error> {
    sqlx::query("DELETE FROM idempotency_claims WHERE claimed_at < $1")
        .bind(number(before.0))
        .execute(pool)
        .await?;
    let pruned = sqlx::query("DELETE FROM sandboxes WHERE state = 'dead' AND ended_at < $1")
        .bind(number(before.0))
        .execute(pool)
        .await?;
    Ok(pruned.rows_affected())
}

//! Templates, builds, aliases and tags.

use soulbox_control::{
    AliasRow, AssignmentRow, BuildRow, CatalogRows, SnapshotRow, Spawns, TemplateRow,
};
use sqlx::postgres::PgPool;
use sqlx::{PgConnection, Row};

use crate::rows::{self, number, optional};

/// See `Store::register_template`. The template's row is locked first, so that two servers do not tag the same build twice.
pub(super) async fn register(
    connection: &mut PgConnection,
    template: &TemplateRow,
    build: &BuildRow,
    aliases: &[AliasRow],
    assignment: &AssignmentRow,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO templates (template_id, team_id, public, created_at, updated_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (template_id) DO UPDATE SET updated_at = greatest(templates.updated_at, excluded.updated_at), deleted_at = NULL",
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
         default_workdir, envd_version, created_at, updated_at, finished_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT (build_id) DO NOTHING",
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
        "SELECT build_id FROM assignments WHERE template_id = $1 AND tag = $2 ORDER BY assignment_number DESC LIMIT 1",
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
    sqlx::query(
        "INSERT INTO assignments (assignment_id, template_id, build_id, tag, assigned_at) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(&assignment.assignment_id)
    .bind(assignment.template_id.as_str())
    .bind(assignment.build_id.as_str())
    .bind(&assignment.tag)
    .bind(number(assignment.assigned_at.0))
    .execute(&mut *connection)
    .await
    .map(drop)
}

pub(super) async fn insert_snapshot(
    connection: &mut PgConnection,
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

pub(super) async fn catalog(pool: &PgPool) -> Result<CatalogRows, sqlx::Error> {
    // One snapshot, so that the four tables fit together.
    let mut transaction = pool
        .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .await?;
    let templates = sqlx::query("SELECT * FROM templates WHERE deleted_at IS NULL")
        .fetch_all(&mut *transaction)
        .await?;
    let builds = sqlx::query("SELECT * FROM builds")
        .fetch_all(&mut *transaction)
        .await?;
    let aliases = sqlx::query("SELECT * FROM aliases")
        .fetch_all(&mut *transaction)
        .await?;
    let snapshots = sqlx::query("SELECT * FROM snapshots")
        .fetch_all(&mut *transaction)
        .await?;
    let assignments = sqlx::query("SELECT * FROM assignments ORDER BY assignment_number")
        .fetch_all(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(CatalogRows {
        templates: templates
            .iter()
            .map(rows::template)
            .collect::<Result<_, _>>()?,
        builds: builds.iter().map(rows::build).collect::<Result<_, _>>()?,
        aliases: aliases.iter().map(rows::alias).collect::<Result<_, _>>()?,
        assignments: assignments
            .iter()
            .map(rows::assignment)
            .collect::<Result<_, _>>()?,
        snapshots: snapshots
            .iter()
            .map(rows::snapshot)
            .collect::<Result<_, _>>()?,
    })
}

pub(super) async fn add_spawns(
    connection: &mut PgConnection,
    spawns: &[Spawns],
) -> Result<(), sqlx::Error> {
    // In one order, so that two servers do not wait for each other's rows.
    let mut spawns: Vec<_> = spawns.iter().collect();
    spawns.sort_by(|a, b| a.template_id.cmp(&b.template_id));
    for spawned in spawns {
        sqlx::query(
            "UPDATE templates SET spawn_count = spawn_count + $1, \
             last_spawned_at = greatest(last_spawned_at, $2) WHERE template_id = $3",
        )
        .bind(number(spawned.count))
        .bind(number(spawned.last.0))
        .bind(spawned.template_id.as_str())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

//! [`TemplateStore`] on both databases: the statements are the same, so a macro makes both implementations.
//!
//! What differs is how a writing transaction begins (SQLite has one writer; in PostgreSQL a lock of the table of templates makes one) and
//! that PostgreSQL tells the other servers when it ends.

use async_trait::async_trait;
use soulbox_control::{
    AssignmentRow, BeginBuild, BuildDetails, BuildFailure, BuildLogLine, BuildSpecification,
    DeleteTemplate, FinishedBuild, LineQuery, LogDirection, LogLevel, NewBuild, Publish,
    StartBuild, StoreError, TemplateStore,
};
use soulbox_types::{BuildId, TeamId, TemplateId, UnixMillis};
use sqlx::sqlite::SqliteConnection;
use sqlx::{PgConnection, Postgres, Row, Sqlite, Transaction};

use crate::rows::{self, number, optional};
use crate::store::Told;
use crate::{PostgresStore, SqliteStore, failed};

/// What a build is told that a newer one took the place of.
const SUPERSEDED: &str = "build was superseded by a newer one with the same tag";
const CANCELLED: &str = "build was cancelled";
const NOT_STARTED: &str = "build was not started in time";
const LOST: &str = "the server that performed the build ended";

impl SqliteStore {
    pub(crate) async fn write(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.begin().await
    }
}

impl PostgresStore {
    pub(crate) async fn write(&self) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
        let mut transaction = self.begin().await?;
        sqlx::query("LOCK TABLE templates IN SHARE ROW EXCLUSIVE MODE")
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }
}

fn failure(step: Option<&str>, message: &str) -> String {
    let failure = BuildFailure {
        step: step.map(str::to_owned),
        message: message.to_owned(),
    };
    rows::json_text(&failure)
}

pub(crate) fn level_number(level: LogLevel) -> i64 {
    match level {
        LogLevel::Debug => 0,
        LogLevel::Info => 1,
        LogLevel::Warn => 2,
        LogLevel::Error => 3,
    }
}

pub(crate) fn level_of(number: i64) -> LogLevel {
    match number {
        0 => LogLevel::Debug,
        1 => LogLevel::Info,
        2 => LogLevel::Warn,
        _ => LogLevel::Error,
    }
}

macro_rules! statements {
    ($module:ident, $connection:ty, $row:ty) => {
        mod $module {
            use super::*;

            pub(super) async fn begin(
                connection: &mut $connection,
                new: &NewBuild,
            ) -> Result<BeginBuild, sqlx::Error> {
                let build = &new.build;
                let known = sqlx::query(
                    "SELECT template_id FROM aliases WHERE namespace = $1 AND alias = $2",
                )
                .bind(&new.team.slug)
                .bind(&new.name)
                .fetch_optional(&mut *connection)
                .await?;
                let template_id = match &known {
                    Some(row) => rows::parsed::<TemplateId>(row, "template_id")?,
                    None => build.template_id.clone(),
                };
                if known.is_none() {
                    let taken = sqlx::query("SELECT template_id FROM templates WHERE template_id = $1")
                        .bind(&new.name)
                        .fetch_optional(&mut *connection)
                        .await?;
                    if taken.is_some() {
                        return Ok(BeginBuild::NameTaken);
                    }
                    insert_template(&mut *connection, new).await?;
                }
                for assignment in &new.assignments {
                    let tag = &assignment.tag;
                    fail_tagged(&mut *connection, &template_id, tag, "waiting", None, build.created_at)
                        .await?;
                }
                let under_way: i64 = sqlx::query(
                    "SELECT count(*) AS count FROM builds JOIN templates ON templates.template_id = builds.template_id \
                     WHERE templates.team_id = $1 AND builds.status IN ('waiting', 'building')",
                )
                .bind(new.team.team_id.as_str())
                .fetch_one(&mut *connection)
                .await?
                .try_get("count")?;
                if under_way >= i64::from(new.max_builds) {
                    return Ok(BeginBuild::LimitReached);
                }
                sqlx::query(
                    "INSERT INTO builds (build_id, template_id, status, cpu_milli, memory_mib, disk_mib, pids, \
                     default_user, default_workdir, envd_version, created_at, updated_at, finished_at, policy) \
                     VALUES ($1, $2, 'waiting', $3, $4, $5, $6, $7, $8, $9, $10, $11, NULL, $12)",
                )
                .bind(build.build_id.as_str())
                .bind(template_id.as_str())
                .bind(i64::from(build.limits.cpu.0))
                .bind(number(build.limits.memory.0))
                .bind(number(build.limits.disk.0))
                .bind(i64::from(build.limits.pids))
                .bind(&build.default_user)
                .bind(&build.default_workdir)
                .bind(&build.envd_version)
                .bind(number(build.created_at.0))
                .bind(number(build.updated_at.0))
                .bind(rows::policy_text(&build.policy))
                .execute(&mut *connection)
                .await?;
                sqlx::query("INSERT INTO build_details (build_id, min_free_disk_mib) VALUES ($1, $2)")
                    .bind(build.build_id.as_str())
                    .bind(new.min_free_disk_mib.map(number))
                    .execute(&mut *connection)
                    .await?;
                for assignment in &new.assignments {
                    assign(&mut *connection, &template_id, assignment).await?;
                }
                Ok(BeginBuild::Begun { template_id })
            }

            async fn insert_template(
                connection: &mut $connection,
                new: &NewBuild,
            ) -> Result<(), sqlx::Error> {
                sqlx::query(
                    "INSERT INTO templates (template_id, team_id, public, created_at, updated_at) VALUES ($1, $2, 0, $3, $3)",
                )
                .bind(new.build.template_id.as_str())
                .bind(new.team.team_id.as_str())
                .bind(number(new.build.created_at.0))
                .execute(&mut *connection)
                .await?;
                sqlx::query("INSERT INTO aliases (namespace, alias, template_id) VALUES ($1, $2, $3)")
                    .bind(&new.team.slug)
                    .bind(&new.name)
                    .bind(new.build.template_id.as_str())
                    .execute(&mut *connection)
                    .await
                    .map(drop)
            }

            pub(super) async fn assign(
                connection: &mut $connection,
                template_id: &TemplateId,
                assignment: &AssignmentRow,
            ) -> Result<(), sqlx::Error> {
                sqlx::query(
                    "INSERT INTO assignments (assignment_id, template_id, build_id, tag, assigned_at) \
                     VALUES ($1, $2, $3, $4, $5)",
                )
                .bind(&assignment.assignment_id)
                .bind(template_id.as_str())
                .bind(assignment.build_id.as_str())
                .bind(&assignment.tag)
                .bind(number(assignment.assigned_at.0))
                .execute(&mut *connection)
                .await
                .map(drop)
            }

            /// Fails the builds of a template in this state that were given the tag, but for one.
            async fn fail_tagged(
                connection: &mut $connection,
                template_id: &TemplateId,
                tag: &str,
                status: &str,
                but: Option<&BuildId>,
                at: UnixMillis,
            ) -> Result<Vec<BuildId>, sqlx::Error> {
                let found = sqlx::query(
                    "SELECT DISTINCT builds.build_id AS build_id FROM builds \
                     JOIN assignments ON assignments.build_id = builds.build_id \
                     WHERE builds.template_id = $1 AND builds.status = $2 AND assignments.tag = $3",
                )
                .bind(template_id.as_str())
                .bind(status)
                .bind(tag)
                .fetch_all(&mut *connection)
                .await?;
                let mut failed = Vec::new();
                for row in &found {
                    let build_id: BuildId = rows::parsed(row, "build_id")?;
                    if but != Some(&build_id) {
                        end(&mut *connection, &build_id, Err(&failure(None, SUPERSEDED)), at).await?;
                        failed.push(build_id);
                    }
                }
                Ok(failed)
            }

            pub(super) async fn start(
                connection: &mut $connection,
                build_id: &BuildId,
                specification: &BuildSpecification,
                at: UnixMillis,
            ) -> Result<StartBuild, sqlx::Error> {
                let started = sqlx::query(
                    "UPDATE builds SET status = 'building', updated_at = $1 WHERE build_id = $2 AND status = 'waiting'",
                )
                .bind(number(at.0))
                .bind(build_id.as_str())
                .execute(&mut *connection)
                .await?
                .rows_affected();
                if started == 0 {
                    return Ok(StartBuild::NotWaiting);
                }
                sqlx::query("UPDATE build_details SET specification = $1 WHERE build_id = $2")
                    .bind(rows::json_text(specification))
                    .bind(build_id.as_str())
                    .execute(&mut *connection)
                    .await?;
                let tagged = sqlx::query("SELECT template_id, tag FROM assignments WHERE build_id = $1")
                    .bind(build_id.as_str())
                    .fetch_all(&mut *connection)
                    .await?;
                let mut superseded = Vec::new();
                for row in &tagged {
                    let template_id: TemplateId = rows::parsed(row, "template_id")?;
                    let tag: String = row.try_get("tag")?;
                    superseded.extend(
                        fail_tagged(&mut *connection, &template_id, &tag, "building", Some(build_id), at)
                            .await?,
                    );
                }
                Ok(StartBuild::Started { superseded })
            }

            /// Ends a build that is not over, with the JSON of its failure or with what it ended with.
            pub(super) async fn end(
                connection: &mut $connection,
                build_id: &BuildId,
                outcome: Result<&FinishedBuild, &str>,
                at: UnixMillis,
            ) -> Result<bool, sqlx::Error> {
                if outcome.is_ok() {
                    let tagged =
                        sqlx::query("SELECT template_id, tag FROM assignments WHERE build_id = $1")
                            .bind(build_id.as_str())
                            .fetch_all(&mut *connection)
                            .await?;
                    for row in &tagged {
                        let template_id = rows::parsed(row, "template_id")?;
                        let tag: String = row.try_get("tag")?;
                        crate::statements::$module::let_go(&mut *connection, &template_id, &tag, at).await?;
                    }
                }
                let query = match outcome {
                    Ok(finished) => sqlx::query(
                        "UPDATE builds SET status = 'ready', updated_at = $1, finished_at = $1, default_user = $3, \
                         default_workdir = $4, envd_version = $5, disk_mib = $6 \
                         WHERE build_id = $2 AND status IN ('waiting', 'building')",
                    )
                    .bind(number(at.0))
                    .bind(build_id.as_str())
                    .bind(&finished.default_user)
                    .bind(&finished.default_workdir)
                    .bind(&finished.envd_version)
                    .bind(number(finished.disk_mib)),
                    Err(_) => sqlx::query(
                        "UPDATE builds SET status = 'failed', updated_at = $1, finished_at = $1 \
                         WHERE build_id = $2 AND status IN ('waiting', 'building')",
                    )
                    .bind(number(at.0))
                    .bind(build_id.as_str()),
                };
                if query.execute(&mut *connection).await?.rows_affected() == 0 {
                    return Ok(false);
                }
                let (statement, text) = match outcome {
                    Ok(finished) => (
                        "UPDATE build_details SET finished = $1 WHERE build_id = $2",
                        rows::json_text(finished),
                    ),
                    Err(failure) => (
                        "UPDATE build_details SET failure = $1 WHERE build_id = $2",
                        failure.to_owned(),
                    ),
                };
                sqlx::query(statement)
                    .bind(text)
                    .bind(build_id.as_str())
                    .execute(&mut *connection)
                    .await?;
                if outcome.is_ok() {
                    sqlx::query(
                        "UPDATE templates SET updated_at = $1 WHERE template_id = \
                         (SELECT template_id FROM builds WHERE build_id = $2)",
                    )
                    .bind(number(at.0))
                    .bind(build_id.as_str())
                    .execute(&mut *connection)
                    .await?;
                }
                Ok(true)
            }

            pub(super) async fn abandon(
                connection: &mut $connection,
                (waiting_since, silent_since): (UnixMillis, UnixMillis),
                at: UnixMillis,
            ) -> Result<Vec<BuildId>, sqlx::Error> {
                let mut abandoned = Vec::new();
                for (status, since, message) in [
                    ("waiting", waiting_since, NOT_STARTED),
                    ("building", silent_since, LOST),
                ] {
                    let found = sqlx::query(
                        "SELECT build_id FROM builds WHERE status = $1 AND updated_at < $2",
                    )
                    .bind(status)
                    .bind(number(since.0))
                    .fetch_all(&mut *connection)
                    .await?;
                    for row in &found {
                        let build_id = rows::parsed(row, "build_id")?;
                        end(&mut *connection, &build_id, Err(&failure(None, message)), at).await?;
                        abandoned.push(build_id);
                    }
                }
                Ok(abandoned)
            }

            pub(super) async fn cancel(
                connection: &mut $connection,
                team_id: &TeamId,
                at: UnixMillis,
            ) -> Result<Vec<BuildId>, sqlx::Error> {
                let found = sqlx::query(
                    "SELECT builds.build_id AS build_id FROM builds \
                     JOIN templates ON templates.template_id = builds.template_id \
                     WHERE templates.team_id = $1 AND builds.status IN ('waiting', 'building')",
                )
                .bind(team_id.as_str())
                .fetch_all(&mut *connection)
                .await?;
                let mut cancelled = Vec::new();
                for row in &found {
                    let build_id = rows::parsed(row, "build_id")?;
                    end(&mut *connection, &build_id, Err(&failure(None, CANCELLED)), at).await?;
                    cancelled.push(build_id);
                }
                Ok(cancelled)
            }

            pub(super) fn details(row: &$row) -> Result<BuildDetails, sqlx::Error> {
                Ok(BuildDetails {
                    specification: rows::json(row, "specification")?,
                    min_free_disk_mib: rows::optional_unsigned(row, "min_free_disk_mib")?,
                    finished: rows::json(row, "finished")?,
                    failure: rows::json(row, "failure")?,
                })
            }

            pub(super) async fn publish(
                connection: &mut $connection,
                template_id: &TemplateId,
                public: bool,
                global_alias: Option<&str>,
                at: UnixMillis,
            ) -> Result<Publish, sqlx::Error> {
                if let Some(alias) = global_alias {
                    let owner = sqlx::query(
                        "SELECT template_id FROM aliases WHERE namespace = '' AND alias = $1",
                    )
                    .bind(alias)
                    .fetch_optional(&mut *connection)
                    .await?;
                    match owner {
                        Some(row) if rows::parsed::<TemplateId>(&row, "template_id")? != *template_id => {
                            return Ok(Publish::AliasTaken);
                        }
                        Some(_) => {}
                        None => {
                            sqlx::query(
                                "INSERT INTO aliases (namespace, alias, template_id) VALUES ('', $1, $2)",
                            )
                            .bind(alias)
                            .bind(template_id.as_str())
                            .execute(&mut *connection)
                            .await?;
                        }
                    }
                }
                sqlx::query("UPDATE templates SET public = $1, updated_at = $2 WHERE template_id = $3")
                    .bind(i64::from(public))
                    .bind(number(at.0))
                    .bind(template_id.as_str())
                    .execute(&mut *connection)
                    .await?;
                Ok(Publish::Done)
            }

            pub(super) async fn delete(
                connection: &mut $connection,
                template_id: &TemplateId,
                at: UnixMillis,
            ) -> Result<DeleteTemplate, sqlx::Error> {
                let users = sqlx::query(
                    "SELECT DISTINCT state FROM sandboxes WHERE template_id = $1 AND state <> 'dead'",
                )
                .bind(template_id.as_str())
                .fetch_all(&mut *connection)
                .await?;
                let mut states = Vec::new();
                for row in &users {
                    states.push(row.try_get::<String, _>("state")?);
                }
                if states.iter().any(|it| it != "paused") {
                    return Ok(DeleteTemplate::HasRunning);
                }
                if !states.is_empty() {
                    return Ok(DeleteTemplate::HasPaused);
                }
                let gone = sqlx::query(
                    "UPDATE templates SET deleted_at = $1, updated_at = $1 WHERE template_id = $2 AND deleted_at IS NULL",
                )
                .bind(number(at.0))
                .bind(template_id.as_str())
                .execute(&mut *connection)
                .await?
                .rows_affected();
                if gone == 0 {
                    return Ok(DeleteTemplate::NotFound);
                }
                let found = sqlx::query("SELECT build_id FROM builds WHERE template_id = $1")
                    .bind(template_id.as_str())
                    .fetch_all(&mut *connection)
                    .await?;
                let builds = found
                    .iter()
                    .map(|row| rows::parsed(row, "build_id"))
                    .collect::<Result<_, _>>()?;
                // What refers to something comes before it.
                for statement in [
                    "INSERT INTO forgotten_builds (build_id) SELECT build_id FROM builds WHERE template_id = $1 \
                     ON CONFLICT (build_id) DO NOTHING",
                    "DELETE FROM aliases WHERE template_id = $1",
                    "DELETE FROM assignments WHERE template_id = $1",
                    "DELETE FROM build_lines WHERE build_id IN (SELECT build_id FROM builds WHERE template_id = $1)",
                    "DELETE FROM build_details WHERE build_id IN (SELECT build_id FROM builds WHERE template_id = $1)",
                    "DELETE FROM builds WHERE template_id = $1",
                ] {
                    sqlx::query(statement)
                        .bind(template_id.as_str())
                        .execute(&mut *connection)
                        .await?;
                }
                Ok(DeleteTemplate::Deleted { builds })
            }

            pub(super) async fn add_lines(
                connection: &mut $connection,
                build_id: &BuildId,
                lines: &[BuildLogLine],
            ) -> Result<(), sqlx::Error> {
                for line in lines {
                    // No database has a NUL in a text.
                    sqlx::query(
                        "INSERT INTO build_lines (build_id, logged_at, level, step, message) VALUES ($1, $2, $3, $4, $5)",
                    )
                    .bind(build_id.as_str())
                    .bind(number(line.at.0))
                    .bind(level_number(line.level))
                    .bind(&line.step)
                    .bind(line.message.replace('\0', "\u{fffd}"))
                    .execute(&mut *connection)
                    .await?;
                }
                Ok(())
            }

            pub(super) async fn lines(
                connection: &mut $connection,
                build_id: &BuildId,
                query: &LineQuery,
            ) -> Result<Vec<BuildLogLine>, sqlx::Error> {
                let statement = match query.direction {
                    LogDirection::Forward => {
                        "SELECT * FROM build_lines WHERE build_id = $1 AND level >= $2 AND logged_at >= $3 \
                         ORDER BY line_number LIMIT $4 OFFSET $5"
                    }
                    LogDirection::Backward => {
                        "SELECT * FROM build_lines WHERE build_id = $1 AND level >= $2 AND logged_at <= $3 \
                         ORDER BY line_number DESC LIMIT $4 OFFSET $5"
                    }
                };
                let everything = match query.direction {
                    LogDirection::Forward => 0,
                    LogDirection::Backward => i64::MAX,
                };
                sqlx::query(statement)
                    .bind(build_id.as_str())
                    .bind(level_number(query.level))
                    .bind(optional(query.cursor).unwrap_or(everything))
                    .bind(i64::from(query.limit))
                    .bind(number(query.offset))
                    .fetch_all(connection)
                    .await?
                    .iter()
                    .map(|row| {
                        Ok(BuildLogLine {
                            at: rows::moment(row, "logged_at")?,
                            level: level_of(row.try_get("level")?),
                            step: row.try_get("step")?,
                            message: row.try_get("message")?,
                        })
                    })
                    .collect()
            }
        }
    };
}

statements!(on_sqlite, SqliteConnection, sqlx::sqlite::SqliteRow);
statements!(on_postgres, PgConnection, sqlx::postgres::PgRow);

macro_rules! template_store {
    ($store:ty, $statements:ident) => {
        #[async_trait]
        impl TemplateStore for $store {
            async fn begin_build(&self, new: &NewBuild) -> Result<BeginBuild, StoreError> {
                const ACTION: &str = "insert a build";
                let mut transaction = self.write().await.map_err(failed(ACTION))?;
                let outcome = $statements::begin(&mut transaction, new)
                    .await
                    .map_err(failed(ACTION))?;
                // What was superseded on the way to a refusal is not: the transaction is dropped.
                if matches!(outcome, BeginBuild::Begun { .. }) {
                    self.commit(transaction, Told::Templates)
                        .await
                        .map_err(failed(ACTION))?;
                }
                Ok(outcome)
            }

            async fn start_build(
                &self,
                build_id: &BuildId,
                specification: &BuildSpecification,
                at: UnixMillis,
            ) -> Result<StartBuild, StoreError> {
                const ACTION: &str = "start a build";
                let mut transaction = self.write().await.map_err(failed(ACTION))?;
                let outcome = $statements::start(&mut transaction, build_id, specification, at)
                    .await
                    .map_err(failed(ACTION))?;
                self.commit(transaction, Told::Templates)
                    .await
                    .map_err(failed(ACTION))?;
                Ok(outcome)
            }

            async fn end_build(
                &self,
                build_id: &BuildId,
                outcome: Result<&FinishedBuild, &BuildFailure>,
                at: UnixMillis,
            ) -> Result<bool, StoreError> {
                const ACTION: &str = "end a build";
                let mut transaction = self.write().await.map_err(failed(ACTION))?;
                let text = outcome.err().map(rows::json_text).unwrap_or_default();
                let outcome = outcome.map_err(|_| text.as_str());
                let ended = $statements::end(&mut transaction, build_id, outcome, at)
                    .await
                    .map_err(failed(ACTION))?;
                self.commit(transaction, Told::Templates)
                    .await
                    .map_err(failed(ACTION))?;
                Ok(ended)
            }

            async fn touch_build(
                &self,
                build_id: &BuildId,
                at: UnixMillis,
            ) -> Result<bool, StoreError> {
                const ACTION: &str = "note that a build is under way";
                let mut transaction = self.write().await.map_err(failed(ACTION))?;
                let touched = sqlx::query(
                    "UPDATE builds SET updated_at = $1 WHERE build_id = $2 AND status = 'building'",
                )
                .bind(number(at.0))
                .bind(build_id.as_str())
                .execute(&mut *transaction)
                .await
                .map_err(failed(ACTION))?
                .rows_affected();
                // Nobody else has to hear of it.
                transaction.commit().await.map_err(failed(ACTION))?;
                Ok(touched > 0)
            }

            async fn abandon_builds(
                &self,
                waiting_since: UnixMillis,
                silent_since: UnixMillis,
                at: UnixMillis,
            ) -> Result<Vec<BuildId>, StoreError> {
                const ACTION: &str = "give up builds";
                let mut transaction = self.write().await.map_err(failed(ACTION))?;
                let since = (waiting_since, silent_since);
                let abandoned = $statements::abandon(&mut transaction, since, at)
                    .await
                    .map_err(failed(ACTION))?;
                if !abandoned.is_empty() {
                    self.commit(transaction, Told::Templates)
                        .await
                        .map_err(failed(ACTION))?;
                }
                Ok(abandoned)
            }

            async fn cancel_builds(
                &self,
                team_id: &TeamId,
                at: UnixMillis,
            ) -> Result<Vec<BuildId>, StoreError> {
                const ACTION: &str = "cancel the builds of a team";
                let mut transaction = self.write().await.map_err(failed(ACTION))?;
                let cancelled = $statements::cancel(&mut transaction, team_id, at)
                    .await
                    .map_err(failed(ACTION))?;
                self.commit(transaction, Told::Templates)
                    .await
                    .map_err(failed(ACTION))?;
                Ok(cancelled)
            }

            async fn build_details(&self, build_id: &BuildId) -> Result<BuildDetails, StoreError> {
                const ACTION: &str = "read a build";
                let found = sqlx::query("SELECT * FROM build_details WHERE build_id = $1")
                    .bind(build_id.as_str())
                    .fetch_optional(&mut *self.read().await.map_err(failed(ACTION))?)
                    .await
                    .map_err(failed(ACTION))?;
                found
                    .as_ref()
                    .map_or_else(|| Ok(BuildDetails::default()), $statements::details)
                    .map_err(failed(ACTION))
            }

            async fn add_build_lines(
                &self,
                build_id: &BuildId,
                lines: &[BuildLogLine],
            ) -> Result<(), StoreError> {
                const ACTION: &str = "write the log of a build";
                let mut transaction = self.begin_fast().await.map_err(failed(ACTION))?;
                $statements::add_lines(&mut transaction, build_id, lines)
                    .await
                    .map_err(failed(ACTION))?;
                transaction.commit().await.map_err(failed(ACTION))
            }

            async fn build_lines(
                &self,
                build_id: &BuildId,
                query: &LineQuery,
            ) -> Result<Vec<BuildLogLine>, StoreError> {
                const ACTION: &str = "read the log of a build";
                let mut connection = self.read().await.map_err(failed(ACTION))?;
                $statements::lines(&mut connection, build_id, query)
                    .await
                    .map_err(failed(ACTION))
            }

            async fn publish(
                &self,
                template_id: &TemplateId,
                public: bool,
                global_alias: Option<&str>,
                at: UnixMillis,
            ) -> Result<Publish, StoreError> {
                const ACTION: &str = "publish a template";
                let mut transaction = self.write().await.map_err(failed(ACTION))?;
                let outcome =
                    $statements::publish(&mut transaction, template_id, public, global_alias, at)
                        .await
                        .map_err(failed(ACTION))?;
                self.commit(transaction, Told::Templates)
                    .await
                    .map_err(failed(ACTION))?;
                Ok(outcome)
            }

            async fn delete_template(
                &self,
                template_id: &TemplateId,
                at: UnixMillis,
            ) -> Result<DeleteTemplate, StoreError> {
                const ACTION: &str = "delete a template";
                let mut transaction = self.write().await.map_err(failed(ACTION))?;
                let outcome = $statements::delete(&mut transaction, template_id, at)
                    .await
                    .map_err(failed(ACTION))?;
                self.commit(transaction, Told::Templates)
                    .await
                    .map_err(failed(ACTION))?;
                Ok(outcome)
            }

            async fn assign_tags(&self, assignments: &[AssignmentRow]) -> Result<(), StoreError> {
                const ACTION: &str = "tag a build";
                let mut transaction = self.write().await.map_err(failed(ACTION))?;
                for assignment in assignments {
                    let (template_id, tag) = (&assignment.template_id, &assignment.tag);
                    let at = assignment.assigned_at;
                    crate::statements::$statements::let_go(&mut transaction, template_id, tag, at)
                        .await
                        .map_err(failed(ACTION))?;
                    $statements::assign(&mut transaction, &assignment.template_id, assignment)
                        .await
                        .map_err(failed(ACTION))?;
                }
                self.commit(transaction, Told::Templates)
                    .await
                    .map_err(failed(ACTION))
            }

            async fn remove_tags(
                &self,
                template_id: &TemplateId,
                tags: &[String],
                at: UnixMillis,
            ) -> Result<(), StoreError> {
                const ACTION: &str = "remove tags";
                let mut transaction = self.write().await.map_err(failed(ACTION))?;
                for tag in tags {
                    crate::statements::$statements::let_go(&mut transaction, template_id, tag, at)
                        .await
                        .map_err(failed(ACTION))?;
                    sqlx::query("DELETE FROM assignments WHERE template_id = $1 AND tag = $2")
                        .bind(template_id.as_str())
                        .bind(tag)
                        .execute(&mut *transaction)
                        .await
                        .map_err(failed(ACTION))?;
                }
                self.commit(transaction, Told::Templates)
                    .await
                    .map_err(failed(ACTION))
            }
        }
    };
}

template_store!(SqliteStore, on_sqlite);
template_store!(PostgresStore, on_postgres);

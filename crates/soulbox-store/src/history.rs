//! [`History`] on both databases.

use async_trait::async_trait;
use soulbox_control::{History, KeptLine, KeptSample, LogLine, Room, Speaker, StoreError};
use soulbox_types::{SandboxId, TeamId, UnixMillis};
use sqlx::Row;

use crate::rows::{self, number};
use crate::store::{Told, named};
use crate::templates::{level_number, level_of};
use crate::{PostgresStore, SqliteStore};

/// Rows of one transaction: SQLite has one writer, and creates of sandboxes wait for it.
const AT_ONCE: usize = 64;

const BOUND: &str = "DELETE FROM log_lines WHERE sandbox_id = $1 AND is_guest = $2 AND (logged_at, line_number) IN (\
    SELECT logged_at, line_number FROM (\
        SELECT logged_at, line_number, count(*) OVER newer AS place, sum(bytes) OVER newer AS taken \
        FROM log_lines WHERE sandbox_id = $1 AND is_guest = $2 \
        WINDOW newer AS (ORDER BY logged_at DESC, line_number DESC)) AS counted \
    WHERE place > $3 OR taken > $4)";

/// Each time a few: nobody waits long for the one writer.
const DELETE_OLDEST: &str = "DELETE FROM log_lines WHERE (sandbox_id, is_guest, logged_at, line_number) IN (\
    SELECT sandbox_id, is_guest, logged_at, line_number FROM log_lines ORDER BY kept_at LIMIT $1) RETURNING bytes";
const AT_ONCE_DELETED: i64 = 500;

fn is_guest(speaker: Speaker) -> i64 {
    i64::from(speaker == Speaker::Guest)
}

fn size(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// No database has a NUL in a text.
fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

macro_rules! history {
    ($store:ty) => {
        #[async_trait]
        impl History for $store {
            async fn keep_lines(
                &self,
                at: UnixMillis,
                lines: &[KeptLine],
            ) -> Result<(), StoreError> {
                named("keep lines of logs", async {
                    // Two servers with the same lines would wait for each other if each had an order of its own.
                    let mut lines: Vec<_> = lines.iter().collect();
                    lines.sort_by_key(|it| (it.sandbox_id.as_str(), it.number));
                    for lines in lines.chunks(AT_ONCE) {
                        let mut transaction = self.begin_behind().await?;
                        for kept in lines {
                            let line = &kept.line;
                            sqlx::query(
                                "INSERT INTO log_lines (sandbox_id, is_guest, logged_at, line_number, level, logger, message, fields, \
                                 bytes, kept_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING",
                            )
                            .bind(kept.sandbox_id.as_str())
                            .bind(is_guest(kept.speaker))
                            .bind(number(line.at.0))
                            .bind(number(kept.number))
                            .bind(level_number(line.level))
                            .bind(text(&line.logger))
                            .bind(text(&line.message))
                            .bind(rows::json_text(&line.fields))
                            .bind(size(line.bytes()))
                            .bind(number(at.0))
                            .execute(&mut *transaction)
                            .await?;
                        }
                        self.commit(transaction, Told::Nothing).await?;
                    }
                    Ok(())
                })
                .await
            }

            async fn bound_lines(
                &self,
                sandbox_id: &SandboxId,
                speaker: Speaker,
                room: Room,
            ) -> Result<(), StoreError> {
                named("drop old lines of a log", async {
                    let mut transaction = self.begin_behind().await?;
                    sqlx::query(BOUND)
                        .bind(sandbox_id.as_str())
                        .bind(is_guest(speaker))
                        .bind(size(room.lines))
                        .bind(size(room.bytes))
                        .execute(&mut *transaction)
                        .await?;
                    self.commit(transaction, Told::Nothing).await
                })
                .await
            }

            async fn lines(
                &self,
                team_id: &TeamId,
                sandbox_id: &SandboxId,
            ) -> Result<Vec<LogLine>, StoreError> {
                named("read the log of a sandbox", async {
                    sqlx::query(
                        "SELECT log_lines.* FROM log_lines JOIN sandboxes ON sandboxes.sandbox_id = log_lines.sandbox_id \
                         WHERE log_lines.sandbox_id = $1 AND sandboxes.team_id = $2 ORDER BY logged_at, is_guest, line_number",
                    )
                    .bind(sandbox_id.as_str())
                    .bind(team_id.as_str())
                    .fetch_all(&mut *self.read().await?)
                    .await?
                    .iter()
                    .map(|row| {
                        Ok(LogLine {
                            at: rows::moment(row, "logged_at")?,
                            level: level_of(row.try_get("level")?),
                            logger: row.try_get("logger")?,
                            message: row.try_get("message")?,
                            fields: rows::json(row, "fields")?.unwrap_or_default(),
                        })
                    })
                    .collect()
                })
                .await
            }

            async fn keep_samples(&self, samples: &[KeptSample]) -> Result<(), StoreError> {
                named("keep samples", async {
                    for samples in samples.chunks(AT_ONCE) {
                        let mut transaction = self.begin_behind().await?;
                        for sample in samples {
                            sqlx::query(
                                "INSERT INTO samples (subject, taken_at, sample) VALUES ($1, $2, $3) \
                                 ON CONFLICT (subject, taken_at) DO UPDATE SET sample = excluded.sample",
                            )
                            .bind(&sample.subject)
                            .bind(number(sample.at.0))
                            .bind(&sample.sample)
                            .execute(&mut *transaction)
                            .await?;
                        }
                        self.commit(transaction, Told::Nothing).await?;
                    }
                    Ok(())
                })
                .await
            }

            async fn samples(
                &self,
                subject: &str,
                (from, to): (UnixMillis, UnixMillis),
            ) -> Result<Vec<(UnixMillis, String)>, StoreError> {
                named("read samples", async {
                    sqlx::query(
                        "SELECT taken_at, sample FROM samples WHERE subject = $1 AND taken_at BETWEEN $2 AND $3 ORDER BY taken_at",
                    )
                    .bind(subject)
                    .bind(number(from.0))
                    .bind(number(to.0))
                    .fetch_all(&mut *self.read().await?)
                    .await?
                    .iter()
                    .map(|row| Ok((rows::moment(row, "taken_at")?, row.try_get("sample")?)))
                    .collect()
                })
                .await
            }

            async fn trim_history(
                &self,
                before: UnixMillis,
                max_bytes: u64,
            ) -> Result<(), StoreError> {
                named("forget old lines and samples", async {
                    let mut transaction = self.begin_behind().await?;
                    for statement in [
                        "DELETE FROM log_lines WHERE kept_at < $1",
                        "DELETE FROM samples WHERE taken_at < $1",
                    ] {
                        sqlx::query(statement)
                            .bind(number(before.0))
                            .execute(&mut *transaction)
                            .await?;
                    }
                    self.commit(transaction, Told::Nothing).await?;
                    let sum = sqlx::query(
                        "SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) AS taken FROM log_lines",
                    );
                    let sum = sum.fetch_one(&mut *self.read().await?).await?;
                    let mut taken: i64 = sum.try_get("taken")?;
                    while taken > number(max_bytes) {
                        let mut transaction = self.begin_behind().await?;
                        let deleted = sqlx::query(DELETE_OLDEST)
                            .bind(AT_ONCE_DELETED)
                            .fetch_all(&mut *transaction)
                            .await?;
                        self.commit(transaction, Told::Nothing).await?;
                        if deleted.is_empty() {
                            break;
                        }
                        for row in &deleted {
                            taken -= row.try_get::<i64, _>("bytes")?;
                        }
                    }
                    Ok(())
                })
                .await
            }
        }
    };
}

history!(SqliteStore);
history!(PostgresStore);

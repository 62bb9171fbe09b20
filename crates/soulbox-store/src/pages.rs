//! A page of a team's sandboxes, cut in the database: filters, order and cursor are parts of one statement, so that only the rows of the
//! page are read. The index `sandboxes_by_start` has them in this order. The statements of both databases differ in how they look into
//! metadata.

use soulbox_control::{Cursor, ListQuery, Order, Page, SandboxRow};
use soulbox_types::{TeamId, TemplateId};
use sqlx::sqlite::SqliteConnection;
use sqlx::{PgConnection, Postgres, QueryBuilder, Sqlite};

use crate::rows::{self, number};

/// What is sorted by.
const START: &str = "coalesce(started_at, created_at)";

macro_rules! statements {
    ($page:ident, $database:ty, $connection:ty) => {
        pub(crate) async fn $page(
            connection: &mut $connection,
            team_id: &TeamId,
            template: Option<&TemplateId>,
            query: &ListQuery,
        ) -> Result<Page<SandboxRow>, sqlx::Error> {
            let chosen = |what: &str, states: &str| {
                let mut sql = QueryBuilder::<$database>::new("SELECT ");
                // The index has only what is not dead, which the databases do not conclude from the states.
                sql.push(what)
                    .push(" FROM sandboxes WHERE state <> 'dead' AND state IN (")
                    .push(states)
                    .push(") AND team_id = ")
                    .push_bind(team_id.as_str().to_owned());
                if let Some(template) = template {
                    sql.push(" AND template_id = ")
                        .push_bind(template.as_str().to_owned());
                }
                if let Some(after) = query.started_after {
                    sql.push(" AND ")
                        .push(START)
                        .push(" >= ")
                        .push_bind(number(after.0));
                }
                if !query.metadata.is_empty() {
                    sql.has_metadata(&query.metadata);
                }
                sql
            };
            let total: i64 = if query.running {
                chosen("count(*)", "'running'")
                    .build_query_scalar()
                    .fetch_one(&mut *connection)
                    .await?
            } else {
                0
            };
            let states = match (query.running, query.paused) {
                (true, true) => "'running', 'pausing', 'paused', 'resuming'",
                (true, false) => "'running'",
                (false, true) => "'pausing', 'paused', 'resuming'",
                (false, false) => return Ok(Page::default()),
            };
            let (beyond, direction) = match query.order {
                Order::OldestFirst => (" > (", " ASC"),
                Order::NewestFirst => (" < (", " DESC"),
            };
            let mut sql = chosen("*", states);
            if let Some(after) = &query.after {
                sql.push(" AND (")
                    .push(START)
                    .push(", sandbox_id)")
                    .push(beyond)
                    .push_bind(number(after.at.0))
                    .push(", ")
                    .push_bind(after.id.clone())
                    .push(")");
            }
            // One more than the page has: whether there is another page.
            let limit = number(u64::try_from(query.limit).unwrap_or(u64::MAX));
            sql.push(" ORDER BY ")
                .push(START)
                .push(direction)
                .push(", sandbox_id")
                .push(direction)
                .push(" LIMIT ")
                .push_bind(limit.saturating_add(1));
            let found = sql.build().fetch_all(connection).await?;
            let items = found
                .iter()
                .take(query.limit)
                .map(rows::sandbox)
                .collect::<Result<Vec<_>, _>>()?;
            let last = items.last().filter(|_| found.len() > query.limit);
            Ok(Page {
                next: last.map(cursor),
                total: usize::try_from(total).unwrap_or(0),
                items,
            })
        }
    };
}

statements!(on_sqlite, Sqlite, SqliteConnection);
statements!(on_postgres, Postgres, PgConnection);

fn cursor(row: &SandboxRow) -> Cursor {
    Cursor {
        at: row.progress.started_at.unwrap_or(row.created_at),
        id: row.sandbox_id.to_string(),
    }
}

trait Metadata {
    /// Every one of the pairs is in the column. However many there are, the statement is the same.
    fn has_metadata(&mut self, pairs: &[(String, String)]);
}

impl Metadata for QueryBuilder<Sqlite> {
    fn has_metadata(&mut self, pairs: &[(String, String)]) {
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| [key, value]).collect();
        self.push(" AND NOT EXISTS (SELECT 1 FROM json_each(")
            .push_bind(serde_json::json!(pairs).to_string())
            .push(
                ") AS wanted WHERE NOT EXISTS (SELECT 1 FROM json_each(sandboxes.metadata) AS had \
                 WHERE had.key = wanted.value ->> 0 AND had.value = wanted.value ->> 1))",
            );
    }
}

impl Metadata for QueryBuilder<Postgres> {
    fn has_metadata(&mut self, pairs: &[(String, String)]) {
        let objects: Vec<String> = pairs
            .iter()
            .map(|(key, value)| {
                let pair = [(key.clone(), serde_json::Value::from(value.as_str()))];
                serde_json::Value::Object(pair.into_iter().collect()).to_string()
            })
            .collect();
        self.push(" AND metadata::jsonb @> ALL (")
            .push_bind(objects)
            .push("::text[]::jsonb[])");
    }
}

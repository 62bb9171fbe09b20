//! Backups: every row of every table as lines of JSON, the same for both databases, so that one can be restored into the other.
//!
//! The first line says what it is and which schema it has, the last one how many rows there are: a file that was cut off is refused. Keys are
//! in it as hashes; the secrets files of the data directory are not.

use std::io::{BufRead, Write};

use futures_util::TryStreamExt;
use serde_json::{Map, Value, json};
use sqlx::{
    AssertSqlSafe, Column, ColumnIndex, Database, Decode, Encode, Executor, IntoArguments,
    Postgres, Row, Sqlite, Type,
};

use crate::open::{OpenError, Schema};
use crate::{PostgresStore, SqliteStore};

/// Tables in an order in which they can be filled: what is referred to comes first.
const TABLES: [&str; 15] = [
    "teams",
    "api_keys",
    "access_tokens",
    "templates",
    "builds",
    "aliases",
    "assignments",
    "build_details",
    "build_lines",
    "sandboxes",
    "snapshots",
    "idempotency_claims",
    "forgotten_builds",
    "log_lines",
    "samples",
];
const FORMAT: u64 = 1;

/// A backup was not written or not restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("failed to read table `{table}`")]
    Read {
        table: &'static str,
        #[source]
        source: sqlx::Error,
    },
    #[error("failed to write the backup")]
    Write(#[source] std::io::Error),
    #[error("failed to read the backup")]
    Input(#[source] std::io::Error),
    #[error("line {line} of the backup is not understood: {why}")]
    Malformed { line: u64, why: String },
    #[error("the backup ends after line {line}: it was cut off")]
    CutOff { line: u64 },
    #[error("the backup has schema version {found}, this soulbox knows versions up to {known}")]
    Newer { found: i64, known: i64 },
    #[error("the database is not empty: table `{table}` has rows")]
    NotEmpty { table: &'static str },
    #[error("failed to restore line {line}, a row of table `{table}`; nothing was restored")]
    Row {
        line: u64,
        table: &'static str,
        #[source]
        source: sqlx::Error,
    },
    #[error("failed to {action}; nothing was restored")]
    Restore {
        action: &'static str,
        #[source]
        source: sqlx::Error,
    },
}

impl SqliteStore {
    /// Writes all rows, as they are at one moment; the server may run. Returns how many.
    ///
    /// # Errors
    /// The database or the writer failed; what was written has no end and will be refused.
    pub async fn backup(&self, to: &mut (dyn Write + Send)) -> Result<u64, BackupError> {
        let mut transaction = self.begin_reading().await.map_err(read("teams"))?;
        write_all::<Sqlite>(&mut transaction, Schema::sqlite().newest(), to).await
    }

    /// Fills an empty database in one transaction. Returns how many rows there are.
    ///
    /// # Errors
    /// The backup is not whole, or of a newer schema; the database is not empty. Nothing was changed then.
    pub async fn restore(&self, from: &mut (dyn BufRead + Send)) -> Result<u64, BackupError> {
        let mut transaction = self.begin().await.map_err(begin)?;
        let rows = read_all::<Sqlite>(&mut transaction, &Schema::sqlite(), from).await?;
        transaction.commit().await.map_err(commit)?;
        Ok(rows)
    }
}

impl PostgresStore {
    /// As [`SqliteStore::backup`].
    ///
    /// # Errors
    /// As [`SqliteStore::backup`].
    pub async fn backup(&self, to: &mut (dyn Write + Send)) -> Result<u64, BackupError> {
        let mut transaction = self.begin_reading().await.map_err(read("teams"))?;
        write_all::<Postgres>(&mut transaction, Schema::postgres().newest(), to).await
    }

    /// As [`SqliteStore::restore`].
    ///
    /// # Errors
    /// As [`SqliteStore::restore`].
    pub async fn restore(&self, from: &mut (dyn BufRead + Send)) -> Result<u64, BackupError> {
        let mut transaction = self.begin().await.map_err(begin)?;
        // A server that starts meanwhile waits, and finds the restored rows.
        for table in TABLES {
            transaction
                .execute(AssertSqlSafe(format!(
                    "LOCK TABLE {table} IN EXCLUSIVE MODE"
                )))
                .await
                .map_err(begin)?;
        }
        let rows = read_all::<Postgres>(&mut transaction, &Schema::postgres(), from).await?;
        // The rows came with their numbers; the next one has to come after them.
        for statement in [
            "SELECT setval(pg_get_serial_sequence('assignments', 'assignment_number'), \
             coalesce((SELECT max(assignment_number) FROM assignments), 0) + 1, false)",
            "SELECT setval(pg_get_serial_sequence('build_lines', 'line_number'), \
             coalesce((SELECT max(line_number) FROM build_lines), 0) + 1, false)",
        ] {
            transaction
                .execute(statement)
                .await
                .map_err(|source| BackupError::Restore {
                    action: "set the next number of rows",
                    source,
                })?;
        }
        transaction.commit().await.map_err(commit)?;
        Ok(rows)
    }
}

fn read(table: &'static str) -> impl FnOnce(sqlx::Error) -> BackupError {
    move |source| BackupError::Read { table, source }
}

fn begin(source: sqlx::Error) -> BackupError {
    BackupError::Restore {
        action: "begin",
        source,
    }
}

fn commit(source: sqlx::Error) -> BackupError {
    BackupError::Restore {
        action: "commit",
        source,
    }
}

async fn write_all<DB: Database>(
    connection: &mut DB::Connection,
    schema: i64,
    to: &mut (dyn Write + Send),
) -> Result<u64, BackupError>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
    usize: ColumnIndex<DB::Row>,
    for<'r> Option<i64>: Decode<'r, DB> + Type<DB>,
    for<'r> Option<String>: Decode<'r, DB> + Type<DB>,
{
    let mut line = |value: Value| writeln!(to, "{value}").map_err(BackupError::Write);
    line(json!({ "soulbox_backup": FORMAT, "schema": schema }))?;
    let mut rows = 0;
    for table in TABLES {
        let query = AssertSqlSafe(format!("SELECT * FROM {table}"));
        let mut found = sqlx::query::<DB>(query).fetch(&mut *connection);
        while let Some(row) = found.try_next().await.map_err(read(table))? {
            let mut columns = Map::new();
            for column in row.columns() {
                let at = column.ordinal();
                // There are numbers and texts; what is neither is a defect, and is told.
                let value = match row.try_get::<Option<i64>, _>(at) {
                    Ok(number) => number.map(Value::from),
                    Err(_) => row
                        .try_get::<Option<String>, _>(at)
                        .map_err(read(table))?
                        .map(Value::from),
                };
                // What is absent is NULL.
                if let Some(value) = value {
                    columns.insert(column.name().to_owned(), value);
                }
            }
            rows += 1;
            line(json!({ "table": table, "row": columns }))?;
        }
    }
    line(json!({ "rows": rows }))?;
    to.flush().map_err(BackupError::Write)?;
    Ok(rows)
}

async fn read_all<DB: Database>(
    connection: &mut DB::Connection,
    known: &Schema,
    from: &mut (dyn BufRead + Send),
) -> Result<u64, BackupError>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
    for<'q> i64: Encode<'q, DB> + Type<DB>,
    for<'q> String: Encode<'q, DB> + Type<DB>,
{
    for table in TABLES {
        let query = AssertSqlSafe(format!("SELECT 1 FROM {table} LIMIT 1"));
        let any = sqlx::query::<DB>(query)
            .fetch_optional(&mut *connection)
            .await
            .map_err(read(table))?;
        if any.is_some() {
            return Err(BackupError::NotEmpty { table });
        }
    }
    let mut lines = Lines { from, number: 0 };
    let head = lines.next()?;
    if head["soulbox_backup"] != json!(FORMAT) {
        return Err(lines.malformed("it is no backup of soulbox"));
    }
    match head["schema"].as_i64() {
        Some(found) if found > known.newest() => {
            let known = known.newest();
            return Err(BackupError::Newer { found, known });
        }
        Some(_) => {}
        None => return Err(lines.malformed("it does not say its schema")),
    }
    let mut rows = 0;
    loop {
        let value = lines.next()?;
        if let Some(total) = value["rows"].as_u64() {
            return if total == rows {
                Ok(rows)
            } else {
                Err(lines.malformed("there are more or fewer rows than it says"))
            };
        }
        let Some(table) = TABLES.into_iter().find(|table| value["table"] == **table) else {
            return Err(lines.malformed("it names no table of this soulbox"));
        };
        let Some(row) = value["row"].as_object() else {
            return Err(lines.malformed("it has no row"));
        };
        insert(connection, table, row, &lines).await?;
        rows += 1;
    }
}

async fn insert<DB: Database>(
    connection: &mut DB::Connection,
    table: &'static str,
    row: &Map<String, Value>,
    lines: &Lines<'_>,
) -> Result<(), BackupError>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    DB::Arguments: IntoArguments<DB>,
    for<'q> i64: Encode<'q, DB> + Type<DB>,
    for<'q> String: Encode<'q, DB> + Type<DB>,
{
    let is_column = |name: &String| {
        name.bytes().all(|it| it.is_ascii_lowercase() || it == b'_') && !name.is_empty()
    };
    if row.is_empty() || !row.keys().all(is_column) {
        return Err(lines.malformed("its columns are not named as columns are"));
    }
    let names: Vec<_> = row.keys().map(String::as_str).collect();
    let places: Vec<_> = (1..=names.len())
        .map(|number| format!("${number}"))
        .collect();
    let query = format!(
        "INSERT INTO {table} ({}) VALUES ({})",
        names.join(", "),
        places.join(", ")
    );
    let mut query = sqlx::query::<DB>(AssertSqlSafe(query));
    for value in row.values() {
        query = match value {
            Value::String(text) => query.bind(text.clone()),
            Value::Number(number) => match number.as_i64() {
                Some(number) => query.bind(number),
                None => return Err(lines.malformed("a number is out of range")),
            },
            _ => return Err(lines.malformed("a value is neither number nor text")),
        };
    }
    query
        .execute(&mut *connection)
        .await
        .map(drop)
        .map_err(|source| BackupError::Row {
            line: lines.number,
            table,
            source,
        })
}

/// A row is some kilobytes; nothing longer is read into memory.
const LONGEST_LINE: u64 = 16 << 20;

struct Lines<'a> {
    from: &'a mut (dyn BufRead + Send),
    number: u64,
}

impl Lines<'_> {
    fn next(&mut self) -> Result<Value, BackupError> {
        use std::io::Read;
        let mut text = String::new();
        let read = (&mut *self.from)
            .take(LONGEST_LINE)
            .read_line(&mut text)
            .map_err(BackupError::Input)?;
        if read == 0 {
            return Err(BackupError::CutOff { line: self.number });
        }
        self.number += 1;
        serde_json::from_str(&text).map_err(|error| {
            if text.ends_with('\n') {
                self.malformed(&error.to_string())
            } else {
                BackupError::CutOff { line: self.number }
            }
        })
    }

    fn malformed(&self, why: &str) -> BackupError {
        BackupError::Malformed {
            line: self.number,
            why: why.to_owned(),
        }
    }
}

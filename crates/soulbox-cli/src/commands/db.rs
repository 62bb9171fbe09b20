//! `soulbox db`: the records of an installation as a whole: their schema, a backup, and back. Works on the database itself, whether it lies in
//! the data directory or is PostgreSQL.

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use soulbox_control::{RetiredBuilds, StoreError};
use soulbox_store::{
    BackupError, Brought, OpenError, PostgresStore, SqliteStore, postgres_options,
};

use super::{Installation, require_root};
use crate::agent::{self, DataDirLock};
use crate::failure::Failure;
use crate::settings::Settings;

/// Migrate, back up and restore the records
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Bring the database to the newest schema, as a start of the server does
    Migrate {
        #[command(flatten)]
        installation: Installation,
    },
    /// Write all records into a new file; the server may run
    Backup {
        #[command(flatten)]
        installation: Installation,
        /// The file, which must not exist yet
        file: PathBuf,
    },
    /// Fill an empty database from a backup, of either kind of database; the server must not run
    Restore {
        #[command(flatten)]
        installation: Installation,
        file: PathBuf,
    },
}

/// The database of an installation.
pub(super) enum Records {
    Here(SqliteStore),
    Elsewhere(PostgresStore),
}

impl Records {
    /// Opens a database of the newest schema, beside the server that uses it.
    pub(super) async fn open_as_is(settings: &Settings) -> Result<Self, Failure> {
        let opened = match &settings.database_url {
            Some(url) => PostgresStore::open_as_is(postgres_options(url.as_str()).map_err(refuse)?)
                .await
                .map(Self::Elsewhere),
            None => SqliteStore::open_as_is(&existing(settings)?)
                .await
                .map(Self::Here),
        };
        opened.map_err(refuse)
    }

    pub(super) fn retired_builds(&self) -> &dyn RetiredBuilds {
        match self {
            Self::Here(store) => store,
            Self::Elsewhere(store) => store,
        }
    }

    /// Tells the server of changes; PostgreSQL told of them with each.
    pub(super) async fn announce(&self) -> Result<(), StoreError> {
        match self {
            Self::Here(store) => store.announce().await,
            Self::Elsewhere(_) => Ok(()),
        }
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Here(store) => store.close().await,
            Self::Elsewhere(store) => store.close().await,
        }
    }
}

pub fn run(command: Command) -> Result<(), Failure> {
    require_root("db")?;
    let (Command::Migrate { installation }
    | Command::Backup { installation, .. }
    | Command::Restore { installation, .. }) = &command;
    let settings = installation.clone().settings(None)?;
    super::block_on(async {
        match command {
            Command::Migrate { .. } => migrate(&settings).await,
            Command::Backup { file, .. } => backup(&settings, &file).await,
            Command::Restore { file, .. } => restore(&settings, &file).await,
        }
    })
}

async fn migrate(settings: &Settings) -> Result<(), Failure> {
    let Brought { from, to } = match &settings.database_url {
        Some(url) => {
            let options = postgres_options(url.as_str()).map_err(refuse)?;
            let store = PostgresStore::connect(options).await.map_err(refuse)?;
            let brought = store.migrate().await;
            store.close().await;
            brought
        }
        None => {
            // A running server has its own idea of the schema.
            let _lock = DataDirLock::take(&settings.data_dir)?;
            SqliteStore::migrate(&existing(settings)?).await
        }
    }
    .map_err(refuse)?;
    if from == to {
        eprintln!("the database has schema version {to} already");
    } else {
        eprintln!("brought the database from schema version {from} to {to}");
    }
    Ok(())
}

async fn backup(settings: &Settings, path: &Path) -> Result<(), Failure> {
    let records = Records::open_as_is(settings).await?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| {
            let cause = anyhow!(error).context(format!("failed to make `{}`", path.display()));
            Failure::new(cause).hint("give the path of a file that is not there yet")
        })?;
    let written = write_backup(&records, file).await;
    records.close().await;
    if written.is_err() {
        // Half a backup is none.
        let _ = fs::remove_file(path);
    }
    let rows = written?;
    eprintln!("wrote {rows} rows to {}", path.display());
    Ok(())
}

async fn write_backup(records: &Records, file: File) -> Result<u64, Failure> {
    let mut to = BufWriter::new(file);
    let rows = match records {
        Records::Here(store) => store.backup(&mut to).await,
        Records::Elsewhere(store) => store.backup(&mut to).await,
    }
    .map_err(failed)?;
    to.flush().context("failed to write the backup")?;
    to.get_ref()
        .sync_all()
        .context("failed to write the backup to disk")?;
    Ok(rows)
}

async fn restore(settings: &Settings, path: &Path) -> Result<(), Failure> {
    let file = File::open(path).map_err(|error| {
        let cause = anyhow!(error).context(format!("failed to open `{}`", path.display()));
        Failure::new(cause).hint("give a file that soulbox db backup wrote")
    })?;
    let mut from = BufReader::new(file);
    let rows = match &settings.database_url {
        Some(url) => {
            let options = postgres_options(url.as_str()).map_err(refuse)?;
            let store = PostgresStore::open(options).await.map_err(refuse)?;
            let restored = store.restore(&mut from).await;
            store.close().await;
            restored.map_err(failed)?
        }
        None => {
            super::serve::prepare_data_dir(&settings.data_dir)?;
            let _lock = DataDirLock::take(&settings.data_dir)?;
            agent::open_control(settings).context("failed to make the control directory")?;
            let path = database(settings);
            let store = SqliteStore::open(&path).await.map_err(refuse)?;
            let restored = store.restore(&mut from).await;
            store.close().await;
            for name in ["control.db", "control.db-wal", "control.db-shm"] {
                // The server's front, which is not root, must be able to write it.
                let path = path.with_file_name(name);
                if path.exists() {
                    chown(&path, Some(settings.front_uid), Some(settings.front_uid))
                        .with_context(|| format!("failed to hand over `{}`", path.display()))?;
                }
            }
            restored.map_err(failed)?
        }
    };
    eprintln!("restored {rows} rows");
    Ok(())
}

fn database(settings: &Settings) -> PathBuf {
    settings.data_dir.join(agent::CONTROL).join("control.db")
}

fn existing(settings: &Settings) -> Result<PathBuf, Failure> {
    let path = database(settings);
    if path.exists() {
        return Ok(path);
    }
    let cause = anyhow!("there is no database `{}`", path.display());
    Err(Failure::new(cause).hint(
        "the first start of soulbox serve makes it; name its directory with --data-dir, or set SOULBOX_DATABASE_URL",
    ))
}

/// Why records cannot be opened, for their operator.
pub fn refuse(error: OpenError) -> Failure {
    let hint = match &error {
        OpenError::Newer { .. } => Some("use the soulbox that made it, or a newer one"),
        OpenError::Older { .. } => Some("run soulbox db migrate, or start this soulbox's server"),
        OpenError::Connect(_) => {
            Some("SOULBOX_DATABASE_URL must name a PostgreSQL database that answers")
        }
        _ => None,
    };
    Failure::new(error).hint_if(hint)
}

fn failed(error: BackupError) -> Failure {
    let hint = match &error {
        BackupError::NotEmpty { .. } => Some("a backup is restored into an empty database"),
        BackupError::Newer { .. } => Some("use the soulbox that wrote the backup, or a newer one"),
        _ => None,
    };
    Failure::new(error).hint_if(hint)
}

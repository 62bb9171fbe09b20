//! The pool of this machine's installation: its own templates.

use std::io::{IsTerminal, Write};
use std::path::Path;

use anyhow::anyhow;
use soulbox_build::{BuildOptions, build_template};
use soulbox_pool::{BtrfsPool, Pool, PoolError, PoolOptions};

use super::print;
use crate::agent::DataDirLock;
use crate::commands::{require_root, serve};
use crate::failure::Failure;
use crate::settings::Settings;

/// Builds a recipe's folder, unless the pool has it.
pub(super) fn build(settings: &Settings, folder: &Path) -> Result<(), Failure> {
    with_pool(settings, "build", |pool, settings| {
        made(pool, settings, folder)
    })
}

pub(super) fn list(settings: &Settings, json: bool) -> Result<(), Failure> {
    with_pool(settings, "list --local", |pool, _| listed(pool, json))
}

/// Opens (and at first makes) the pool of the installation, and gives the mount back unless a server or sandboxes need it.
pub(super) fn with_pool(
    settings: &Settings,
    command: &str,
    work: impl FnOnce(&BtrfsPool, &Settings) -> Result<(), Failure>,
) -> Result<(), Failure> {
    require_root(&format!("template {command}"))?;
    if command == "build" {
        serve::prepare_data_dir(&settings.data_dir)?;
    } else if !settings.data_dir.is_dir() {
        return Err(Failure::new(anyhow!(
            "there is no data directory `{}`",
            settings.data_dir.display()
        ))
        .hint("name it with --data-dir"));
    }
    let options = PoolOptions {
        size: settings.pool_size,
    };
    let pool = BtrfsPool::open(&settings.data_dir, options).map_err(pool_failure)?;
    let done = work(&pool, settings);
    if let Ok(_lock) = DataDirLock::take(&settings.data_dir)
        && !soulbox_host::record::any(&settings.data_dir)
    {
        match pool.unmount() {
            // Another command of this kind uses it and will give it back.
            Ok(()) | Err(PoolError::Busy { .. }) => {}
            Err(error) => return done.and(Err(pool_failure(error))),
        }
    }
    done
}

fn made(pool: &BtrfsPool, settings: &Settings, folder: &Path) -> Result<(), Failure> {
    let options = BuildOptions::for_data_dir(&settings.data_dir).map_err(build_failure)?;
    let talk = std::io::stderr().is_terminal();
    let mut progress = |line: &str| {
        // On a terminal lines overwrite each other; in a log each one stays.
        let _ = if talk {
            write!(std::io::stderr(), "\r\x1b[K{line}")
        } else {
            writeln!(std::io::stderr(), "{line}")
        };
    };
    let built = build_template(pool, folder, &options, &mut progress);
    if talk {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    let built = built.map_err(build_failure)?;
    let state = if built.new.is_some() {
        "built"
    } else {
        "unchanged"
    };
    print(&format!(
        "{} {} {state}\n",
        built.manifest.name, built.manifest.build_id
    ))
}

fn listed(pool: &BtrfsPool, json: bool) -> Result<(), Failure> {
    let templates = pool.templates().map_err(pool_failure)?;
    if json {
        let text = serde_json::to_string_pretty(&templates)
            .map_err(|error| Failure::new(error).hint("report this"))?;
        return print(&format!("{text}\n"));
    }
    let mut text = format!(
        "{:<24} {:<36} {:>4} {:>10} {:>10}\n",
        "NAME", "BUILD", "CPUS", "MEMORY", "DISK"
    );
    for template in templates {
        text.push_str(&format!(
            "{:<24} {:<36} {:>4} {:>6} MiB {:>6} MiB\n",
            template.name,
            template.build_id,
            template.cpu_count,
            template.memory_mib,
            template.disk_mib
        ));
    }
    print(&text)
}

/// The failure that a pool's error is, with what helps against it.
pub(super) fn pool_failure(error: PoolError) -> Failure {
    let hint = match &error {
        PoolError::MkfsMissing => Some("apt-get install btrfs-progs"),
        PoolError::DiskTooSmall { .. } => Some("free some disk, or choose a smaller --pool-size"),
        PoolError::SizeTooSmall { .. } => Some("choose a bigger --pool-size"),
        PoolError::LoopDevice { .. } | PoolError::Mount { .. } => {
            Some("soulbox doctor says what the host lacks")
        }
        PoolError::ForeignMount { .. } => Some("unmount it, or choose another --data-dir"),
        PoolError::NotASubvolume { .. } => Some("move it away, or choose another --data-dir"),
        PoolError::ReserveReached { .. } => {
            Some("end sandboxes, free disk of the host, or raise --pool-size")
        }
        PoolError::BadManifest { .. } => Some("remove that file and build the template again"),
        PoolError::Busy { .. } => Some("end what uses it, then try again"),
        _ => None,
    };
    Failure::new(error).hint_if(hint)
}

fn build_failure(error: soulbox_build::BuildError) -> Failure {
    let hint = error.hint();
    Failure::new(error).hint_if(hint)
}

//! Where CRIU is: in the folder that a setting names, or where a set-up puts it, or installed on the host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, anyhow};
use soulbox_runtime::criu::{Criu, CriuError};

use crate::failure::{Failure, chain};

/// Where `soulbox doctor --fix` unpacks it.
const UNPACKED: &str = "/opt/soulbox/criu";
/// How to have it.
pub const MEND: &str = "soulbox doctor --fix, or name the folder of another one with --criu";
/// Of Debian: the oldest suite whose CRIU works on the kernels that sandboxes need.
const SUITE: &str = "forky";

/// Finds it.
///
/// # Errors
/// A sentence that says what is missing and how to have it.
pub fn find(setting: Option<&Path>) -> Result<Criu, String> {
    let folders = match setting {
        Some(folder) => vec![folder.to_owned()],
        None => vec![PathBuf::from(UNPACKED), PathBuf::from("/")],
    };
    let mut found = Err(CriuError::Missing(PathBuf::from(UNPACKED)));
    for folder in folders {
        found = match (Criu::open(&folder), found) {
            (Ok(criu), _) => return Ok(criu),
            // What is there and of no use says more than what is not there.
            (Err(CriuError::Missing(_)), Err(before)) if setting.is_none() => Err(before),
            (Err(error), _) => Err(error),
        };
    }
    found.map_err(|error| {
        let error = chain(&error);
        format!("saving and restoring processes needs CRIU 4.2 or newer: {error}; {MEND}")
    })
}

/// Unpacks it where [`find`] looks first, unless there is one. Runs mmdebstrap, which fetches as the host's apt is set up.
///
/// # Errors
/// What mmdebstrap could not do.
pub fn unpack(setting: Option<&Path>) -> Result<(), Failure> {
    if find(setting).is_ok() {
        return Ok(());
    }
    let folder = setting.unwrap_or(Path::new(UNPACKED));
    let draft = folder.with_extension("draft");
    let cleared = |path: &Path| match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    (|| {
        if let Some(parent) = folder.parent() {
            fs::create_dir_all(parent)?;
        }
        cleared(&draft)
    })()
    .with_context(|| format!("failed to make `{}`", draft.display()))?;
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--quiet", "--variant=extract", "--include=criu"])
        // The suite moves: its lists may be older than their own date of expiry.
        .args(["--aptopt=Acquire::Check-Valid-Until \"false\"", SUITE])
        .arg(&draft)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let status = command.status().map_err(|error| {
        Failure::new(anyhow!(error).context("failed to run mmdebstrap"))
            .hint("apt-get install mmdebstrap")
    })?;
    if !status.success() {
        let _ = cleared(&draft);
        return Err(
            Failure::new(anyhow!("mmdebstrap could not unpack CRIU of Debian {SUITE}: {status}"))
                .hint("it needs root and a mirror of Debian; unpack CRIU 4.2 elsewhere and name its folder with --criu"),
        );
    }
    cleared(folder)
        .and_then(|()| fs::rename(&draft, folder))
        .with_context(|| format!("failed to move CRIU to `{}`", folder.display()))?;
    Ok(())
}

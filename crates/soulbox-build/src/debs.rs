//! Debian packages for a recipe with a parent, in a cache folder, fetched by the host's own apt and its settings.
//!
//! What they depend on is not fetched: it is in the parent, or among the recipe's packages.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

/// Why a package is not in the cache.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    #[error("failed to start apt-get, which fetches the recipe's Debian packages")]
    Start(#[source] io::Error),
    #[error("apt-get could not fetch {packages}: {said}")]
    Fetch { packages: String, said: String },
    #[error("failed to change `{path}`")]
    Cache {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A folder in `cache` with exactly these packages; fetched unless an earlier build did.
pub fn collect(packages: &BTreeSet<String>, cache: &Path) -> Result<PathBuf, DebError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DebError::Cache { path, source }
    };
    let names: Vec<&str> = packages.iter().map(String::as_str).collect();
    let names = names.join(" ");
    let folder = cache.join(&hex::encode(Sha256::digest(&names))[..16]);
    if folder.is_dir() {
        return Ok(folder);
    }
    // A folder of our own beside the result, so that half of the packages are never taken for all.
    let partial = cache.join(format!("partial-{}", std::process::id()));
    fs::create_dir_all(&partial).map_err(failed(&partial))?;
    let output = Command::new("apt-get")
        // Whose user of its own may not write into our folder.
        .args(["--quiet=2", "--option=APT::Sandbox::User=root", "download"])
        .args(packages)
        .current_dir(&partial)
        .stdin(Stdio::null())
        .output()
        .map_err(DebError::Start)?;
    if !output.status.success() {
        _ = fs::remove_dir_all(&partial);
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(DebError::Fetch {
            packages: names,
            said: said.lines().last().unwrap_or_default().to_owned(),
        });
    }
    fs::rename(&partial, &folder).map_err(failed(&folder))?;
    Ok(folder)
}

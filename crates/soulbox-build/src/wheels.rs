//! Packages of PyPI as wheels in a cache folder, fetched by the host's own pip and its settings.
//!
//! A requirements file of a recipe names every package with its version, dependencies included: what is fetched does not depend
//! on the Python of the host, and a wheel runs no code to be installed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

/// Python of the templates' Debian, to the patch, since packages ask for that too; and the C libraries that it has: glibc 2.36 and
/// all before.
const PYTHON: &str = "3.11.2";
const NEWEST_GLIBC: u32 = 36;
const OLDEST_GLIBC: u32 = 5;

/// Why a package is not in the cache.
#[derive(Debug, thiserror::Error)]
pub enum WheelError {
    #[error("failed to start python3, whose pip fetches the recipe's Python packages")]
    Start(#[source] io::Error),
    #[error("pip could not fetch the packages of `{requirements}`: {said}")]
    Fetch { requirements: PathBuf, said: String },
    #[error("failed to change `{path}`")]
    Cache {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A folder in `cache` with the wheels of exactly these requirements; fetched unless an earlier build did.
pub fn collect(requirements: &Path, cache: &Path) -> Result<PathBuf, WheelError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| WheelError::Cache { path, source }
    };
    let text = fs::read(requirements).map_err(failed(requirements))?;
    let folder = cache.join(&hex::encode(Sha256::digest(&text))[..16]);
    if folder.is_dir() {
        return Ok(folder);
    }
    // A folder of our own beside the result, so that half of the wheels are never taken for all.
    let partial = cache.join(format!("partial-{}", std::process::id()));
    fs::create_dir_all(&partial).map_err(failed(&partial))?;
    let output = Command::new("python3")
        .args(arguments())
        .arg("--dest")
        .arg(&partial)
        .arg("--requirement")
        .arg(requirements)
        .stdin(Stdio::null())
        .output()
        .map_err(WheelError::Start)?;
    if !output.status.success() {
        // Of a failed fetch only the cache of pip itself is kept.
        _ = fs::remove_dir_all(&partial);
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(WheelError::Fetch {
            requirements: requirements.to_owned(),
            said: said.lines().last().unwrap_or_default().to_owned(),
        });
    }
    fs::rename(&partial, &folder).map_err(failed(&folder))?;
    Ok(folder)
}

fn arguments() -> Vec<String> {
    let machine = std::env::consts::ARCH;
    let mut arguments: Vec<String> = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
        "--implementation=cp",
        "--abi=cp311",
        "--abi=abi3",
        "--abi=none",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--python-version={PYTHON}"));
    for minor in (OLDEST_GLIBC..=NEWEST_GLIBC).rev() {
        arguments.push(format!("--platform=manylinux_2_{minor}_{machine}"));
    }
    for old in ["manylinux2014", "manylinux2010", "manylinux1"] {
        arguments.push(format!("--platform={old}_{machine}"));
    }
    arguments
}

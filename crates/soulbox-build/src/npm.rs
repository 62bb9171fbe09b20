//! Packages of npm as tarballs in a cache folder, fetched by the host's own npm client and its settings.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Why a package is not in the cache.
#[derive(Debug, thiserror::Error)]
pub enum NpmError {
    #[error("failed to start npm, which fetches the recipe's npm packages")]
    Start(#[source] io::Error),
    #[error("npm could not fetch {package}: {said}")]
    Fetch { package: String, said: String },
    #[error("failed to write `{path}`")]
    Cache {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Makes `into` hold the tarball of exactly these `name@version` packages, with `cache` as the source of those
/// that were fetched before. A tarball is named as npm names it: `yarn-1.22.19.tgz`.
pub fn collect<'a>(
    packages: impl Iterator<Item = &'a String>,
    cache: &Path,
    into: &Path,
) -> Result<(), NpmError> {
    make(cache)?;
    make(into)?;
    for package in packages {
        let name = tarball_name(package);
        let cached = cache.join(&name);
        if !cached.is_file() {
            fetch(package, cache, &cached)?;
        }
        let path = into.join(&name);
        fs::copy(&cached, &path).map_err(|source| NpmError::Cache { path, source })?;
    }
    Ok(())
}

fn fetch(package: &str, cache: &Path, cached: &Path) -> Result<(), NpmError> {
    // A folder of our own beside the result, so that a half-fetched file is never taken for a whole one.
    let partial = cache.join(format!("partial-{}", std::process::id()));
    make(&partial)?;
    let output = Command::new("npm")
        .args(["pack", "--silent", "--pack-destination"])
        .arg(&partial)
        .arg("--")
        .arg(package)
        .current_dir(&partial)
        .stdin(Stdio::null())
        .output()
        .map_err(NpmError::Start)?;
    let failed = |source| NpmError::Cache {
        path: partial.clone(),
        source,
    };
    let tarball = fs::read_dir(&partial)
        .map_err(failed)?
        .flatten()
        .map(|entry| entry.path())
        .next();
    let result = match tarball {
        Some(tarball) if output.status.success() => {
            fs::rename(tarball, cached).map_err(|source| NpmError::Cache {
                path: cached.to_owned(),
                source,
            })
        }
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said
                .lines()
                .filter(|line| !line.trim().is_empty())
                .take(3)
                .collect::<Vec<_>>()
                .join("; ");
            Err(NpmError::Fetch {
                package: package.to_owned(),
                said,
            })
        }
    };
    fs::remove_dir_all(&partial).map_err(failed)?;
    result
}

fn make(path: &Path) -> Result<(), NpmError> {
    fs::create_dir_all(path).map_err(|source| NpmError::Cache {
        path: path.to_owned(),
        source,
    })
}

fn tarball_name(package: &str) -> String {
    let (name, version) = package.rsplit_once('@').unwrap_or((package, "latest"));
    format!(
        "{}-{version}.tgz",
        name.trim_start_matches('@').replace('/', "-")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tarballs_are_named_as_npm_names_them() {
        assert_eq!(tarball_name("yarn@1.22.19"), "yarn-1.22.19.tgz");
        assert_eq!(tarball_name("@scope/tool@2.0.0"), "scope-tool-2.0.0.tgz");
    }

    #[test]
    fn a_cached_package_needs_no_npm() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, into) = (folder.path().join("cache"), folder.path().join("into"));
        fs::create_dir_all(&cache).unwrap();
        fs::write(cache.join("left-1.0.0.tgz"), "tar").unwrap();
        collect(["left@1.0.0".to_owned()].iter(), &cache, &into).unwrap();
        assert_eq!(
            fs::read_to_string(into.join("left-1.0.0.tgz")).unwrap(),
            "tar"
        );
    }
}

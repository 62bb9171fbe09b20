//! Templates' manifests: small JSON files that name the layers of a build. One file for each build, and one for each name.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::PoolError;
use crate::layer::LayerDigest;

/// What a build hands on to builds that begin from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inherited {
    /// Of the build's steps; sandboxes do not see it.
    pub env: BTreeMap<String, String>,
    /// What is started in every new sandbox, and what then tells that it is ready.
    pub start_command: Option<String>,
    pub ready_command: Option<String>,
    /// A snapshot of a sandbox of this build in which the start command runs and is ready; not handed on.
    #[serde(default)]
    pub started: Option<String>,
}

/// One build of a template. The same fields as the host RPC's own shape, which the pool does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateManifest {
    /// The alias, such as `base`: 1 to 128 of `[a-z0-9._-]`, the first a letter or digit.
    pub name: String,
    pub template_id: String,
    pub build_id: String,
    /// Unix milliseconds of the build.
    pub built_at: u64,
    /// Lowest first.
    pub layers: Vec<LayerDigest>,
    pub cpu_count: u32,
    pub memory_mib: u64,
    pub disk_mib: u64,
    pub default_user: String,
    pub default_workdir: String,
    #[serde(default)]
    pub inherited: Inherited,
}

/// The manifest called `name`, if there is one.
pub(crate) fn read(directory: &Path, name: &str) -> Result<Option<TemplateManifest>, PoolError> {
    check_name(name)?;
    let path = directory.join(format!("{name}.json"));
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PoolError::io("read", &path)(error)),
        Ok(text) => serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| PoolError::BadManifest { path, source }),
    }
}

/// Deletes the manifest called `name`; absent is fine.
pub(crate) fn delete(directory: &Path, name: &str) -> Result<(), PoolError> {
    check_name(name)?;
    let path = directory.join(format!("{name}.json"));
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(PoolError::io("delete", &path)(error))
        }
        _ => Ok(()),
    }
}

fn check_name(name: &str) -> Result<(), PoolError> {
    let valid = (1..=128).contains(&name.len())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
        && name.starts_with(|first: char| first.is_ascii_alphanumeric());
    if valid {
        return Ok(());
    }
    Err(PoolError::BadName {
        what: "a template",
        name: name.to_owned(),
    })
}

pub(crate) fn read_all(directory: &Path) -> Result<Vec<TemplateManifest>, PoolError> {
    let mut manifests = Vec::new();
    for entry in fs::read_dir(directory).map_err(PoolError::io("list", directory))? {
        let path = entry.map_err(PoolError::io("list", directory))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue; // a temporary file of `write`, possibly of a process that is gone
        }
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(PoolError::io("read", &path)(error)),
        };
        manifests.push(
            serde_json::from_slice(&text)
                .map_err(|source| PoolError::BadManifest { path, source })?,
        );
    }
    manifests.sort_by(|a: &TemplateManifest, b| a.name.cmp(&b.name));
    Ok(manifests)
}

/// Writes the manifest as `name`, durably, replacing an older one.
pub(crate) fn write(
    directory: &Path,
    name: &str,
    manifest: &TemplateManifest,
) -> Result<(), PoolError> {
    check_name(name)?;
    let target = directory.join(format!("{name}.json"));
    let temporary = directory.join(format!("{name}.json.{}", std::process::id()));
    let text = serde_json::to_vec_pretty(manifest).map_err(|source| PoolError::BadManifest {
        path: target.clone(),
        source,
    })?;
    let written = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(&text)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&temporary, &target)?;
        File::open(directory)?.sync_all()
    })();
    written.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        PoolError::io("write", &target)(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str) -> TemplateManifest {
        TemplateManifest {
            name: name.to_owned(),
            template_id: "t".into(),
            build_id: "b".into(),
            built_at: 1,
            layers: Vec::new(),
            cpu_count: 2,
            memory_mib: 512,
            disk_mib: 1024,
            default_user: "user".into(),
            default_workdir: "/home/user".into(),
            inherited: Inherited::default(),
        }
    }

    #[test]
    fn written_manifests_are_read_back_sorted_and_others_named() {
        let directory = tempfile::tempdir().expect("temporary directory");
        for name in ["b", "a"] {
            write(directory.path(), name, &manifest(name)).expect("write");
        }
        fs::write(directory.path().join("c.json.77"), "half").expect("leftover");
        let one = read(directory.path(), "a").expect("read");
        assert_eq!(one, Some(manifest("a")));
        assert_eq!(read(directory.path(), "c").expect("no error"), None);
        let read = read_all(directory.path()).expect("read");
        assert_eq!(read, [manifest("a"), manifest("b")]);

        fs::write(directory.path().join("d.json"), "{").expect("broken");
        let error = read_all(directory.path()).expect_err("a broken manifest is no template");
        assert!(error.to_string().contains("d.json"), "{error}");
    }

    #[test]
    fn names_cannot_leave_the_directory() {
        let directory = tempfile::tempdir().expect("temporary directory");
        for bad in ["", ".", "../x", "a/b", "A", &"a".repeat(129)] {
            assert!(
                matches!(
                    write(directory.path(), bad, &manifest(bad)),
                    Err(PoolError::BadName { .. })
                ),
                "{bad}"
            );
        }
    }
}

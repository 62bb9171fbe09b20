//! The variables that a sandbox's creator gave, kept on its own disk: a sandbox that boots from what was on disk has them again, although
//! nobody sends them a second time.
//!
//! For root of the sandbox alone, as the memory of the daemon is.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Below the root of the sandbox.
pub(crate) const KEPT: &str = "/var/lib/soulbox/environment.json";

/// Renamed into place, so that a boot finds the old or the new ones, never a part.
pub(crate) fn keep(path: &Path, variables: &BTreeMap<String, String>) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let new = path.with_extension("new");
    // One that a crash left may be anybody's by now.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?
        .write_all(&serde_json::to_vec(variables)?)?;
    fs::rename(&new, path)
}

/// What was kept; nothing when there is none, or when the sandbox has made something else of the file.
pub(crate) fn kept(path: &Path) -> Option<BTreeMap<String, String>> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_kept_is_there_after_a_boot() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lib/environment.json");
        assert_eq!(kept(&path), None);
        for value in ["one", "two"] {
            let variables = BTreeMap::from([("A".to_owned(), value.to_owned())]);
            keep(&path, &variables).expect("keeps");
            assert_eq!(kept(&path), Some(variables));
        }
        let mode = fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "secrets may be among them");
        fs::write(&path, "{}}").expect("writes");
        assert_eq!(kept(&path), None);
    }
}

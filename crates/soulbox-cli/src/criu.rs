//! Where CRIU is: in the folder that a setting names, or where a set-up puts it, or installed on the host.

use std::path::{Path, PathBuf};

use soulbox_runtime::criu::{Criu, CriuError};

use crate::failure::chain;

/// Where `scripts/setup.sh criu /opt/soulbox/criu` unpacks it.
const UNPACKED: &str = "/opt/soulbox/criu";
/// How to have it.
pub const MEND: &str = "scripts/setup.sh criu /opt/soulbox/criu, or name its folder with --criu";

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

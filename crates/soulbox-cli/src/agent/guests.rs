//! The guest programs that this binary carries, unpacked to `<data>/bin/<digest>/`. Older builds stay: running sandboxes execute them.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use sha2::{Digest, Sha256};

use crate::failure::Failure;

const ENVD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envd"));
const LAUNCH: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/launch"));
const INTERPRETER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/interpreter"));

/// Where they lie.
pub(super) struct Guests {
    pub(super) directory: PathBuf,
    pub(super) digest: String,
}

/// Unpacks them unless that was done before. The directory appears complete or not at all.
pub(super) fn unpack(data: &Path) -> Result<Guests, Failure> {
    if ENVD.is_empty() || LAUNCH.is_empty() || INTERPRETER.is_empty() {
        return Err(
            Failure::new(anyhow!("this build of soulbox carries no guest programs"))
                .hint("build it with `make setup`, or run `cargo xtask guests` first"),
        );
    }
    let digest = hex::encode(
        Sha256::new()
            .chain_update(ENVD)
            .chain_update(LAUNCH)
            .chain_update(INTERPRETER)
            .finalize(),
    );
    let directory = data.join("bin").join(&digest);
    if !directory.is_dir() {
        write(data, &directory).with_context(|| {
            format!(
                "failed to unpack the guest programs to `{}`",
                directory.display()
            )
        })?;
    }
    Ok(Guests { directory, digest })
}

fn write(data: &Path, directory: &Path) -> io::Result<()> {
    let draft = data
        .join("bin")
        .join(format!("draft-{}", std::process::id()));
    fs::create_dir_all(&draft)?;
    for (name, bytes) in [
        ("envd", ENVD),
        ("launch", LAUNCH),
        ("interpreter", INTERPRETER),
    ] {
        let path = draft.join(name);
        fs::write(&path, bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o555))?;
    }
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755))?;
    fs::rename(&draft, directory)
}

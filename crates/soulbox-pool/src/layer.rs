//! The name of a layer: a SHA-256 in lower-case hex.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::{PoolError, draft};

/// Names one read-only layer. What was hashed is the maker's business (for a recipe it is the recipe); the pool only
/// requires that equal digests mean equal layers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerDigest(String);

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not 64 lower-case hex digits")]
pub struct DigestError(String);

impl LayerDigest {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for LayerDigest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        if text.len() == 64
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        {
            Ok(Self(text))
        } else {
            Err(DigestError(text.chars().take(80).collect()))
        }
    }
}

impl FromStr for LayerDigest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::try_from(text.to_owned())
    }
}

impl From<LayerDigest> for String {
    fn from(digest: LayerDigest) -> Self {
        digest.0
    }
}

impl fmt::Display for LayerDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The layers in a directory, each with the time since which it is there: nothing of its root directory changes after that.
pub(crate) fn list(layers: &Path) -> Result<Vec<(LayerDigest, SystemTime)>, PoolError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(layers).map_err(PoolError::io("list", layers))? {
        let entry = entry.map_err(PoolError::io("list", layers))?;
        let digest = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(digest) = digest else {
            continue;
        };
        let metadata = entry
            .metadata()
            .map_err(PoolError::io("read", entry.path()))?;
        let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
        found.push((digest, UNIX_EPOCH + Duration::from_secs(seconds)));
    }
    found.sort();
    Ok(found)
}

/// Deletes a layer, after the names that lead to it.
pub(crate) fn delete(layers: &Path, names: &Path, digest: &LayerDigest) -> Result<(), PoolError> {
    for entry in fs::read_dir(names).map_err(PoolError::io("list", names))? {
        let path = entry.map_err(PoolError::io("list", names))?.path();
        if fs::read_to_string(&path).is_ok_and(|text| text == digest.as_str()) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(PoolError::io("delete", &path)(error));
                }
                _ => {}
            }
        }
    }
    draft::destroy(layers, digest.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_lower_case_hex_digits_pass() {
        assert!("0123456789abcdef".repeat(4).parse::<LayerDigest>().is_ok());
        for bad in [
            "",
            "..",
            "ab",
            &"A".repeat(64),
            &"a".repeat(65),
            &format!("{}/", "a".repeat(63)),
        ] {
            assert!(bad.parse::<LayerDigest>().is_err(), "{bad}");
        }
    }
}

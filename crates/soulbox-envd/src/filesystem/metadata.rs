//! Metadata that clients attach to files: extended attributes `user.e2b.<key>`.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use http::HeaderMap;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

const PREFIX: &str = "user.e2b.";
const HEADER_PREFIX: &str = "x-metadata-";
/// XATTR_NAME_MAX less the prefix.
const KEY_BYTES: usize = 246;
/// All names and values of a file together; what ext4 keeps in one block.
const TOTAL_BYTES: usize = 4096;
/// XATTR_SIZE_MAX and XATTR_LIST_MAX, linux/limits.h.
const LARGEST: usize = 64 << 10;

pub(crate) type Metadata = BTreeMap<String, String>;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MetadataError {
    #[error("metadata key '{0}' is longer than {KEY_BYTES} bytes")]
    LongKey(String),
    #[error("metadata '{0}' must be printable ASCII")]
    NotPrintable(String),
    #[error("metadata is larger than {TOTAL_BYTES} bytes in total")]
    TooLarge,
}

/// The metadata that the headers of an upload carry. Of one key the first value counts.
pub(crate) fn of_headers(headers: &HeaderMap) -> Result<Metadata, MetadataError> {
    let mut metadata = Metadata::new();
    for name in headers.keys() {
        let Some(key) = name
            .as_str()
            .strip_prefix(HEADER_PREFIX)
            .filter(|key| !key.is_empty())
        else {
            continue;
        };
        let Some(value) = headers.get(name) else {
            continue;
        };
        if key.len() > KEY_BYTES {
            return Err(MetadataError::LongKey(key.to_owned()));
        }
        let printable = |bytes: &[u8]| bytes.iter().all(|byte| (0x20..=0x7E).contains(byte));
        let value = std::str::from_utf8(value.as_bytes())
            .ok()
            .filter(|value| printable(value.as_bytes()) && printable(key.as_bytes()));
        let value = value.ok_or_else(|| MetadataError::NotPrintable(key.to_owned()))?;
        metadata.insert(key.to_owned(), value.to_owned());
    }
    let total: usize = metadata
        .iter()
        .map(|(key, value)| PREFIX.len() + key.len() + value.len())
        .sum();
    if total > TOTAL_BYTES {
        return Err(MetadataError::TooLarge);
    }
    Ok(metadata)
}

/// The metadata of a file. A file system without extended attributes has none; what is not UTF-8 is left out.
pub(crate) fn read(path: &Path) -> Metadata {
    let list = grown(|buffer| rustix::fs::listxattr(path, buffer)).unwrap_or_default();
    let mut metadata = Metadata::new();
    for name in list.split(|byte| *byte == 0) {
        let Some(key) = std::str::from_utf8(name)
            .ok()
            .and_then(|name| name.strip_prefix(PREFIX))
        else {
            continue;
        };
        let value = grown(|buffer| rustix::fs::getxattr(path, name, buffer))
            .ok()
            .and_then(|value| String::from_utf8(value).ok());
        if let Some(value) = value {
            metadata.insert(key.to_owned(), value);
        }
    }
    metadata
}

/// Makes `metadata` all that the open file has. A file system without extended attributes drops it.
/// # Errors
/// Only what the client should know: no space, over quota.
pub(crate) fn replace(file: BorrowedFd<'_>, metadata: &Metadata) -> io::Result<()> {
    let list = grown(|buffer| rustix::fs::flistxattr(file, buffer)).unwrap_or_default();
    for name in list.split(|byte| *byte == 0) {
        let ours = std::str::from_utf8(name)
            .ok()
            .and_then(|name| name.strip_prefix(PREFIX));
        if ours.is_some_and(|key| !metadata.contains_key(key)) {
            // The set that follows decides; a leftover that cannot be removed is shown by the next read.
            _ = rustix::fs::fremovexattr(file, name);
        }
    }
    for (key, value) in metadata {
        let Ok(name) = CString::new(format!("{PREFIX}{key}")) else {
            continue;
        };
        let set =
            rustix::fs::fsetxattr(file, name.as_c_str(), value.as_bytes(), XattrFlags::empty());
        if let Err(errno @ (Errno::NOSPC | Errno::DQUOT)) = set {
            return Err(errno.into());
        }
    }
    Ok(())
}

/// Most files have no attributes, so a small buffer is tried before the largest.
fn grown(
    mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut small = [0; 256];
    match call(&mut small) {
        Ok(length) => Ok(small[..length].to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; LARGEST];
            let length = call(&mut large)?;
            large.truncate(length);
            Ok(large)
        }
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                let name = HeaderName::from_bytes(name.as_bytes()).expect("name");
                (
                    name,
                    HeaderValue::from_bytes(value.as_bytes()).expect("value"),
                )
            })
            .collect()
    }

    #[test]
    fn headers_become_metadata_within_limits() {
        let metadata = of_headers(&headers(&[
            ("X-Metadata-Kind", "a b"),
            ("x-metadata-", "ignored"),
            ("other", "x"),
        ]))
        .expect("fits");
        assert_eq!(metadata, Metadata::from([("kind".into(), "a b".into())]));
        let long = format!("x-metadata-{}", "k".repeat(247));
        assert!(matches!(
            of_headers(&headers(&[(&long, "v")])),
            Err(MetadataError::LongKey(_))
        ));
        assert!(matches!(
            of_headers(&headers(&[("x-metadata-k", "ü")])),
            Err(MetadataError::NotPrintable(_))
        ));
        assert_eq!(
            of_headers(&headers(&[("x-metadata-k", &"v".repeat(4087))])),
            Err(MetadataError::TooLarge)
        );
        assert!(of_headers(&headers(&[("x-metadata-k", &"v".repeat(4086))])).is_ok());
    }
}

//! Files of COPY steps that clients upload before a build, as archives on the front's disk: `<directory>/<team>/<hash>`.
//!
//! An archive belongs to a team and is kept over builds and templates, named by the client's own hash of what is in it. It is written beside
//! its place and moved there when it is whole. It is never opened here: what is in it is the business of the sandbox that unpacks it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use soulbox_types::TeamId;
use tokio::io::AsyncWriteExt;

use crate::builds::FilesHash;
use crate::random::{self, RandomError};

/// The first block of a tar archive has to be there to tell it from something else.
const TAR_BLOCK: usize = 512;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// What an upload that was broken off left; no upload takes longer.
const STALE: Duration = Duration::from_secs(2 * 3600);

/// Why an archive was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("the archive has {length} bytes, more than {max} are not taken")]
    TooLarge { length: u64, max: u64 },
    #[error("the archive ended after {received} of {length} bytes")]
    CutOff { received: u64, length: u64 },
    #[error("the archive is longer than the {length} bytes that were announced")]
    TooLong { length: u64 },
    #[error("it is neither a tar archive nor one packed by gzip or zstd")]
    NoArchive,
    #[error("the archive could not be received: {0}")]
    Body(String),
    #[error("no place for archives is configured")]
    NoPlace,
    #[error("failed to {step} an archive")]
    Disk {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Random(#[from] RandomError),
}

fn disk(step: &'static str) -> impl FnOnce(io::Error) -> ArchiveError {
    move |source| ArchiveError::Disk { step, source }
}

/// The archives of one team.
#[derive(Debug, Clone)]
pub struct Archives {
    directory: Option<PathBuf>,
    max_bytes: u64,
}

impl Archives {
    pub(crate) fn new(directory: Option<&Path>, team: &TeamId, max_bytes: u64) -> Self {
        let directory = directory.map(|it| it.join(team.as_str()));
        Self {
            directory,
            max_bytes,
        }
    }

    /// Where the archive lies, if it was uploaded: tar, plain or packed by gzip or zstd, which its first bytes tell. Nobody has looked at
    /// what is in it.
    #[must_use]
    pub fn path(&self, hash: &FilesHash) -> Option<PathBuf> {
        let path = self.directory.as_ref()?.join(hash.as_str());
        path.is_file().then_some(path)
    }

    /// Receives an archive of exactly `length` bytes; the one that was there before is replaced.
    ///
    /// # Errors
    /// See [`ArchiveError`]; nothing is left of it, and the one that was there before stays.
    pub async fn receive<E: std::fmt::Display>(
        &self,
        hash: &FilesHash,
        length: u64,
        body: impl Stream<Item = Result<Bytes, E>>,
    ) -> Result<(), ArchiveError> {
        let directory = self.directory.as_deref().ok_or(ArchiveError::NoPlace)?;
        if length > self.max_bytes {
            let max = self.max_bytes;
            return Err(ArchiveError::TooLarge { length, max });
        }
        tokio::fs::create_dir_all(directory)
            .await
            .map_err(disk("make a directory for"))?;
        let draft = Draft(directory.join(format!(".{}", random::uuid()?)));
        let mut file = tokio::fs::File::create_new(&draft.0)
            .await
            .map_err(disk("make a file for"))?;
        let mut body = std::pin::pin!(body);
        let mut first = Vec::with_capacity(TAR_BLOCK);
        let mut received: u64 = 0;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| ArchiveError::Body(error.to_string()))?;
            received += chunk.len() as u64;
            if received > length {
                return Err(ArchiveError::TooLong { length });
            }
            let missing = TAR_BLOCK - first.len();
            first.extend_from_slice(&chunk[..chunk.len().min(missing)]);
            file.write_all(&chunk).await.map_err(disk("write"))?;
        }
        if received < length {
            return Err(ArchiveError::CutOff { received, length });
        }
        if !is_archive(&first) {
            return Err(ArchiveError::NoArchive);
        }
        file.flush().await.map_err(disk("write"))?;
        file.sync_data().await.map_err(disk("write"))?;
        tokio::fs::rename(&draft.0, directory.join(hash.as_str()))
            .await
            .map_err(disk("keep"))
    }
}

/// Deletes archives of all teams that were uploaded longer ago than `keep`, and what broken uploads left. Returns how many.
///
/// # Errors
/// A directory could not be read.
pub(crate) async fn sweep(directory: &Path, keep: Duration) -> io::Result<usize> {
    let mut swept = 0;
    let mut teams = match tokio::fs::read_dir(directory).await {
        Ok(teams) => teams,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    while let Some(team) = teams.next_entry().await? {
        let mut files = tokio::fs::read_dir(team.path()).await?;
        while let Some(file) = files.next_entry().await? {
            let keep = if file.file_name().to_string_lossy().starts_with('.') {
                STALE
            } else {
                keep
            };
            let age = file.metadata().await?.modified()?.elapsed();
            if age.is_ok_and(|age| age > keep) && tokio::fs::remove_file(file.path()).await.is_ok()
            {
                swept += 1;
            }
        }
    }
    Ok(swept)
}

/// A file that is deleted unless it was moved away.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        // It is not there any more when all went well.
        drop(std::fs::remove_file(&self.0));
    }
}

/// Whether a file that begins like this may be one. A tar archive begins with a header whose sum is right, or with its end if it is empty.
fn is_archive(first: &[u8]) -> bool {
    if first.starts_with(&GZIP) || first.starts_with(&ZSTD) {
        return true;
    }
    let Some(header) = first.get(..TAR_BLOCK) else {
        return false;
    };
    if header.iter().all(|it| *it == 0) {
        return true;
    }
    // The sum counts its own field as spaces.
    let sum: u32 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| {
            u32::from(if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            })
        })
        .sum();
    let digits: String = header[148..156]
        .iter()
        .map(|it| char::from(*it))
        .filter(|it| it.is_digit(8))
        .collect();
    u32::from_str_radix(&digits, 8) == Ok(sum)
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn hash() -> FilesHash {
        "a".repeat(64).parse().expect("a hash")
    }

    async fn receive(
        archives: &Archives,
        length: u64,
        chunks: &[&[u8]],
    ) -> Result<(), ArchiveError> {
        let chunks: Vec<Result<Bytes, String>> = chunks
            .iter()
            .map(|it| Ok(Bytes::copy_from_slice(it)))
            .collect();
        archives
            .receive(&hash(), length, stream::iter(chunks))
            .await
    }

    #[tokio::test]
    async fn an_archive_is_there_when_it_is_whole_and_not_before() {
        let directory = tempfile::tempdir().expect("a directory");
        let team = TeamId::from_random([1; 16]);
        let archives = Archives::new(Some(directory.path()), &team, 2000);
        assert_eq!(archives.path(&hash()), None);
        let short = receive(&archives, 4, &[&GZIP]).await;
        assert!(
            matches!(
                short,
                Err(ArchiveError::CutOff {
                    received: 2,
                    length: 4
                })
            ),
            "{short:?}"
        );
        let long = receive(&archives, 3, &[&GZIP, &GZIP]).await;
        assert!(
            matches!(long, Err(ArchiveError::TooLong { length: 3 })),
            "{long:?}"
        );
        let large = receive(&archives, 2001, &[]).await;
        assert!(
            matches!(large, Err(ArchiveError::TooLarge { max: 2000, .. })),
            "{large:?}"
        );
        let text = receive(&archives, 600, &[&[b'x'; 600]]).await;
        assert!(matches!(text, Err(ArchiveError::NoArchive)), "{text:?}");
        assert_eq!(archives.path(&hash()), None);
        let left = std::fs::read_dir(directory.path().join(team.as_str())).expect("there");
        assert_eq!(left.count(), 0, "drafts are gone");
        receive(&archives, 4, &[&GZIP, b"ab"]).await.expect("taken");
        let path = archives.path(&hash()).expect("there");
        assert_eq!(std::fs::read(path).expect("read"), b"\x1f\x8bab");
        let other = Archives::new(Some(directory.path()), &TeamId::from_random([2; 16]), 2000);
        assert_eq!(other.path(&hash()), None, "another team's");
        assert_eq!(
            sweep(directory.path(), Duration::from_secs(60)).await.ok(),
            Some(0)
        );
        assert_eq!(sweep(directory.path(), Duration::ZERO).await.ok(), Some(1));
        assert_eq!(archives.path(&hash()), None);
    }

    #[test]
    fn a_tar_header_is_known_by_its_sum() {
        let mut header = [0; TAR_BLOCK];
        header[..5].copy_from_slice(b"hello");
        header[148..156].copy_from_slice(b"001424\0 ");
        assert!(is_archive(&header), "532 of letters and 256 of spaces");
        header[0] = b'j';
        assert!(!is_archive(&header));
        assert!(is_archive(&[0; TAR_BLOCK]), "an empty archive");
        assert!(!is_archive(&[0; TAR_BLOCK - 1]));
    }
}

//! Files: contents over plain HTTP, listings by the daemon.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::{ANSWER_WITHIN, DAEMON, Pieces, Sandbox, SandboxError};

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    pub name: String,
    /// Absolute.
    pub path: String,
    pub folder: bool,
    /// Bytes.
    pub size: u64,
}

#[derive(Serialize)]
struct ListDir<'a> {
    path: &'a str,
    depth: u32,
}

#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    name: String,
    #[serde(default)]
    path: String,
    #[serde(rename = "type", default)]
    kind: String,
    // 64-bit numbers are texts in this JSON, and zeros are left out.
    #[serde(default)]
    size: serde_json::Value,
}

impl Sandbox {
    /// The contents of a file; a path that is not absolute begins at the home of the template's user.
    ///
    /// # Errors
    /// `Refused` with 404 where there is no such file, `TooLarge` above `most` bytes.
    pub async fn read_file(&self, path: &str, most: usize) -> Result<Vec<u8>, SandboxError> {
        let answer = self
            .send(
                self.request(Method::GET, DAEMON, &files(path)),
                DAEMON,
                ANSWER_WITHIN,
            )
            .await?;
        if answer
            .content_length()
            .is_some_and(|length| length > most as u64)
        {
            return Err(SandboxError::TooLarge { most });
        }
        let mut pieces = Pieces::new(self, answer, ANSWER_WITHIN);
        while pieces.more(most).await? {}
        Ok(pieces.buffer)
    }

    /// Writes a file, with the folders that lead to it.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn write_file(&self, path: &str, contents: Vec<u8>) -> Result<(), SandboxError> {
        let request = self
            .request(Method::POST, DAEMON, &files(path))
            .header("Content-Type", "application/octet-stream")
            .body(contents);
        self.send(request, DAEMON, ANSWER_WITHIN).await.map(|_| ())
    }

    /// The entries of a folder, and of those in it down to `depth`.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub async fn list_files(&self, path: &str, depth: u32) -> Result<Vec<FileEntry>, SandboxError> {
        let request = self
            .request(Method::POST, DAEMON, "/filesystem.Filesystem/ListDir")
            .header("Connect-Protocol-Version", "1")
            .json(&ListDir { path, depth });
        let answer = self.send(request, DAEMON, ANSWER_WITHIN).await?;
        let text = answer
            .bytes()
            .await
            .map_err(|error| self.unanswered(error, ANSWER_WITHIN))?;
        let listing: Listing =
            serde_json::from_slice(&text).map_err(|error| SandboxError::Answer {
                what: error.to_string(),
            })?;
        Ok(listing
            .entries
            .into_iter()
            .map(|entry| FileEntry {
                name: entry.name,
                path: entry.path,
                folder: entry.kind == "FILE_TYPE_DIRECTORY",
                size: match &entry.size {
                    serde_json::Value::String(text) => text.parse().unwrap_or(0),
                    other => other.as_u64().unwrap_or(0),
                },
            })
            .collect())
    }
}

fn files(path: &str) -> String {
    format!(
        "/files?path={}",
        utf8_percent_encode(path, NON_ALPHANUMERIC)
    )
}

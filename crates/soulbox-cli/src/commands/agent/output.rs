//! What the work leaves: charts as they come, files at the end. Nothing that is there already is overwritten.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use base64::Engine as _;
use soulbox_agent::{Picture, below};
use soulbox_client::Sandbox;

use crate::failure::plain;

/// Larger files stay behind, and more than so many, each with a word about it.
const LARGEST: usize = 50 << 20;
const MOST: usize = 100;
const DEPTH: u32 = 4;

pub(super) struct Output {
    folder: PathBuf,
    saved: Vec<PathBuf>,
    pictures: u32,
}

impl Output {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            saved: Vec::new(),
            pictures: 0,
        }
    }

    pub(super) fn saved(&self) -> &[PathBuf] {
        &self.saved
    }

    pub(super) fn picture(&mut self, picture: &Picture) -> anyhow::Result<PathBuf> {
        let bytes = match picture.format {
            "svg" => picture.data.clone().into_bytes(),
            _ => base64::engine::general_purpose::STANDARD
                .decode(&picture.data)
                .map_err(|error| anyhow!("a chart is not base64: {error}"))?,
        };
        self.pictures += 1;
        self.save(
            Path::new(&format!("chart-{}.{}", self.pictures, picture.format)),
            &bytes,
        )
    }

    /// Fetches files of the home directory that were not given, hidden ones and those of folders of packages left out.
    pub(super) async fn collect(
        &mut self,
        sandbox: &Sandbox,
        home: &str,
        given: &[String],
    ) -> anyhow::Result<()> {
        let entries = sandbox
            .list_files(home, DEPTH)
            .await
            .context("failed to list what was left in the sandbox")?;
        let wanted = entries.into_iter().filter(|entry| {
            let hidden = entry.path.contains("/.")
                || entry.path.contains("/node_modules/")
                || entry.path.contains("/__pycache__/");
            !entry.folder && !hidden && !given.contains(&entry.path)
        });
        for (index, entry) in wanted.enumerate() {
            if index == MOST {
                eprintln!("[more than {MOST} files: the others were left behind]");
                break;
            }
            let Some(path) = below(home, &entry.path) else {
                continue;
            };
            match sandbox.read_file(&entry.path, LARGEST).await {
                Ok(bytes) => {
                    let saved = self.save(&path, &bytes)?;
                    eprintln!("[saved {}]", saved.display());
                }
                // A link to nowhere, a file of another user, one that is too large: the others are still worth having.
                Err(error) => eprintln!(
                    "[{} was left behind: {}]",
                    plain(&entry.path),
                    super::one_line(&error)
                ),
            }
        }
        Ok(())
    }

    fn save(&mut self, path: &Path, bytes: &[u8]) -> anyhow::Result<PathBuf> {
        let wanted = self.folder.join(path);
        let folder = wanted.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder)
            .with_context(|| format!("failed to make `{}`", folder.display()))?;
        let stem = wanted
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let extension = wanted
            .extension()
            .map(|extension| format!(".{}", extension.to_string_lossy()));
        let mut number = 1;
        loop {
            let path = match number {
                1 => wanted.clone(),
                _ => folder.join(format!(
                    "{stem}-{number}{}",
                    extension.as_deref().unwrap_or_default()
                )),
            };
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    file.write_all(bytes)
                        .with_context(|| format!("failed to write `{}`", path.display()))?;
                    self.saved.push(path.clone());
                    return Ok(path);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 10_000 => {
                    number += 1
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("failed to write `{}`", path.display()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_overwritten() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut output = Output::new(folder.path().join("new"));
        let names: Vec<_> = ["a", "b"]
            .iter()
            .map(|text| {
                output
                    .save(Path::new("sub/x.csv"), text.as_bytes())
                    .expect("saved")
            })
            .map(|path| path.strip_prefix(folder.path()).expect("below").to_owned())
            .collect();
        assert_eq!(
            names,
            [Path::new("new/sub/x.csv"), Path::new("new/sub/x-2.csv")]
        );
        assert_eq!(fs::read_to_string(&output.saved()[0]).expect("read"), "a");
    }
}

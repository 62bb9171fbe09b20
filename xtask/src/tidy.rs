//! Checks what no compiler checks. Each module returns its findings as lines; any line fails the run.

mod arrows;
mod documents;
mod sources;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// A text file of the repository.
struct Source {
    /// Relative to the root.
    path: PathBuf,
    text: String,
}

pub(crate) fn check(workspace: &Path) -> anyhow::Result<()> {
    let metadata = metadata(workspace)?;
    let sources = sources(workspace)?;
    let mut findings = arrows::check(&metadata)?;
    findings.extend(documents::check(&metadata, &sources)?);
    findings.extend(sources::check(&sources));
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy found {} thing(s)", findings.len());
    }
    eprintln!("tidy: {} files are in order", sources.len());
    Ok(())
}

fn metadata(workspace: &Path) -> anyhow::Result<serde_json::Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(workspace)
        .output()
        .context("failed to start cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")
}

/// All text files that git knows or would take; what it ignores is nobody's business.
fn sources(workspace: &Path) -> anyhow::Result<Vec<Source>> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(workspace)
        .output()
        .context("failed to start git ls-files")?;
    ensure!(
        output.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let mut sources = Vec::new();
    for name in output
        .stdout
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let path = PathBuf::from(std::str::from_utf8(name).context("a file name is not UTF-8")?);
        // Inputs of fuzz targets are bytes, whatever they look like.
        if path.starts_with("fuzz/corpus") {
            continue;
        }
        // Deleted but still in the index, or no text: not for us.
        if let Ok(text) = fs::read_to_string(workspace.join(&path)) {
            sources.push(Source { path, text });
        }
    }
    Ok(sources)
}

//! The copy in which guards are taken away: a git worktree with a target folder of its own. It stays for the next run, which then compiles
//! only what changed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, bail, ensure};

use super::Outcome;
use super::table::{Check, Edit, Guard};

const SCRATCH: &str = "target/mutants";
/// What pytest ends with when tests ran and some failed; everything above is a mistake of ours.
const PYTEST_FAILED: i32 = 1;
/// The same of cargo-nextest.
const NEXTEST_FAILED: i32 = 100;

pub(crate) struct Scratch {
    workspace: PathBuf,
    tree: PathBuf,
}

/// Texts of files by their path.
type Texts = BTreeMap<PathBuf, String>;

impl Scratch {
    /// The last commit of `workspace`, in `folder` or where it lies by default.
    pub(crate) fn new(workspace: &Path, folder: Option<&Path>) -> anyhow::Result<Self> {
        let tree = workspace.join(folder.unwrap_or(Path::new(SCRATCH)));
        let git = |folder: &Path, arguments: &[&str]| -> anyhow::Result<()> {
            let status = Command::new("git")
                .current_dir(folder)
                .args(arguments)
                .stdout(Stdio::null())
                .status()
                .context("failed to start git")?;
            ensure!(status.success(), "git {} failed", arguments.join(" "));
            Ok(())
        };
        if tree.join(".git").exists() {
            let head = Command::new("git")
                .current_dir(workspace)
                .args(["rev-parse", "HEAD"])
                .output()
                .context("failed to start git")?;
            let head = String::from_utf8_lossy(&head.stdout).trim().to_owned();
            // Also undoes an edit that an interrupted run left.
            git(
                &tree,
                &["checkout", "--quiet", "--force", "--detach", &head],
            )?;
        } else {
            let path = tree
                .to_str()
                .context("the scratch folder has a name that is no text")?;
            git(workspace, &["worktree", "prune"])?;
            git(
                workspace,
                &[
                    "worktree", "add", "--quiet", "--force", "--detach", path, "HEAD",
                ],
            )?;
        }
        Ok(Self {
            workspace: workspace.to_owned(),
            tree,
        })
    }

    fn read(&self, file: &Path) -> anyhow::Result<String> {
        let path = self.tree.join(file);
        fs::read_to_string(&path).with_context(|| format!("failed to read `{}`", path.display()))
    }

    /// The files of these guards as they are, and without all of them.
    pub(crate) fn without(&self, batch: &[Guard]) -> anyhow::Result<(Texts, Texts)> {
        let (mut originals, mut edited) = (Texts::new(), Texts::new());
        let mut done: Vec<&Edit> = Vec::new();
        for guard in batch {
            for edit in &guard.edits {
                // Two tests of one guard.
                if done.contains(&edit) {
                    continue;
                }
                done.push(edit);
                if !originals.contains_key(&edit.file) {
                    originals.insert(edit.file.clone(), self.read(&edit.file)?);
                }
                let before = edited.get(&edit.file).unwrap_or(&originals[&edit.file]);
                let after = guard.without(edit, before)?;
                edited.insert(edit.file.clone(), after);
            }
        }
        Ok((originals, edited))
    }

    /// Edits the files; returns what stood there.
    pub(crate) fn take_away(&self, batch: &[Guard]) -> anyhow::Result<Texts> {
        let (originals, edited) = self.without(batch)?;
        self.put_back(&edited)?;
        Ok(originals)
    }

    pub(crate) fn put_back(&self, texts: &Texts) -> anyhow::Result<()> {
        for (file, text) in texts {
            let path = self.tree.join(file);
            fs::write(&path, text)
                .with_context(|| format!("failed to write `{}`", path.display()))?;
        }
        Ok(())
    }

    /// Builds what the checks of these guards need.
    pub(crate) fn build(&self, batch: &[Guard]) -> anyhow::Result<()> {
        let mut packages: Vec<&str> = Vec::new();
        for guard in batch {
            match &guard.check {
                Check::Unit { package, .. } if !packages.contains(&package.as_str()) => {
                    packages.push(package);
                }
                _ => {}
            }
        }
        if batch.iter().any(|guard| guard.check.is_attack()) {
            self.cargo(&["xtask", "guests"])?;
            self.cargo(&["build", "--profile", "ci", "-p", "soulbox-cli"])?;
        }
        for package in packages {
            self.cargo(&[
                "nextest",
                "run",
                "--no-run",
                "--cargo-profile",
                "ci",
                "-p",
                package,
            ])?;
        }
        Ok(())
    }

    /// Runs one check against what was built. `says` is a word that a failure must print to count.
    pub(crate) fn check(&self, check: &Check, says: Option<&str>) -> anyhow::Result<Outcome> {
        let (output, failed) = match check {
            Check::Unit { package, filter } => {
                let mut command = self.in_tree("cargo");
                command.args(["nextest", "run", "--cargo-profile", "ci", "-p"]);
                command.args([package, filter]);
                (command.output(), NEXTEST_FAILED)
            }
            Check::Attack(arguments) => {
                let data = std::env::var_os("SOULBOX_DATA_DIR")
                    .map_or_else(|| self.workspace.join("target/test-data"), PathBuf::from);
                let data = self.workspace.join(data);
                ensure!(
                    data.join("pool.img").exists() || data.join("pool").exists(),
                    "`{}` has no base template, make server-under-test builds it",
                    data.display()
                );
                let pytest = self.workspace.join(".cache/venv-latest/bin/pytest");
                let mut command = self.in_tree(pytest);
                command
                    .args(["-q", "-x", "--no-header", "-p", "no:cacheprovider"])
                    .args(arguments)
                    .env("SOULBOX_BINARY", self.tree.join("target/ci/soulbox"))
                    .env("SOULBOX_DATA_DIR", data);
                (command.output(), PYTEST_FAILED)
            }
        };
        let output = output.with_context(|| format!("failed to start `{}`", check.title()))?;
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        let said = String::from_utf8_lossy(&said);
        // pytest ends in the same way when a fixture failed, and then the test has tried nothing.
        let tried = !check.is_attack() || said.contains("\nFAILED ");
        let outcome = match judge(output.status.code(), failed, check, &said, says) {
            Ok(Outcome::Noticed) if !tried => Ok(Outcome::OtherReason),
            other => other,
        };
        if !matches!(outcome, Ok(Outcome::Noticed)) {
            // Whoever looks for the reason has no other place to find it.
            eprintln!("{said}");
        }
        outcome
    }

    fn cargo(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let status: ExitStatus = self
            .in_tree("cargo")
            .args(arguments)
            .stdout(Stdio::null())
            .status()
            .context("failed to start cargo")?;
        ensure!(
            status.success(),
            "cargo {} failed without these guards",
            arguments.join(" ")
        );
        Ok(())
    }

    fn in_tree(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.tree)
            .stdin(Stdio::null())
            // Those of the run that started this one are about another tree.
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("CARGO_MANIFEST_DIR");
        command
    }
}

fn judge(
    code: Option<i32>,
    failed: i32,
    check: &Check,
    said: &str,
    says: Option<&str>,
) -> anyhow::Result<Outcome> {
    match code {
        Some(0) => Ok(Outcome::Survived),
        Some(code) if code == failed && says.is_none_or(|word| said.contains(word)) => {
            Ok(Outcome::Noticed)
        }
        Some(code) if code == failed => Ok(Outcome::OtherReason),
        // No test of that name, a mistake in the command line, a signal.
        other => bail!("`{}` did not run: {other:?}\n{said}", check.title()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_did_not_run_is_no_failure_of_it() {
        let check = Check::Attack(Vec::new());
        let judged = |code, says| judge(code, 1, &check, "assert 'envd' in x", says);
        assert_eq!(judged(Some(0), None).unwrap(), Outcome::Survived);
        assert_eq!(judged(Some(1), None).unwrap(), Outcome::Noticed);
        assert_eq!(judged(Some(1), Some("envd")).unwrap(), Outcome::Noticed);
        assert_eq!(
            judged(Some(1), Some("kcore")).unwrap(),
            Outcome::OtherReason
        );
        assert!(judged(Some(5), None).is_err() && judged(None, None).is_err());
    }
}

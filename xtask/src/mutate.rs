//! `cargo xtask mutate`: takes one guard away at a time and expects its test to fail. A test that passes without its guard guards nothing.
//!
//! Guards are a table, tests/mutations/guards.toml: a piece of text of a source file, what stands in its place when the guard is gone, and the
//! test. The edits happen in a scratch copy of the last commit (a git worktree in target/mutants with a target folder of its own): never in the
//! tree of the person who works, and no program has a switch for it. Each test is run once with all guards in place first, since one that
//! fails anyway shows nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

const TABLE: &str = "tests/mutations/guards.toml";
const SCRATCH: &str = "target/mutants";
/// What pytest ends with when tests ran and some failed; everything above is a mistake of ours.
const PYTEST_FAILED: i32 = 1;
/// The same of cargo-nextest.
const NEXTEST_FAILED: i32 = 100;

/// One entry of the table.
#[derive(Debug, PartialEq, Eq)]
struct Guard {
    name: String,
    file: PathBuf,
    /// Stands in `file` once.
    from: String,
    to: String,
    check: Check,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Check {
    /// A package and a filter of its tests.
    Unit { package: String, filter: String },
    /// Arguments of pytest; they need the server built.
    Attack(Vec<String>),
}

/// What became of a guard.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Noticed,
    /// The test passes without the guard.
    Survived,
    /// The sources without it are no program.
    Broken,
}

/// Performs all guards whose name contains one of `wanted`, all of them when there is none.
pub(crate) fn run(workspace: &Path, wanted: &[&str]) -> anyhow::Result<()> {
    let text = fs::read_to_string(workspace.join(TABLE))
        .with_context(|| format!("failed to read `{TABLE}`"))?;
    let mut guards = parse(&text)?;
    guards.retain(|guard| wanted.is_empty() || wanted.iter().any(|word| guard.name.contains(word)));
    ensure!(
        !guards.is_empty(),
        "no guard of {TABLE} has such a name: {wanted:?}"
    );
    let scratch = Scratch::new(workspace)?;
    // All of them before the first build: a text that is not there is cheap to find.
    for guard in &guards {
        guard.without(&scratch.read(&guard.file)?)?;
    }
    let mut whole = BTreeMap::new();
    for guard in &guards {
        if !whole.contains_key(&guard.check) {
            eprintln!("whole: {}", guard.check.title());
            let outcome = scratch.check(&guard.check)?;
            ensure!(
                outcome == Outcome::Survived,
                "{} fails with all guards in place",
                guard.check.title()
            );
            whole.insert(guard.check.clone(), ());
        }
    }
    println!("| guard | test | without it |\n|---|---|---|");
    let mut bad = 0;
    for guard in &guards {
        let original = scratch.read(&guard.file)?;
        scratch.write(&guard.file, &guard.without(&original)?)?;
        let outcome = scratch.check(&guard.check);
        scratch.write(&guard.file, &original)?;
        let said = match outcome? {
            Outcome::Noticed => "fails",
            Outcome::Survived => "PASSES",
            Outcome::Broken => "DOES NOT BUILD",
        };
        bad += usize::from(said != "fails");
        println!("| {} | `{}` | {said} |", guard.name, guard.check.title());
    }
    ensure!(bad == 0, "{bad} guard(s) can go without a test failing");
    Ok(())
}

fn parse(text: &str) -> anyhow::Result<Vec<Guard>> {
    let table: toml::Table = text.parse().with_context(|| TABLE.to_owned())?;
    let entries = table
        .get("guard")
        .and_then(toml::Value::as_array)
        .with_context(|| format!("{TABLE} has no [[guard]]"))?;
    entries.iter().map(guard).collect()
}

fn guard(entry: &toml::Value) -> anyhow::Result<Guard> {
    let text = |name: &str| {
        entry
            .get(name)
            .and_then(toml::Value::as_str)
            .map(str::to_owned)
    };
    let name = text("name").context("a guard has no `name`")?;
    let needed =
        |field: &str| text(field).with_context(|| format!("guard `{name}` has no `{field}`"));
    let check = match (text("package"), entry.get("attack")) {
        (Some(package), None) => Check::Unit {
            package,
            filter: needed("filter")?,
        },
        (None, Some(arguments)) => Check::Attack(
            arguments
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(toml::Value::as_str)
                .map(str::to_owned)
                .collect(),
        ),
        _ => bail!("guard `{name}` needs either `package` and `filter`, or `attack`"),
    };
    Ok(Guard {
        file: needed("file")?.into(),
        from: needed("from")?,
        to: needed("to")?,
        name,
        check,
    })
}

impl Guard {
    fn without(&self, original: &str) -> anyhow::Result<String> {
        let found = original.matches(&self.from).count();
        ensure!(
            found == 1 && self.from != self.to,
            "guard `{}`: its text stands {found} times in {}",
            self.name,
            self.file.display()
        );
        Ok(original.replacen(&self.from, &self.to, 1))
    }
}

impl Check {
    fn title(&self) -> String {
        match self {
            Self::Unit { package, filter } => format!("{package} {filter}"),
            Self::Attack(arguments) => arguments.join(" "),
        }
    }
}

/// The copy in which guards are taken away. It stays for the next run, which then compiles only what changed.
struct Scratch {
    workspace: PathBuf,
    tree: PathBuf,
}

impl Scratch {
    fn new(workspace: &Path) -> anyhow::Result<Self> {
        let tree = workspace.join(SCRATCH);
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
            git(workspace, &["worktree", "prune"])?;
            git(
                workspace,
                &[
                    "worktree", "add", "--quiet", "--force", "--detach", SCRATCH, "HEAD",
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

    fn write(&self, file: &Path, text: &str) -> anyhow::Result<()> {
        let path = self.tree.join(file);
        fs::write(&path, text).with_context(|| format!("failed to write `{}`", path.display()))
    }

    /// Builds what the check needs, and runs it.
    fn check(&self, check: &Check) -> anyhow::Result<Outcome> {
        match check {
            Check::Unit { package, filter } => {
                let nextest = |more: &str| {
                    self.cargo(&[
                        "nextest",
                        "run",
                        "--cargo-profile",
                        "ci",
                        "-p",
                        package,
                        more,
                    ])
                };
                if nextest("--no-run")? != Some(0) {
                    return Ok(Outcome::Broken);
                }
                judge(nextest(filter)?, NEXTEST_FAILED, check)
            }
            Check::Attack(arguments) => {
                let built = self.cargo(&["xtask", "guests"])? == Some(0)
                    && self.cargo(&["build", "--profile", "ci", "-p", "soulbox-cli"])? == Some(0);
                if !built {
                    return Ok(Outcome::Broken);
                }
                let data = std::env::var_os("SOULBOX_DATA_DIR")
                    .map_or_else(|| self.workspace.join("target/test-data"), PathBuf::from);
                let data = self.workspace.join(data);
                ensure!(
                    data.join("pool.img").exists() || data.join("pool").exists(),
                    "`{}` has no base template, make server-under-test builds it",
                    data.display()
                );
                let status = Command::new(self.workspace.join(".cache/venv-latest/bin/pytest"))
                    .current_dir(&self.tree)
                    .args(["-q", "-x", "--no-header"])
                    .args(arguments)
                    .env("SOULBOX_BINARY", self.tree.join("target/ci/soulbox"))
                    .env("SOULBOX_DATA_DIR", data)
                    .stdout(Stdio::null())
                    .status()
                    .context("failed to start pytest")?;
                judge(status.code(), PYTEST_FAILED, check)
            }
        }
    }

    fn cargo(&self, arguments: &[&str]) -> anyhow::Result<Option<i32>> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .current_dir(&self.tree)
            .args(arguments)
            // Those of the run that started this one are about another tree.
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("CARGO_MANIFEST_DIR")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("failed to start cargo")?;
        Ok(status.code())
    }
}

fn judge(code: Option<i32>, failed: i32, check: &Check) -> anyhow::Result<Outcome> {
    match code {
        Some(0) => Ok(Outcome::Survived),
        Some(code) if code == failed => Ok(Outcome::Noticed),
        // No test of that name, a mistake in the command line, a signal.
        other => bail!("`{}` did not run: {other:?}", check.title()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "[[guard]]\nname = \"n\"\nfile = \"f\"\nfrom = \"a\"\nto = \"\"\n";

    #[test]
    fn a_guard_has_one_test() {
        let unit = parse(&format!("{ONE}package = \"p\"\nfilter = \"t\"\n")).unwrap();
        assert_eq!(unit[0].check.title(), "p t");
        let attack = parse(&format!("{ONE}attack = [\"x.py\", \"-k\", \"y\"]\n")).unwrap();
        assert_eq!(attack[0].check.title(), "x.py -k y");
        assert!(parse(ONE).is_err());
        assert!(parse(&format!("{ONE}package = \"p\"\n")).is_err());
        assert!(parse("").is_err());
    }

    #[test]
    fn only_a_text_that_stands_there_once_can_go() {
        let guard = &parse(&format!("{ONE}attack = [\"x\"]\n")).unwrap()[0];
        assert_eq!(guard.without("bac").unwrap(), "bc");
        assert!(guard.without("b").is_err() && guard.without("aa").is_err());
    }

    #[test]
    fn a_test_that_did_not_run_is_no_failure_of_it() {
        let check = Check::Attack(Vec::new());
        assert_eq!(judge(Some(0), 1, &check).unwrap(), Outcome::Survived);
        assert_eq!(judge(Some(1), 1, &check).unwrap(), Outcome::Noticed);
        assert!(judge(Some(5), 1, &check).is_err() && judge(None, 1, &check).is_err());
    }

    /// The table and the sources must not drift apart between two soaks.
    #[test]
    fn every_guard_of_the_table_stands_in_its_file() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for guard in parse(&fs::read_to_string(workspace.join(TABLE)).unwrap()).unwrap() {
            let text = fs::read_to_string(workspace.join(&guard.file)).unwrap();
            guard.without(&text).unwrap();
        }
    }
}

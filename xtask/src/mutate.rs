//! `cargo xtask mutate`: takes guards away and expects the test of each to fail. A test that passes without its guard guards nothing.
//!
//! Guards are a table ([`table`]): pieces of text of source files, what stands in their place when the guard is gone, and the test. A build
//! takes minutes and a test seconds, so all guards that do not hide each other go at once, a *batch*, and then each one's test runs against
//! that one build. What keeps a failure from being another guard's: each has a test of its own in its batch, `says` is a word that only its
//! own failure prints, and one test that needs none of them must still pass.
//!
//! The edits happen in a scratch copy of the last commit ([`scratch`]): never in the tree of the person who works, and no program has a switch
//! for it.

mod scratch;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use scratch::Scratch;
use table::{Check, Guard, TABLE, parse};

/// Needs a server and a sandbox that work, and none of the guards.
const CONTROL: [&str; 3] = [
    "tests/security/test_isolation.py",
    "-k",
    "git_commits or multiprocessing",
];

/// What became of a guard.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Noticed,
    /// The test passes without the guard.
    Survived,
    /// The test fails, but does not print the word that its guard's absence makes it print.
    OtherReason,
}

/// How to go about it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options<'a> {
    /// Only guards with one of these words in their name or test; all when there is none.
    wanted: Vec<&'a str>,
    /// Without the run that has all guards in place: for whoever has just seen the suite pass.
    trust_whole: bool,
    scratch: Option<PathBuf>,
}

impl<'a> Options<'a> {
    pub(crate) fn parse(arguments: &[&'a str]) -> anyhow::Result<Self> {
        let mut options = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match *argument {
                "--trust-whole" => options.trust_whole = true,
                "--scratch" => {
                    let folder = rest.next().context("--scratch needs a folder")?;
                    options.scratch = Some(folder.into());
                }
                word => {
                    ensure!(!word.starts_with('-'), "unknown option `{word}`");
                    options.wanted.push(word);
                }
            }
        }
        Ok(options)
    }

    fn wants(&self, guard: &Guard) -> bool {
        let among = |word: &&str| guard.name.contains(*word) || guard.check.title().contains(*word);
        self.wanted.is_empty() || self.wanted.iter().any(among)
    }
}

pub(crate) fn run(workspace: &Path, options: &Options<'_>) -> anyhow::Result<()> {
    let text = fs::read_to_string(workspace.join(TABLE))
        .with_context(|| format!("failed to read `{TABLE}`"))?;
    let mut guards = parse(&text)?;
    guards.retain(|guard| options.wants(guard));
    ensure!(
        !guards.is_empty(),
        "no guard of {TABLE} has such a name or test: {:?}",
        options.wanted
    );
    let scratch = Scratch::new(workspace, options.scratch.as_deref())?;
    let batches = batches(guards);
    // All of them before the first build: a text that is not there is cheap to find.
    for batch in &batches {
        scratch.without(batch)?;
    }
    if !options.trust_whole {
        whole(&scratch, &batches)?;
    }
    println!("| guard | test | without it |\n|---|---|---|");
    let mut bad = 0;
    for batch in &batches {
        let originals = scratch.take_away(batch)?;
        let outcomes = judge_batch(&scratch, batch);
        scratch.put_back(&originals)?;
        for (guard, outcome) in batch.iter().zip(outcomes?) {
            let said = match outcome {
                Outcome::Noticed => "fails",
                Outcome::Survived => "PASSES",
                Outcome::OtherReason => "FAILS FOR ANOTHER REASON",
            };
            bad += usize::from(outcome != Outcome::Noticed);
            println!("| {} | `{}` | {said} |", guard.name, guard.check.title());
        }
    }
    ensure!(bad == 0, "{bad} guard(s) can go without a test failing");
    Ok(())
}

/// Each test with all guards in place: one that fails anyway shows nothing.
fn whole(scratch: &Scratch, batches: &[Vec<Guard>]) -> anyhow::Result<()> {
    for batch in batches {
        scratch.build(batch)?;
        for guard in batch {
            eprintln!("whole: {}", guard.check.title());
            let outcome = scratch.check(&guard.check, None)?;
            ensure!(
                outcome == Outcome::Survived,
                "{} fails with all guards in place",
                guard.check.title()
            );
        }
    }
    Ok(())
}

fn judge_batch(scratch: &Scratch, batch: &[Guard]) -> anyhow::Result<Vec<Outcome>> {
    let names = batch.iter().map(|guard| guard.name.as_str());
    let names = names.collect::<Vec<_>>().join(", ");
    eprintln!("away: {names}");
    scratch.build(batch)?;
    if batch
        .iter()
        .any(|guard| matches!(guard.check, Check::Attack(_)))
    {
        let control = Check::Attack(CONTROL.map(str::to_owned).to_vec());
        ensure!(
            scratch.check(&control, None)? == Outcome::Survived,
            "without these nothing works at all, so failing shows nothing: {names}"
        );
    }
    batch
        .iter()
        .map(|guard| {
            let outcome = scratch.check(&guard.check, guard.says.as_deref())?;
            eprintln!("away: {}: {outcome:?}", guard.name);
            Ok(outcome)
        })
        .collect()
}

/// Guards of one kind and one named batch, no two with the same test.
fn batches(guards: Vec<Guard>) -> Vec<Vec<Guard>> {
    let mut made: Vec<Vec<Guard>> = Vec::new();
    for guard in guards {
        let fits = |batch: &&mut Vec<Guard>| {
            batch.iter().all(|other| {
                other.batch == guard.batch
                    && other.check.is_attack() == guard.check.is_attack()
                    && other.check != guard.check
            })
        };
        match made.iter_mut().find(fits) {
            Some(batch) => batch.push(guard),
            None => made.push(vec![guard]),
        }
    }
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_with_one_test_go_one_after_the_other() {
        let entry = |name: &str, check: &str| {
            format!(
                "[[guard]]\nname = \"{name}\"\nfile = \"f\"\nfrom = \"a\"\nto = \"\"\n{check}\n"
            )
        };
        let attack = |test: &str| format!("attack = [\"{test}\"]");
        let unit = "package = \"p\"\nfilter = \"t\"";
        let text = [
            entry("one", &attack("x")),
            entry("two", &attack("y")),
            entry("same test", &attack("x")),
            entry("alone", &format!("batch = \"b\"\n{}", attack("z"))),
            entry("unit", unit),
            entry("same unit", unit),
        ];
        let batches = batches(parse(&text.concat()).unwrap());
        let names = |batch: &Vec<Guard>| {
            let names = batch.iter().map(|guard| guard.name.clone());
            names.collect::<Vec<_>>().join(" ")
        };
        let named = batches.iter().map(names).collect::<Vec<_>>();
        assert_eq!(
            named,
            ["one two", "same test", "alone", "unit", "same unit"]
        );
    }

    #[test]
    fn options_are_told_from_words() {
        let options = Options::parse(&["raw", "--trust-whole", "--scratch", "x", "y"]).unwrap();
        assert_eq!(options.wanted, ["raw", "y"]);
        assert!(options.trust_whole);
        assert_eq!(options.scratch.as_deref(), Some(Path::new("x")));
        assert!(Options::parse(&["--scratch"]).is_err() && Options::parse(&["-x"]).is_err());
    }
}

//! docs/: every dependency has its reason, every promise marked as kept names a test that exists.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use serde_json::Value;

use super::Source;

const DEPENDENCIES: &str = "docs/DEPENDENCIES.md";
const COVERAGE: &str = "docs/coverage.md";
const COMPAT: &str = "docs/compat.md";
/// What is promised to people who do not trust each other; every row of a table names its test.
const PROMISES: [&str; 2] = ["docs/security.md", "docs/limits.md"];
/// The lists of acceptance checks; a test's name begins with one of these and the number of its check.
const LISTS: [&str; 5] = ["envd", "cp", "cli", "ci", "sdk"];

pub(super) fn check(metadata: &Value, sources: &[Source]) -> anyhow::Result<Vec<String>> {
    let text = |path: &str| {
        let found = sources
            .iter()
            .find(|source| source.path.as_os_str() == path);
        found
            .map(|source| source.text.as_str())
            .with_context(|| format!("`{path}` is missing"))
    };
    let mut findings = dependencies(metadata, text(DEPENDENCIES)?)?;
    findings.extend(coverage(text(COVERAGE)?, sources));
    findings.extend(compat(text(COMPAT)?, sources));
    for document in PROMISES {
        findings.extend(promises(document, text(document)?, sources));
    }
    Ok(findings)
}

/// Rows of all tables of a Markdown text as trimmed cells, without heads and rulers, with line numbers.
fn rows(text: &str) -> Vec<(usize, Vec<&str>)> {
    let lines: Vec<&str> = text.lines().collect();
    let ruler = |line: &str| line.starts_with("|-") || line.starts_with("| -");
    let mut rows = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let head = lines.get(index + 1).is_some_and(|next| ruler(next));
        if line.starts_with('|') && !ruler(line) && !head {
            let cells = line
                .trim()
                .trim_matches('|')
                .split('|')
                .map(str::trim)
                .collect();
            rows.push((index + 1, cells));
        }
    }
    rows
}

/// What stands between backticks, each.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

fn dependencies(metadata: &Value, document: &str) -> anyhow::Result<Vec<String>> {
    let mut used: BTreeMap<&str, &str> = BTreeMap::new();
    for package in metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?
    {
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if dependency["path"].is_null() {
                let by = package["name"].as_str().unwrap_or_default();
                used.insert(dependency["name"].as_str().unwrap_or_default(), by);
            }
        }
    }
    let rows = rows(document);
    let listed: BTreeSet<&str> = rows
        .iter()
        .flat_map(|(_, cells)| quoted(cells[0]))
        .collect();
    let mut findings = Vec::new();
    for (name, by) in &used {
        if !listed.contains(name) {
            findings.push(format!(
                "{DEPENDENCIES}: `{name}`, used by {by}, has no line"
            ));
        }
    }
    for name in listed.iter().filter(|name| !used.contains_key(**name)) {
        findings.push(format!("{DEPENDENCIES}: `{name}` is used by no crate"));
    }
    Ok(findings)
}

/// A test is named `path/of/file::name`; the file must exist and hold that name.
fn test_exists(test: &str, sources: &[Source]) -> bool {
    let Some((path, name)) = test.split_once("::") else {
        return false;
    };
    let whole = |text: &str| {
        text.match_indices(name).any(|(at, _)| {
            let around = [
                text[..at].chars().next_back(),
                text[at + name.len()..].chars().next(),
            ];
            !around
                .into_iter()
                .flatten()
                .any(|c| c.is_alphanumeric() || c == '_')
        })
    };
    !name.is_empty()
        && sources
            .iter()
            .any(|source| source.path.as_os_str() == path && whole(&source.text))
}

fn coverage(document: &str, sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    let rows = rows(document);
    if rows.len() < 100 {
        findings.push(format!(
            "{COVERAGE}: only {} rows, the promised features are more",
            rows.len()
        ));
    }
    for (line, cells) in rows {
        let &[_, feature, status, tests] = &cells[..] else {
            findings.push(format!(
                "{COVERAGE}:{line}: a row has four cells: group, feature, status, test"
            ));
            continue;
        };
        let partly = status
            .strip_prefix("partly:")
            .is_some_and(|missing| !missing.trim().is_empty());
        if !(partly || status == "works" || status == "not yet") {
            findings.push(format!(
                "{COVERAGE}:{line}: `{status}` is no status: works, partly: WHAT IS MISSING, not yet"
            ));
        }
        if status == "works" && quoted(tests).next().is_none() {
            findings.push(format!(
                "{COVERAGE}:{line}: {feature} works, but no test is named"
            ));
        }
        for test in quoted(tests).filter(|test| !test_exists(test, sources)) {
            findings.push(format!("{COVERAGE}:{line}: test `{test}` does not exist"));
        }
    }
    findings
}

fn compat(document: &str, sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    let mut listed = BTreeSet::new();
    for (line, cells) in rows(document) {
        let &[check, test, state] = &cells[..] else {
            findings.push(format!(
                "{COMPAT}:{line}: a row has three cells: check, test, state"
            ));
            continue;
        };
        if state != "passes" && !state.starts_with("partly:") {
            findings.push(format!(
                "{COMPAT}:{line}: `{state}` is no state: passes, partly: WHAT IS MISSING"
            ));
        }
        for test in quoted(test) {
            if !test_exists(test, sources) {
                findings.push(format!("{COMPAT}:{line}: test `{test}` does not exist"));
            }
            if number_of(test.rsplit("::").next().unwrap_or_default())
                .is_none_or(|number| number != check)
            {
                findings.push(format!(
                    "{COMPAT}:{line}: test `{test}` is not named after check {check}"
                ));
            }
        }
        listed.insert(check.to_owned());
    }
    for source in sources {
        for word in source
            .text
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        {
            if let Some(number) = number_of(word)
                && is_test_file(source)
                && !listed.contains(&number)
            {
                findings.push(format!(
                    "{COMPAT}: check {number} has test `{word}` but no row"
                ));
            }
        }
    }
    findings.dedup();
    findings
}

fn promises(document: &str, text: &str, sources: &[Source]) -> Vec<String> {
    let rows = rows(text);
    let mut findings = Vec::new();
    if rows.len() < 10 {
        findings.push(format!("{document}: only {} rows", rows.len()));
    }
    for (line, cells) in rows {
        let tests = cells
            .iter()
            .flat_map(|cell| quoted(cell))
            .filter(|name| name.contains('/') && name.contains("::"))
            .collect::<Vec<_>>();
        if tests.is_empty() && !cells.iter().any(|cell| cell.starts_with("not tested")) {
            findings.push(format!(
                "{document}:{line}: no test is named, and no cell says `not tested: WHY`"
            ));
        }
        for test in tests.into_iter().filter(|test| !test_exists(test, sources)) {
            findings.push(format!("{document}:{line}: test `{test}` does not exist"));
        }
    }
    findings
}

fn is_test_file(source: &Source) -> bool {
    let path = source.path.to_string_lossy();
    !path.starts_with("xtask/")
        && ["rs", "py", "mjs"]
            .iter()
            .any(|ending| path.ends_with(&format!(".{ending}")))
}

/// `envd_035` of `envd_035_stat_of_a_link` and of `test_envd_035_stat_of_a_link`.
fn number_of(name: &str) -> Option<String> {
    let name = name.strip_prefix("test_").unwrap_or(name);
    let (list, rest) = name.split_once('_')?;
    let (number, what) = rest.split_once('_')?;
    let digits =
        (2..=3).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit());
    (LISTS.contains(&list) && digits && !what.is_empty()).then(|| format!("{list}_{number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.into(),
            text: text.to_owned(),
        }
    }

    #[test]
    fn heads_and_rulers_are_no_rows() {
        assert_eq!(
            rows("text\n| a | b |\n|---|---|\n| 1 | `x` |\n"),
            [(4, vec!["1", "`x`"])]
        );
    }

    #[test]
    fn a_dependency_needs_a_line_and_a_line_a_dependency() {
        let metadata = serde_json::json!({ "packages": [{ "name": "soulbox-x", "dependencies": [
            { "name": "serde", "path": null }, { "name": "soulbox-types", "path": "/x" } ] }] });
        let findings = dependencies(
            &metadata,
            "| crate | why |\n|---|---|\n| `libc` | calls |\n",
        )
        .unwrap();
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(
            dependencies(
                &metadata,
                "| crate | why |\n|---|---|\n| `serde` | JSON |\n"
            )
            .unwrap()
            .is_empty()
        );
    }

    #[test]
    fn a_test_exists_only_by_its_whole_name_in_its_file() {
        let sources = [source("tests/a.py", "def test_kill_twice(): ...")];
        assert!(test_exists("tests/a.py::test_kill_twice", &sources));
        for missing in [
            "tests/a.py::test_kill",
            "tests/b.py::test_kill_twice",
            "test_kill_twice",
            "tests/a.py::",
        ] {
            assert!(!test_exists(missing, &sources), "{missing}");
        }
    }

    #[test]
    fn a_kept_promise_names_its_test() {
        let sources = [source("tests/a.py", "def test_kill(): ...")];
        let found = |row: &str| {
            let head = "| g | f | s | t |\n|---|---|---|---|\n";
            coverage(
                &format!("{head}{}{row}\n", "| 1 | x | not yet | |\n".repeat(100)),
                &sources,
            )
            .len()
        };
        assert_eq!(found("| 1 | kill | works | `tests/a.py::test_kill` |"), 0);
        assert_eq!(found("| 1 | kill | partly: a paused one | |"), 0);
        assert_eq!(found("| 1 | kill | works | |"), 1);
        assert_eq!(found("| 1 | kill | works | `tests/a.py::test_gone` |"), 1);
        assert_eq!(found("| 1 | kill | mostly | |"), 1);
        assert_eq!(found("| 1 | kill | partly: | |"), 1);
    }

    #[test]
    fn a_promise_names_a_test_or_says_that_there_is_none() {
        let sources = [source("tests/a.py", "def test_kill(): ...")];
        let found = |row: &str| {
            let good = "| x | `tests/a.py::test_kill` |\n".repeat(10);
            let text = format!("| g | t |\n|---|---|\n{good}{row}\n");
            promises("docs/limits.md", &text, &sources).len()
        };
        assert_eq!(found("| y | `a::b`, `tests/a.py::test_kill` |"), 0);
        assert_eq!(found("| y | not tested: needs two machines |"), 0);
        assert_eq!(found("| y | `tests/a.py::test_gone` |"), 1);
        assert_eq!(found("| y | |"), 1);
    }

    #[test]
    fn a_numbered_test_and_its_row_need_each_other() {
        let sources = [source("tests/a.py", "def test_cp_034_get(): ...")];
        let head = "| check | test | state |\n|---|---|---|\n";
        assert_eq!(compat(head, &sources).len(), 1);
        let good = format!("{head}| cp_034 | `tests/a.py::test_cp_034_get` | passes |\n");
        assert!(compat(&good, &sources).is_empty());
        assert_eq!(
            compat(&good.replace("034_get", "034_gone"), &sources).len(),
            1
        );
        assert_eq!(
            compat(&good.replace("| cp_034", "| cp_035"), &sources).len(),
            2
        );
    }
}

//! Rules for the text of files: what every crate and module begins with, and what must stand nowhere.

use super::Source;

pub(super) fn check(sources: &[Source]) -> Vec<String> {
    sources.iter().flat_map(file).collect()
}

fn file(source: &Source) -> Vec<String> {
    let path = source.path.to_string_lossy();
    let mut findings = Vec::new();
    let mut found = |what: String| findings.push(format!("{path}: {what}"));
    let rust = path.ends_with(".rs");
    let in_sources =
        path.starts_with("crates/") && path.contains("/src/") && !path.ends_with("/tests.rs");
    if rust && in_sources && !source.text.starts_with("//!") {
        found("a module begins with `//!` and what it owns".to_owned());
    }
    let root = ["/src/lib.rs", "/src/main.rs"]
        .iter()
        .any(|end| path.ends_with(end))
        || path.contains("/src/bin/");
    if rust
        && root
        && !path.starts_with("crates/soulbox-sys/")
        && !source.text.contains("#![forbid(unsafe_code)]")
    {
        found("a crate other than soulbox-sys forbids unsafe code".to_owned());
    }
    // The ordinary clients know where packages come from; a file of ours that says so breaks behind a mirror.
    let tools = [
        "templates/",
        "scripts/",
        ".ci/",
        "Makefile",
        "examples/",
        "tests/",
        ".cargo/",
    ];
    let no_hosts = tools.iter().any(|folder| path.starts_with(folder));
    for (index, line) in source.text.lines().enumerate() {
        let mut bad = |what: &str| found(format!("line {}: {what}", index + 1));
        if rust && line.trim_start().starts_with("#[ignore") {
            bad("a test that is not run is no test");
        }
        // Split, so that this file passes its own check.
        if line.contains(concat!("/wo", "rk/")) {
            bad("a path of one machine");
        }
        if no_hosts && names_a_host(line) {
            bad("names a host of the internet");
        }
        if line.ends_with([' ', '\t']) && !path.ends_with(".md") {
            bad("white space at the end");
        }
    }
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        found("does not end with a line end".to_owned());
    }
    findings
}

/// A URL with a host name that is not this machine, a variable, or a name reserved for examples and tests.
fn names_a_host(line: &str) -> bool {
    line.split("://").skip(1).any(|rest| {
        let host: String = rest
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
            .collect();
        let reserved = [
            "localhost",
            ".localhost",
            ".test",
            ".example",
            ".invalid",
            "e2b.local",
        ];
        let numeric = host
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.');
        host.contains('.') && !numeric && !reserved.iter().any(|end| host.ends_with(end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> usize {
        file(&Source {
            path: path.into(),
            text: text.to_owned(),
        })
        .len()
    }

    #[test]
    fn crates_and_modules_begin_right() {
        assert_eq!(
            findings(
                "crates/soulbox-x/src/lib.rs",
                "//! X.\n#![forbid(unsafe_code)]\n"
            ),
            0
        );
        assert_eq!(findings("crates/soulbox-x/src/lib.rs", "//! X.\n"), 1);
        assert_eq!(findings("crates/soulbox-x/src/bin/y.rs", "//! Y.\n"), 1);
        assert_eq!(
            findings("crates/soulbox-x/src/part.rs", "use std::fs;\n"),
            1
        );
        assert_eq!(findings("crates/soulbox-sys/src/lib.rs", "//! Calls.\n"), 0);
    }

    #[test]
    fn tests_that_never_run_are_found() {
        assert_eq!(findings("tests/a.rs", concat!("    #[ign", "ore]\n")), 1);
    }

    #[test]
    fn tools_name_no_host_but_this_one() {
        assert_eq!(
            findings("scripts/a.sh", "curl http://mirror.somewhere.net/x\n"),
            1
        );
        assert_eq!(
            findings(
                "scripts/a.sh",
                "curl http://127.0.0.1:$PORT http://a.box.test/ $scheme://$host\n"
            ),
            0
        );
        assert_eq!(findings("README.md", "see https://docs.kernel.org/\n"), 0);
    }

    #[test]
    fn machine_paths_and_loose_ends_are_found() {
        assert_eq!(findings("docs/a.md", concat!("see /wo", "rk/main\n")), 1);
        assert_eq!(findings("scripts/a.sh", "true \n"), 1);
        assert_eq!(findings("scripts/a.sh", "true"), 1);
    }
}

//! `.dockerignore`: patterns from the folder's root, the last that matches decides, `!` takes back.

use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};

use super::ContextError;

#[derive(Debug)]
pub(crate) struct Ignored {
    rules: Vec<(GlobMatcher, Fate)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Left,
    Taken,
}

impl Ignored {
    pub(crate) fn read(text: &str) -> Result<Self, ContextError> {
        let mut rules = Vec::new();
        for line in text.lines() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (pattern, fate) = match line.strip_prefix('!') {
                Some(pattern) => (pattern.trim(), Fate::Taken),
                None => (line, Fate::Left),
            };
            let pattern = pattern.trim_start_matches('/');
            let pattern = pattern
                .strip_prefix("./")
                .unwrap_or(pattern)
                .trim_end_matches('/');
            let glob = GlobBuilder::new(pattern)
                .literal_separator(true)
                .build()
                .map_err(|source| ContextError::Pattern {
                    pattern: line.to_owned(),
                    source,
                })?;
            rules.push((glob.compile_matcher(), fate));
        }
        Ok(Self { rules })
    }

    /// A pattern that matches a folder matches all below it.
    pub(crate) fn is_ignored(&self, path: &Path) -> bool {
        let matches = |glob: &GlobMatcher| {
            path.ancestors()
                .any(|it| !it.as_os_str().is_empty() && glob.is_match(it))
        };
        let last = self.rules.iter().rev().find(|(glob, _)| matches(glob));
        last.is_some_and(|(_, fate)| *fate == Fate::Left)
    }

    pub(crate) fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|(_, fate)| *fate == Fate::Taken)
    }
}

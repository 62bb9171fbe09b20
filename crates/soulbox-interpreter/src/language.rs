//! The languages that have a kernel here.

use std::fmt;

/// A language as clients name it in their requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Language {
    Python,
    JavaScript,
    /// A JavaScript kernel that takes the types out first.
    TypeScript,
    Bash,
}

/// Nothing runs code of this name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no kernel for `{0}`")]
pub(crate) struct UnknownLanguage(pub(crate) String);

impl Language {
    /// Absent and empty are Python; case and blanks around do not count.
    pub(crate) fn named(name: Option<&str>) -> Result<Self, UnknownLanguage> {
        let name = name.unwrap_or_default().trim().to_lowercase();
        match name.as_str() {
            "" | "python" => Ok(Self::Python),
            "javascript" | "js" => Ok(Self::JavaScript),
            "typescript" | "ts" => Ok(Self::TypeScript),
            "bash" => Ok(Self::Bash),
            _ => Err(UnknownLanguage(name)),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::JavaScript => "javascript",
            Self::TypeScript => "typescript",
            Self::Bash => "bash",
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_forgiving_and_unknown_ones_are_named() {
        assert_eq!(Language::named(None), Ok(Language::Python));
        assert_eq!(Language::named(Some("")), Ok(Language::Python));
        assert_eq!(Language::named(Some("JS")), Ok(Language::JavaScript));
        assert_eq!(Language::named(Some(" Bash\n")), Ok(Language::Bash));
        assert_eq!(
            Language::named(Some("COBOL")),
            Err(UnknownLanguage("cobol".to_owned()))
        );
    }
}

//! The languages that have a kernel here.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::kernelspec;

/// A language as clients name it in their requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Language {
    Python,
    JavaScript,
    /// A JavaScript kernel that takes the types out first.
    TypeScript,
    Bash,
    /// An installed kernel of Jupyter, and the name that the client has for it.
    Installed {
        name: Arc<str>,
        spec: Arc<Path>,
    },
}

/// Nothing runs code of this name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no kernel for `{0}`")]
pub(crate) struct UnknownLanguage(pub(crate) String);

impl Language {
    /// Absent and empty are Python; case and blanks around do not count. Looks on the disk for what has no kernel of ours.
    pub(crate) fn named(name: Option<&str>) -> Result<Self, UnknownLanguage> {
        Self::named_among(name, kernelspec::find)
    }

    fn named_among(
        name: Option<&str>,
        installed: impl FnOnce(&str) -> Option<PathBuf>,
    ) -> Result<Self, UnknownLanguage> {
        let name = name.unwrap_or_default().trim().to_lowercase();
        match name.as_str() {
            "" | "python" => Ok(Self::Python),
            "javascript" | "js" => Ok(Self::JavaScript),
            "typescript" | "ts" => Ok(Self::TypeScript),
            "bash" => Ok(Self::Bash),
            _ => match installed(&name) {
                Some(spec) => Ok(Self::Installed {
                    name: name.into(),
                    spec: spec.into(),
                }),
                None => Err(UnknownLanguage(name)),
            },
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Python => "python",
            Self::JavaScript => "javascript",
            Self::TypeScript => "typescript",
            Self::Bash => "bash",
            Self::Installed { name, .. } => name,
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
            Language::named_among(Some("COBOL"), |_| None),
            Err(UnknownLanguage("cobol".to_owned()))
        );
    }

    #[test]
    fn an_installed_kernel_has_the_name_that_it_was_asked_for_by() {
        let spec = Path::new("/kernels/ir/kernel.json");
        let language = Language::named_among(Some(" R"), |name| {
            assert_eq!(name, "r");
            Some(spec.to_owned())
        });
        assert_eq!(language.as_ref().map(Language::name), Ok("r"));
        Language::named_among(Some("bash"), |_| panic!("ours goes first")).unwrap();
    }
}

//! What a create asks for, in control's own words, and the rules that need nothing but the request.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use soulbox_types::{Inbound, Network};

use crate::policy::Policy;
use crate::store::IdempotencyClaim;

/// A sandbox as it is asked for.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    pub template: TemplateReference,
    /// What is none is as the template has it; the timeout is checked against the team's limit by the create.
    pub policy: Policy,
    /// How long it lives where neither says anything, and where it may connect to.
    pub usual_timeout: Duration,
    pub usual_network: Network,
    /// Whether envd demands a token.
    pub secure: bool,
    /// Whether its ports may be reached without a token; otherwise it must be secure.
    pub public_traffic: bool,
    pub inbound: Inbound,
    pub metadata: BTreeMap<String, String>,
    pub env: BTreeMap<String, String>,
    pub overrides: LimitOverrides,
    pub idempotency: Option<IdempotencyClaim>,
}

/// Limits that differ from the template's: SoulBox's own extension of the create.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitOverrides {
    pub cpus: Option<u32>,
    pub memory_mib: Option<u64>,
    pub disk_mib: Option<u64>,
}

/// `[namespace/]name[:tag]`, in lower case; the name is an alias or a template ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateReference {
    pub namespace: Option<String>,
    pub name: String,
    /// None and `default` mean the same.
    pub tag: Option<String>,
}

/// Why a text is no template reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("the template reference is empty")]
    Empty,
    #[error("`{0}` is not a template name: only a-z, 0-9, - and _ are allowed")]
    Name(String),
    #[error("`{0}` is not a namespace: only a-z, 0-9, - and _ are allowed")]
    Namespace(String),
    #[error("`{0}` is not a tag: only a-z, 0-9, -, _ and . are allowed")]
    Tag(String),
}

impl FromStr for TemplateReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let text = text.trim().to_lowercase();
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (path, tag) = match text.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (text.as_str(), None),
        };
        let (namespace, name) = match path.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, path),
        };
        let shown = |part: &str| part.chars().take(80).collect::<String>();
        if let Some(namespace) = namespace.filter(|part| !is_name(part, false)) {
            return Err(ReferenceError::Namespace(shown(namespace)));
        }
        if !is_name(name, false) {
            return Err(ReferenceError::Name(shown(name)));
        }
        if let Some(tag) = tag.filter(|part| !is_name(part, true)) {
            return Err(ReferenceError::Tag(shown(tag)));
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            tag: tag.map(str::to_owned),
        })
    }
}

impl TemplateReference {
    /// Whether a text in lower case can be a tag.
    pub(crate) fn is_tag(text: &str) -> bool {
        is_name(text, true)
    }
}

impl fmt::Display for TemplateReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        Ok(())
    }
}

fn is_name(text: &str, dots: bool) -> bool {
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase()
            || byte.is_ascii_digit()
            || matches!(byte, b'-' | b'_')
            || (dots && byte == b'.')
    };
    !text.is_empty() && text.len() <= 128 && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Result<(Option<String>, String, Option<String>), ReferenceError> {
        text.parse::<TemplateReference>()
            .map(|it| (it.namespace, it.name, it.tag))
    }

    #[test]
    fn references_are_trimmed_lowered_and_split() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parts(" Base "), Ok((None, "base".into(), None)));
        assert_eq!(
            parts("acme/web:v1.2"),
            Ok((some("acme"), "web".into(), some("v1.2")))
        );
        assert_eq!(parts("web:default").map(|it| it.2), Ok(some("default")));
        let text = "acme/web:v1";
        assert_eq!(
            text.parse::<TemplateReference>().map(|it| it.to_string()),
            Ok(text.to_owned())
        );
    }

    #[test]
    fn bad_references_name_the_bad_part() {
        assert_eq!(parts("  "), Err(ReferenceError::Empty));
        assert_eq!(
            parts("bad name!"),
            Err(ReferenceError::Name("bad name!".into()))
        );
        assert_eq!(parts("a/b/c"), Err(ReferenceError::Name("b/c".into())));
        assert_eq!(parts("/b"), Err(ReferenceError::Namespace(String::new())));
        assert_eq!(parts("b:"), Err(ReferenceError::Tag(String::new())));
        assert_eq!(parts("b:a:c"), Err(ReferenceError::Tag("a:c".into())));
    }
}

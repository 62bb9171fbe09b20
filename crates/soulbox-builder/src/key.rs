//! Names of layers. A name is a SHA-256 over all that the layer is made of: what lies below it, the team, and the step. So a layer that has
//! a name is the one that the step would make, and a team's layers are no other team's.

use sha2::{Digest, Sha256};
use soulbox_types::TeamId;

/// Changes with anything that makes the same step write something else.
const GENERATION: &str = "soulbox layers 2";

/// What the layers so far amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key(String);

impl Key {
    /// Of what a build begins with; `context` is what else steps find there.
    pub(crate) fn base(team: &TeamId, layers: &[String], context: &str) -> Self {
        let mut parts = vec![GENERATION, "base", team.as_str(), context];
        parts.extend(layers.iter().map(String::as_str));
        Self(digest(&parts))
    }

    /// On top of a layer and all that lies below it.
    pub(crate) fn on(layer: &str) -> Self {
        Self(layer.to_owned())
    }

    /// After one more step.
    pub(crate) fn step(&self, kind: &str, args: &[String], files: Option<&str>) -> Self {
        let mut parts = vec![GENERATION, &self.0, kind, files.unwrap_or("")];
        parts.extend(args.iter().map(String::as_str));
        Self(digest(&parts))
    }

    /// By which the layer of the last step is found.
    pub(crate) fn layer(&self) -> &str {
        &self.0
    }

    /// For the client's log.
    pub(crate) fn short(&self) -> &str {
        &self.0[..12]
    }
}

/// Lengths go in too, so that no two lists of parts are the same bytes.
fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team(letter: char) -> TeamId {
        let id = format!(
            "{}-0000-4000-8000-000000000000",
            letter.to_string().repeat(8)
        );
        id.parse().expect("a team")
    }

    #[test]
    fn a_name_follows_from_all_that_a_layer_is_made_of() {
        let text =
            |parts: &[&str]| -> Vec<String> { parts.iter().map(|it| (*it).into()).collect() };
        let base = Key::base(&team('a'), &text(&["1"]), "");
        let one = base.step("RUN", &text(&["ls"]), None);
        assert_eq!(one, base.step("RUN", &text(&["ls"]), None));
        assert_eq!(one.layer().len(), 64);
        let others = [
            Key::base(&team('b'), &text(&["1"]), "").step("RUN", &text(&["ls"]), None),
            Key::base(&team('a'), &text(&["2"]), "").step("RUN", &text(&["ls"]), None),
            Key::base(&team('a'), &text(&["1"]), "x").step("RUN", &text(&["ls"]), None),
            base.step("COPY", &text(&["ls"]), None),
            base.step("RUN", &text(&["l", "s"]), None),
            base.step("RUN", &text(&["ls", ""]), None),
            base.step("RUN", &text(&["ls"]), Some("f")),
            one.step("RUN", &text(&["ls"]), None),
        ];
        for (index, other) in others.iter().enumerate() {
            assert_ne!(one, *other, "{index}");
        }
    }
}

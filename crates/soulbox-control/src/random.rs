//! Identifiers and secrets from the operating system's random source.

use soulbox_types::{SandboxId, TeamId};

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gave no random bytes: {0}")]
pub struct RandomError(getrandom::Error);

pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(RandomError)?;
    Ok(bytes)
}

pub(crate) fn sandbox_id() -> Result<SandboxId, RandomError> {
    bytes().map(SandboxId::from_random)
}

pub(crate) fn team_id() -> Result<TeamId, RandomError> {
    bytes().map(TeamId::from_random)
}

/// A UUID as text, for things whose IDs are never parsed.
pub(crate) fn uuid() -> Result<String, RandomError> {
    bytes().map(|random| TeamId::from_random(random).to_string())
}

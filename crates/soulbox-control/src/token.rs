//! Tokens of a sandbox: HMACs of its ID, so that they survive pauses and restarts without being stored.

use hmac::{Hmac, Mac};
use sha2::Sha256;
use soulbox_types::{SandboxId, TeamId};

use crate::builds::FilesHash;

/// Makes the tokens of one installation.
pub(crate) struct TokenMint(Hmac<Sha256>);

impl TokenMint {
    /// With the installation's seed, which HMAC takes in any length.
    pub(crate) fn new(seed: &[u8]) -> Self {
        match Hmac::new_from_slice(seed) {
            Ok(keyed) => Self(keyed),
            Err(hmac::digest::InvalidLength) => unreachable!("HMAC keys may have any length"),
        }
    }

    /// The token that envd demands.
    pub(crate) fn envd(&self, sandbox_id: &SandboxId) -> String {
        self.hex(&[sandbox_id.as_str()])
    }

    /// The token that the ingress demands for the other ports, if traffic is private.
    pub(crate) fn traffic(&self, sandbox_id: &SandboxId) -> String {
        self.hex(&["sandbox-traffic-", sandbox_id.as_str()])
    }

    /// The permission to upload an archive of files for a team until a moment, in Unix seconds.
    pub(crate) fn upload(&self, team_id: &TeamId, hash: &FilesHash, expires: u64) -> String {
        let expires = expires.to_string();
        self.hex(&[
            "upload/",
            team_id.as_str(),
            "/",
            hash.as_str(),
            "/",
            &expires,
        ])
    }

    fn hex(&self, parts: &[&str]) -> String {
        let mut keyed = self.0.clone();
        for part in parts {
            keyed.update(part.as_bytes());
        }
        hex::encode(keyed.finalize().into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_hmacs_of_the_id() {
        let mint = TokenMint::new(b"key");
        let id: SandboxId = "i1".parse().expect("an ID");
        // printf i1 | openssl dgst -sha256 -hmac key
        let expected = "280af2deaf6d7a4a814d679bad3f2d506d22f5ad076f0965956f307039098d2f";
        assert_eq!(mint.envd(&id), expected);
        let expected = "546041931c1554b81a5939c66621b5ed3080aeb79be9d655f4842115c9768cfb";
        assert_eq!(mint.traffic(&id), expected);
    }
}

//! Texts under a key: whoever reads one knows that this installation wrote it, byte by byte.

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// A text with its mark, as it is kept.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marked {
    /// Hex of the HMAC of `manifest`.
    mark: String,
    manifest: String,
}

/// Why a text is not believed.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    #[error("its manifest is damaged")]
    Damaged(#[source] serde_json::Error),
    #[error("its manifest does not carry this installation's mark")]
    Foreign,
}

/// The key of an installation for one purpose.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// Derives it from the installation's secret; another purpose gives an unrelated key.
    #[must_use]
    pub fn derive(secret: &[u8], purpose: &[u8]) -> Self {
        Self(
            authenticated(secret, purpose)
                .finalize()
                .into_bytes()
                .into(),
        )
    }

    /// The text and its mark, in one text.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn seal(&self, text: String) -> Result<String, serde_json::Error> {
        let mark = authenticated(&self.0, text.as_bytes()).finalize();
        serde_json::to_string(&Marked {
            mark: hex::encode(mark.into_bytes()),
            manifest: text,
        })
    }

    /// What was sealed.
    ///
    /// # Errors
    /// See [`MarkError`].
    pub fn open(&self, sealed: &str) -> Result<String, MarkError> {
        let Marked { mark, manifest } = serde_json::from_str(sealed).map_err(MarkError::Damaged)?;
        let mark = hex::decode(mark).map_err(|_| MarkError::Foreign)?;
        authenticated(&self.0, manifest.as_bytes())
            .verify_slice(&mark)
            .map_err(|_| MarkError::Foreign)?;
        Ok(manifest)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

/// What a sealed text says, whoever wrote it. For what harms nobody when it is untrue.
pub(crate) fn unbelieved(sealed: &str) -> Result<String, serde_json::Error> {
    serde_json::from_str(sealed).map(|Marked { manifest, .. }| manifest)
}

fn authenticated(key: &[u8], text: &[u8]) -> Hmac<Sha256> {
    #[expect(clippy::expect_used, reason = "an HMAC takes keys of every length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key");
    mac.update(text);
    mac
}

//! API keys of a team, as the administrator handles them. A secret is told once, when it is made; what is kept is its hash.

use soulbox_types::TeamId;

use crate::auth::{API_KEY_PREFIX, key_row};
use crate::control::Control;
use crate::random::{self, RandomError};
use crate::store::{KeyKind, KeyRow, StoreError, TeamRow};

/// A key that was just made.
#[derive(Debug)]
pub struct NewKey {
    pub row: KeyRow,
    /// The whole key, which nobody can ask for again.
    pub secret: String,
}

/// Why a key was not made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    Random(#[from] RandomError),
    /// Our own text was no key, which would be a defect.
    #[error("the new key is malformed")]
    Malformed,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A key of a team; not stored yet.
///
/// # Errors
/// No random bytes.
pub fn new_api_key(team_id: &TeamId, name: &str) -> Result<NewKey, KeyError> {
    let secret = format!("{API_KEY_PREFIX}{}", hex::encode(random::bytes::<20>()?));
    let row = key_row(KeyKind::ApiKey, &secret, name, team_id)?.ok_or(KeyError::Malformed)?;
    Ok(NewKey { row, secret })
}

impl Control {
    /// The team of this ID, banned or not.
    ///
    /// # Errors
    /// The store could not be read.
    pub async fn team(&self, team_id: &TeamId) -> Result<Option<TeamRow>, StoreError> {
        self.store().team(team_id).await
    }

    /// The API keys of a team, oldest first, with their latest use.
    ///
    /// # Errors
    /// The store could not be read.
    pub async fn api_keys(&self, team_id: &TeamId) -> Result<Vec<KeyRow>, StoreError> {
        self.flush_counters().await;
        self.store().api_keys(team_id).await
    }

    /// Makes an API key of a team.
    ///
    /// # Errors
    /// No random bytes, or the store refused; no key was made then.
    pub async fn create_api_key(&self, team_id: &TeamId, name: &str) -> Result<NewKey, KeyError> {
        let NewKey { row, secret } = new_api_key(team_id, name)?;
        self.store().insert_api_key(&row).await?;
        tracing::info!(%team_id, key_id = row.key_id, "made an API key");
        Ok(NewKey { row, secret })
    }

    /// Gives an API key of the team another name; false when the team has no such key.
    ///
    /// # Errors
    /// The store refused.
    pub async fn rename_api_key(
        &self,
        team_id: &TeamId,
        key_id: &str,
        name: &str,
    ) -> Result<bool, StoreError> {
        self.store().rename_api_key(team_id, key_id, name).await
    }

    /// Revokes an API key of the team at once; false when the team has no such key.
    ///
    /// # Errors
    /// The store refused; the key works on.
    pub async fn delete_api_key(&self, team_id: &TeamId, key_id: &str) -> Result<bool, StoreError> {
        let deleted = self.store().delete_api_key(team_id, key_id).await?;
        self.shared.keyring.forget();
        if deleted {
            tracing::info!(%team_id, key_id, "revoked an API key");
        }
        Ok(deleted)
    }
}

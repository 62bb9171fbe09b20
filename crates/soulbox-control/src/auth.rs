//! Who is calling: API keys, the administrator acting as a team, and the schemes that no key can satisfy yet.
//!
//! Keys are known by their hashes. A verified one is remembered for a minute, and forgotten at once when keys change here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};
use soulbox_types::{TeamId, UnixMillis};

use crate::clock;
use crate::random::{self, RandomError};
use crate::store::{KeyKind, KeyRow, Store, StoreError, TeamRow};

pub(crate) const API_KEY_PREFIX: &str = "e2b_";
pub(crate) const ACCESS_TOKEN_PREFIX: &str = "sk_e2b_";

const REMEMBER: Duration = Duration::from_secs(60);
/// Far more keys than an installation has; a full memory is emptied.
const REMEMBER_AT_MOST: usize = 10_000;
const NOTE_USE_EVERY_MILLIS: u64 = 60_000;

/// What a request shows.
#[derive(Clone, Copy)]
pub enum Credential<'a> {
    /// `X-API-Key`.
    ApiKey(&'a str),
    /// `Authorization: Bearer` of a legacy access token.
    AccessToken(&'a str),
    /// `X-Admin-Token`, with the team to act as.
    AdminAsTeam { token: &'a str, team_id: &'a str },
}

/// Why a request is not let in.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("the credential lacks its prefix")]
    Malformed,
    #[error("the API key is not hexadecimal")]
    ApiKeyFormat,
    #[error("the API key is unknown")]
    ApiKeyUnknown,
    #[error("the access token is not valid")]
    AccessToken,
    #[error("the administration token is not valid")]
    AdminToken,
    #[error("the team ID is not a UUID")]
    TeamIdInvalid,
    #[error("the team does not exist")]
    TeamUnknown,
    #[error("the team is banned")]
    Banned,
    #[error(transparent)]
    Store(#[from] StoreError),
}

struct Known {
    key_id: String,
    team: Arc<TeamRow>,
    seen: Instant,
    used_noted: UnixMillis,
}

/// Verifies credentials against the store, through a memory.
pub(crate) struct Keyring {
    store: Arc<dyn Store>,
    admin_digest: [u8; 32],
    known: Mutex<HashMap<String, Known>>,
    /// How often everything was forgotten: what was read from the store before that is not remembered after it.
    forgotten: AtomicU64,
    used: Mutex<HashMap<String, UnixMillis>>,
}

impl Keyring {
    pub(crate) fn new(store: Arc<dyn Store>, admin_token: &str) -> Self {
        Self {
            store,
            admin_digest: Sha256::digest(admin_token).into(),
            known: Mutex::default(),
            forgotten: AtomicU64::new(0),
            used: Mutex::default(),
        }
    }

    /// The team that the credential acts for. Blocked teams are let in: what they may do is decided by route.
    pub(crate) async fn authenticate(
        &self,
        credential: Credential<'_>,
    ) -> Result<Arc<TeamRow>, AuthError> {
        let team = match credential {
            Credential::ApiKey(key) => self.by_api_key(key).await?,
            Credential::AccessToken(token) => self.by_access_token(token).await?,
            Credential::AdminAsTeam { token, team_id } => {
                self.check_admin(token)?;
                let team_id: TeamId = team_id
                    .to_lowercase()
                    .parse()
                    .map_err(|_| AuthError::TeamIdInvalid)?;
                let team = self
                    .store
                    .team(&team_id)
                    .await?
                    .ok_or(AuthError::TeamUnknown)?;
                Arc::new(team)
            }
        };
        if team.banned {
            Err(AuthError::Banned)
        } else {
            Ok(team)
        }
    }

    /// Digests are compared, so that the time taken says nothing about the token.
    pub(crate) fn check_admin(&self, token: &str) -> Result<(), AuthError> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        if digest == self.admin_digest {
            Ok(())
        } else {
            Err(AuthError::AdminToken)
        }
    }

    /// Forgets every verified key: keys or teams have changed.
    pub(crate) fn forget(&self) {
        let mut known = lock(&self.known);
        self.forgotten.fetch_add(1, Ordering::Relaxed);
        known.clear();
    }

    /// When keys were used since the last call, for the store.
    pub(crate) fn take_used(&self) -> Vec<(String, UnixMillis)> {
        lock(&self.used).drain().collect()
    }

    async fn by_api_key(&self, key: &str) -> Result<Arc<TeamRow>, AuthError> {
        let value = key
            .strip_prefix(API_KEY_PREFIX)
            .ok_or(AuthError::Malformed)?;
        let hash = hash(value).ok_or(AuthError::ApiKeyFormat)?;
        if let Some(team) = self.remembered(&hash) {
            return Ok(team);
        }
        let before = self.forgotten.load(Ordering::Relaxed);
        let (row, team) = self
            .store
            .key(KeyKind::ApiKey, &hash)
            .await?
            .ok_or(AuthError::ApiKeyUnknown)?;
        let team = Arc::new(team);
        let now = clock::wall();
        // What was forgotten on account of another key is not a new use.
        let noted = row
            .last_used_at
            .filter(|at| now.millis_since(*at) < NOTE_USE_EVERY_MILLIS);
        if noted.is_none() {
            lock(&self.used).entry(row.key_id.clone()).or_insert(now);
        }
        let mut known = lock(&self.known);
        if self.forgotten.load(Ordering::Relaxed) != before {
            return Ok(team);
        }
        if known.len() >= REMEMBER_AT_MOST {
            known.clear();
        }
        known.insert(
            hash,
            Known {
                key_id: row.key_id,
                team: team.clone(),
                seen: Instant::now(),
                used_noted: noted.unwrap_or(now),
            },
        );
        Ok(team)
    }

    fn remembered(&self, hash: &str) -> Option<Arc<TeamRow>> {
        let mut known = lock(&self.known);
        let entry = known.get_mut(hash)?;
        if entry.seen.elapsed() > REMEMBER {
            known.remove(hash);
            return None;
        }
        let now = clock::wall();
        if now.millis_since(entry.used_noted) >= NOTE_USE_EVERY_MILLIS {
            entry.used_noted = now;
            lock(&self.used).insert(entry.key_id.clone(), now);
        }
        Some(entry.team.clone())
    }

    async fn by_access_token(&self, token: &str) -> Result<Arc<TeamRow>, AuthError> {
        let value = token
            .strip_prefix(ACCESS_TOKEN_PREFIX)
            .ok_or(AuthError::AccessToken)?;
        let hash = hash(value).ok_or(AuthError::AccessToken)?;
        let (_, team) = self
            .store
            .key(KeyKind::AccessToken, &hash)
            .await?
            .ok_or(AuthError::AccessToken)?;
        Ok(Arc::new(team))
    }
}

/// The row of a secret; none when it lacks the prefix of its kind or is not hexadecimal.
pub(crate) fn key_row(
    kind: KeyKind,
    secret: &str,
    name: &str,
    team_id: &TeamId,
) -> Result<Option<KeyRow>, RandomError> {
    let prefix = match kind {
        KeyKind::ApiKey => API_KEY_PREFIX,
        KeyKind::AccessToken => ACCESS_TOKEN_PREFIX,
    };
    let Some(value) = secret.strip_prefix(prefix) else {
        return Ok(None);
    };
    let Some(hash) = hash(value) else {
        return Ok(None);
    };
    Ok(Some(KeyRow {
        key_id: random::uuid()?,
        team_id: team_id.clone(),
        name: name.to_owned(),
        hash,
        prefix: prefix.to_owned(),
        value_length: u32::try_from(value.len()).unwrap_or(u32::MAX),
        mask_prefix: value.chars().take(2).collect(),
        mask_suffix: value[value.len().saturating_sub(4)..].to_owned(),
        created_at: clock::wall(),
        last_used_at: None,
    }))
}

/// The stored form of a secret's hexadecimal part.
fn hash(value: &str) -> Option<String> {
    let bytes = hex::decode(value).ok().filter(|bytes| !bytes.is_empty())?;
    Some(format!(
        "$sha256${}",
        STANDARD_NO_PAD.encode(Sha256::digest(bytes))
    ))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // The maps are consistent after every statement, so a panic elsewhere does not spoil them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hashed_as_bytes_and_masked() {
        let team = TeamId::from_random([1; 16]);
        let row = key_row(KeyKind::ApiKey, "e2b_00ff", "k", &team)
            .expect("random")
            .expect("a key");
        // printf '\x00\xff' | openssl dgst -sha256 -binary | base64, without its padding
        assert_eq!(
            row.hash,
            "$sha256$But9amnuGeX733SQGNPSq/oEvL0TZdsxLrhtxxaTibg"
        );
        assert_eq!(
            (
                row.mask_prefix.as_str(),
                row.mask_suffix.as_str(),
                row.value_length
            ),
            ("00", "00ff", 4)
        );
        for bad in ["00ff", "e2b_", "e2b_0", "e2b_zz", "e2b_é0"] {
            assert!(
                key_row(KeyKind::ApiKey, bad, "k", &team)
                    .expect("random")
                    .is_none(),
                "{bad}"
            );
        }
    }
}

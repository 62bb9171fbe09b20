//! What servers tell each other: NOTIFY in the transaction that changes a row, so nobody hears of what was rolled back.
//!
//! A payload is `<origin> <what>`; `what` is `keys`, `templates` or a sandbox ID after a colon. A server passes over its own. The
//! connection that listens may break: what was told meanwhile is lost, which is itself told as [`Change::Missed`].

use std::time::Duration;

use async_trait::async_trait;
use soulbox_control::{Change, Changes};
use sqlx::postgres::{PgListener, PgPool};

use crate::store::Told;

pub(super) const CHANNEL: &str = "soulbox_changes";
const KEYS: &str = "keys";
const TEMPLATES: &str = "templates";
/// Between two attempts to listen again.
const RETRY: Duration = Duration::from_secs(1);

/// What the other servers are sent.
pub(super) fn payload(origin: &str, told: Told<'_>) -> Option<String> {
    match told {
        Told::Nothing => None,
        Told::Keys => Some(format!("{origin} {KEYS}")),
        Told::Templates => Some(format!("{origin} {TEMPLATES}")),
        Told::Sandbox(sandbox_id) => Some(format!("{origin} :{sandbox_id}")),
    }
}

/// A connection that listens.
pub(crate) struct Heard {
    listener: PgListener,
    origin: String,
}

impl Heard {
    pub(super) async fn start(pool: &PgPool, origin: String) -> Result<Self, sqlx::Error> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen(CHANNEL).await?;
        Ok(Self { listener, origin })
    }
}

#[async_trait]
impl Changes for Heard {
    async fn next(&mut self) -> Change {
        let mut failed = false;
        loop {
            match self.listener.try_recv().await {
                Ok(Some(notification)) => {
                    if failed {
                        return Change::Missed;
                    }
                    if let Some(change) = read(notification.payload(), &self.origin) {
                        return change;
                    }
                }
                // The connection was lost; sqlx makes it anew.
                Ok(None) => return Change::Missed,
                Err(_) if !failed => {
                    failed = true;
                    tokio::time::sleep(RETRY).await;
                }
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }
}

/// What a payload says; nothing when it is of this server. What is not understood is of a newer server.
fn read(payload: &str, origin: &str) -> Option<Change> {
    let (from, what) = payload.split_once(' ').unwrap_or(("", payload));
    if from == origin {
        return None;
    }
    Some(match what {
        KEYS => Change::Keys,
        TEMPLATES => Change::Templates,
        other => match other.strip_prefix(':').map(str::parse) {
            Some(Ok(sandbox_id)) => Change::Sandbox(sandbox_id),
            _ => Change::Missed,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_read_and_ones_own_passed_over() {
        let id: soulbox_types::SandboxId = "i1".parse().expect("an ID");
        let sent = |told| payload("you", told).expect("a payload");
        for (told, heard) in [
            (Told::Keys, Change::Keys),
            (Told::Templates, Change::Templates),
            (Told::Sandbox(&id), Change::Sandbox(id.clone())),
        ] {
            assert_eq!(read(&sent(told), "me"), Some(heard));
            assert_eq!(read(&sent(told), "you"), None);
        }
        assert_eq!(payload("you", Told::Nothing), None);
        for odd in ["", "you", "you :NO", "you something"] {
            assert_eq!(read(odd, "me"), Some(Change::Missed), "{odd}");
        }
    }
}

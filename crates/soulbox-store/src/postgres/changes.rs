//! What servers tell each other: NOTIFY in the transaction that changes a row, so nobody hears of what was rolled back.
//!
//! A payload is `<origin> <what>`; `what` is `keys`, `templates` or a sandbox ID after a colon. A server passes over its own. The
//! connection that listens may break: what was told meanwhile is lost, which is itself told as [`Change::Missed`].

use std::time::Duration;

use async_trait::async_trait;
use soulbox_control::{Change, Changes};
use sqlx::postgres::{PgListener, PgPool};
use sqlx::{Postgres, Transaction};

use super::PostgresStore;

const CHANNEL: &str = "soulbox_changes";
pub(super) const KEYS: &str = "keys";
pub(super) const TEMPLATES: &str = "templates";
/// Between two attempts to listen again.
const RETRY: Duration = Duration::from_secs(1);

impl PostgresStore {
    /// Tells the other servers when the transaction commits.
    pub(super) async fn tell(
        &self,
        transaction: &mut Transaction<'static, Postgres>,
        what: &str,
    ) -> Result<(), sqlx::Error> {
        sqlx::query("SELECT pg_notify($1, $2)")
            .bind(CHANNEL)
            .bind(format!("{} {what}", self.origin))
            .execute(&mut **transaction)
            .await
            .map(drop)
    }
}

/// The payload for a changed sandbox; statements send it themselves, to spare a round trip.
pub(super) fn of_sandbox(origin: &str, sandbox_id: &soulbox_types::SandboxId) -> String {
    format!("{origin} :{sandbox_id}")
}

pub(super) const fn channel() -> &'static str {
    CHANNEL
}

/// A connection that listens.
pub(super) struct Heard {
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
        let id = "i1".parse().expect("an ID");
        assert_eq!(read("me keys", "me"), None);
        assert_eq!(read("you keys", "me"), Some(Change::Keys));
        assert_eq!(read("you templates", "me"), Some(Change::Templates));
        assert_eq!(
            read(&of_sandbox("you", &id), "me"),
            Some(Change::Sandbox(id))
        );
        for odd in ["", "you", "you :NO", "you something"] {
            assert_eq!(read(odd, "me"), Some(Change::Missed), "{odd}");
        }
    }
}

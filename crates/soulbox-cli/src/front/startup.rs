//! Start commands of templates: what a new sandbox runs before its creator hears of it. Where its build could end with a snapshot, they run
//! in it already.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use soulbox_builder::bench::Command;
use soulbox_builder::ready::{Pace, until_ready};
use soulbox_control::HostCreate;
use soulbox_wire::host::{Inherited, Reply, Request};
use tokio::sync::mpsc;

use super::guest::GuestDaemon;
use crate::failure::chain;
use crate::rpc::Client;

/// A create may take 30 s in all.
const READY_WITHIN: Duration = Duration::from_secs(25);
/// The time limit of a start command itself: a sandbox lives no longer than a few days.
const START_WITHIN: Duration = Duration::from_secs(30 * 24 * 3600);
const PACE: Pace = Pace {
    first: Duration::from_millis(50),
    longest: Duration::from_secs(1),
};
/// Builds whose commands are remembered. A build never changes.
const MOST_KNOWN: usize = 4096;

/// Start and ready commands of the builds that this front has started sandboxes of.
pub(super) struct Startups {
    client: Client,
    known: Mutex<HashMap<String, Arc<Inherited>>>,
}

impl Startups {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            known: Mutex::default(),
        }
    }

    /// Runs the start command of the sandbox's build and waits for its ready command, where it has them.
    pub(super) async fn start(&self, sandbox: &HostCreate) -> Result<(), String> {
        let inherited = self.of(sandbox.build_id.as_str()).await?;
        if inherited.start_command.is_none() && inherited.ready_command.is_none() {
            return Ok(());
        }
        let command = |text: &Option<String>, within| {
            text.as_ref().map(|text| Command {
                text: text.clone(),
                user: sandbox.default_user.clone(),
                workdir: Some(sandbox.default_workdir.clone()),
                env: inherited.env.clone(),
                within,
            })
        };
        let start = command(&inherited.start_command, START_WITHIN);
        let ready = command(&inherited.ready_command, READY_WITHIN);
        let daemon = GuestDaemon {
            client: self.client.clone(),
            sandbox_id: sandbox.sandbox_id.to_string(),
            access_token: sandbox.access_token.clone(),
        };
        let (output, mut written) = mpsc::channel(16);
        let drain = async { while written.recv().await.is_some() {} };
        let readying = until_ready(
            &daemon,
            start.as_ref(),
            ready.as_ref(),
            PACE,
            Duration::ZERO,
            output,
        );
        let (outcome, ()) = tokio::join!(readying, drain);
        outcome.map_err(|error| error.to_string())
    }

    async fn of(&self, build_id: &str) -> Result<Arc<Inherited>, String> {
        let known = self.lock().get(build_id).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let request = Request::Build {
            build_id: build_id.to_owned(),
        };
        let (reply, _) = self
            .client
            .request(request)
            .await
            .map_err(|error| chain(&error))?;
        let Reply::Templates(mut found) = reply else {
            return Err("the host's answer is of another kind".to_owned());
        };
        let inherited = found.pop().map(|build| build.inherited).unwrap_or_default();
        let inherited = Arc::new(inherited);
        let mut known = self.lock();
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(build_id.to_owned(), Arc::clone(&inherited));
        Ok(inherited)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Inherited>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Snapshots of the installation's own templates: a build by recipe has no server to make one, so the first that sees it does.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use soulbox_builder::Steps;
use soulbox_wire::host::HostTemplate;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::builder::known;
use crate::failure::chain;

/// A build whose snapshot could not be made is tried again after this.
const AGAIN: Duration = Duration::from_secs(600);

/// Makes snapshots for the templates that are seen, one at a time, for as long as they are told of.
pub(super) async fn run(steps: Arc<Steps>, mut seen: watch::Receiver<Vec<HostTemplate>>) {
    let mut tried: HashMap<String, Instant> = HashMap::new();
    while seen.changed().await.is_ok() {
        let templates = seen.borrow_and_update().clone();
        for build in templates.into_iter().map(known) {
            let (build_id, name) = (build.build_id.clone(), build.name.clone());
            let is_due = |at: &Instant| at.elapsed() >= AGAIN;
            if !build.wants_snapshot() || !tried.get(&build_id).is_none_or(is_due) {
                continue;
            }
            let began = Instant::now();
            tried.insert(build_id.clone(), began);
            match steps.start_ahead(build).await {
                Ok(()) => {
                    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                    info!(
                        build_id,
                        name, took_ms, "sandboxes of a template go on from a snapshot"
                    );
                }
                Err(error) => {
                    warn!(build_id, name, error = %chain(&error), "a template has no snapshot");
                }
            }
        }
    }
}
